"""What an earlier version has written works on: runs, checkpoints, sweeps, the record of `pcl-ray up`, the
MLflow store.

`data/home_before.tar.xz` holds a PCL_RAY_HOME as that version left it, and what it told of it;
`data/README.md` says how it was made.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from processes import free_port
from sklearn.datasets import load_digits

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray.cluster import ray_api
from pcl_ray.config import figures
from pcl_ray.model.weights import load_encoder
from pcl_ray.on_ray import local_head_record
from pcl_ray.runs import record_reader
from pcl_ray.runs.folder import RunFolder, read_history_at, read_state_at
from pcl_ray.support import processes

ARCHIVE = Path(__file__).with_name("data") / "home_before.tar.xz"
LIMIT_S = 300  # a guard against hanging, not a measurement
_WITHOUT_PATHS = (".pt", ".npz", ".png", ".pt2", ".safetensors", ".html", ".db")
_COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "tags": "value",
    "logged_models": "artifact_location",
}


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's content: `home`, `expected.json`, `expected.npz`."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="tar")  # which keeps the rights, that of the token among them
    return folder


@pytest.fixture(scope="session")
def expected(unpacked: Path) -> dict[str, Any]:
    """What the earlier version told of its runs and sweeps."""
    return json.loads((unpacked / "expected.json").read_text())


@pytest.fixture
def home(unpacked: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy as PCL_RAY_HOME, with the paths that were written into it as if it had always been there.

    Ray Tune has them in pickles, where only one of the same length fits: eight letters in /tmp, as `mkdtemp`
    makes them.
    """
    before = str(expected["home"])
    parent = tempfile.mkdtemp(prefix="", dir="/tmp")
    assert len(parent) == len(before)
    there = Path(parent)
    monkeypatch.setenv("PCL_RAY_HOME", parent)
    shutil.copytree(unpacked / "home", there, dirs_exist_ok=True)
    for file in there.rglob("*"):
        if file.is_file() and file.suffix not in _WITHOUT_PATHS:
            _replace(file, before.encode(), parent.encode())
    store = sqlite3.connect(there / "mlflow" / "mlflow.db")
    for table, column in _COLUMNS.items():
        store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, parent))
    store.commit()
    store.close()
    yield there
    shutil.rmtree(there)


def _replace(file: Path, old: bytes, new: bytes) -> None:
    """In bytes as they are, and in those that JSON holds in hexadecimal digits."""
    content = file.read_bytes()
    changed = content.replace(old, new).replace(old.hex().encode(), new.hex().encode())
    if changed != content:
        file.write_bytes(changed)


@pytest.fixture
def client(home: Path) -> MlflowClient:
    """Of the store in that home."""
    return MlflowClient(f"sqlite:///{home}/mlflow/mlflow.db")


def digits() -> np.ndarray:
    """The first sixteen, with values from 0 to 16."""
    return load_digits().images[:16]


def history_of(name: str) -> list[dict[str, Any]]:
    return read_history_at(RunFolder.path_of(name))


def result_of(folder: Path, *command: str) -> dict[str, Any]:
    """What a command that a user types gives as its result."""
    file = folder / "result.json"
    assert cli.main([*command, "--result", str(file)]) == 0
    return json.loads(file.read_text())


def steps_in_mlflow(client: MlflowClient, run_id: str, figure: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, figure)]


# --- the run ---


def test_state_history_and_recipe_of_a_run_are_read(home: Path, expected: dict[str, Any]) -> None:
    run = expected["run"]
    state = read_state_at(home / "runs" / run["name"])
    assert state["state"] == "finished"
    for name in ("mlflow_run_id", "fingerprint", "began_at"):
        assert state[name] == run[name]
    record = record_reader.read(run["name"])
    written = [dict(line["metrics"]) for line in run["history"]]
    assert all(figures.KNN_TOP1.name in metrics for metrics in written)
    for metrics in written:  # which was the head's then
        metrics[figures.HEAD_KNN_TOP1.name] = metrics.pop(figures.KNN_TOP1.name)
    assert [line["metrics"] for line in record.history] == written
    for line, before in zip(record.history, run["history"], strict=True):
        assert {**line, "metrics": {}} == {**before, "metrics": {}}
    assert (record.state, record.num_images, record.num_clusters) == ("finished", 300, (6, 12))
    assert record.thumbnails is not None
    config = configs.load(home / "runs" / run["name"] / "config.yaml")
    assert (config.encoder.width, config.train.epochs, config.e_step.num_clusters) == (8, 3, (6, 12))


@pytest.mark.parametrize("which", ["query", "momentum"])
def test_an_encoder_out_of_a_checkpoint_gives_the_features_that_it_gave(
    home: Path, unpacked: Path, which: Any
) -> None:
    encoder = load_encoder(home / "runs/before/checkpoints/epoch_00003.pt", encoder=which)
    views = torch.tensor((digits() / 16 - 0.305) / 0.376, dtype=torch.float32)[:, None]
    with torch.no_grad():
        features = encoder(views).numpy()
    np.testing.assert_allclose(features, np.load(unpacked / "expected.npz")[which], atol=1e-4)


@pytest.mark.parametrize("command", [["train", "--resume"], ["resume"]], ids=" ".join)
def test_a_run_goes_on_in_the_same_mlflow_run(
    command: list[str], client: MlflowClient, expected: dict[str, Any], tmp_path: Path
) -> None:
    run = expected["run"]
    steps = steps_in_mlflow(client, run["mlflow_run_id"], "train/loss")
    result = result_of(tmp_path, *command, run["name"], "train.epochs=4", "tracking.model=false")
    assert (result["state"], result["mlflow_run_id"]) == ("finished", run["mlflow_run_id"])
    history = history_of(run["name"])
    assert history[:3] == run["history"]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    assert "train/loss_prototype" in history[3]["metrics"]
    recorded = client.get_run(run["mlflow_run_id"])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["changed.train.epochs"] == "4"
    after = steps_in_mlflow(client, run["mlflow_run_id"], "train/loss")
    assert after[: len(steps)] == steps
    assert len(after) == len(set(after)) > len(steps)


@pytest.mark.usefixtures("home")
def test_a_run_that_has_finished_says_so(
    expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of(tmp_path, "train", "--resume", "before")
    assert "nothing left to do" in capsys.readouterr().out
    assert result["mlflow_run_id"] == expected["run"]["mlflow_run_id"]
    last = expected["run"]["history"][-1]["metrics"]
    assert result["metrics"]["eval/knn_top1"] == last["eval/knn_top1"]


@pytest.mark.usefixtures("home")
def test_report_doctor_and_comparison_are_made_of_it(
    expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = next(iter(expected["sweeps"]["swept"]["trials"]))
    assert cli.main(["report", "before", "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "before" in page
    assert "kNN top-1 of the head" in page
    record = record_reader.read("before")
    assert record.finite(figures.KNN_TOP1) == []  # what was recorded then was the head's
    values = [entry["metrics"]["eval/knn_top1"] for entry in expected["run"]["history"]]
    assert [value for _, value in record.finite(figures.HEAD_KNN_TOP1)] == values
    assert cli.main(["report", trial]) == 0
    capsys.readouterr()
    assert cli.main(["doctor", "before"]) == 0
    assert "before" in capsys.readouterr().out
    assert cli.main(["compare", "before", trial, "--out", str(tmp_path / "compare.html")]) == 0
    page = (tmp_path / "compare.html").read_text()
    assert trial in page
    assert "encoder.blocks" in page


def test_a_fork_begins_with_its_checkpoint_and_leaves_it_alone(home: Path, expected: dict[str, Any]) -> None:
    kept = (home / "runs/before/checkpoints/epoch_00003.pt").read_bytes()
    words = ["loss.temperature=0.3", "train.epochs=4", "tracking.model=false", "--name", "forked"]
    assert cli.main(["fork", "before", *words]) == 0
    state = read_state_at(home / "runs/forked")
    assert (state["state"], state["forked_from"]) == ("finished", "before@3")
    assert history_of("forked")[:3] == expected["run"]["history"]
    assert (home / "runs/before/checkpoints/epoch_00003.pt").read_bytes() == kept


def test_what_mlflow_did_not_take_is_sent_when_the_run_is_resumed(
    home: Path,
    client: MlflowClient,
    expected: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Points, tags, files, a picture and the order for its model wait in a file of the run."""
    assert expected["unsent"]["mlflow_run_id"] is None
    store = f"tracking.uri=sqlite:///{home}/mlflow/mlflow.db"
    result = result_of(tmp_path, "train", "--resume", "unsent", store)
    assert "warning" not in capsys.readouterr().err
    assert not (home / "runs/unsent/mlflow_pending.jsonl").exists()
    recorded = client.get_run(result["mlflow_run_id"])
    last = expected["unsent"]["history"][-1]
    assert recorded.data.metrics["eval/knn_top1"] == last["metrics"]["eval/knn_top1"]
    assert recorded.data.params["encoder.width"] == "8"
    assert recorded.data.tags["pcl_ray.run_dir"] == str(home / "runs/unsent")
    names = {artifact.path for artifact in client.list_artifacts(result["mlflow_run_id"])}
    assert {"config.yaml", "figures.csv", "images"} <= names
    experiment = recorded.info.experiment_id
    models = client.search_logged_models([experiment], f"source_run_id = '{result['mlflow_run_id']}'")
    assert {model.name for model in models} == {"encoder", "embedder"}


# --- the MLflow store ---


@pytest.mark.usefixtures("home")
def test_the_store_lists_its_runs(expected: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "--json"]) == 0
    listed = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert set(listed) == {"before", *expected["sweeps"]}
    run = listed["before"]
    last = expected["run"]["history"][-1]["metrics"]
    assert (run["run_id"], run["state"], run["user"]) == (
        expected["run"]["mlflow_run_id"],
        "finished",
        "user",
    )
    assert (run["epoch"], run["epochs"]) == (3, 3)
    # it was the head's then
    assert (run["figure"], run["value"]) == ("eval/head/knn_top1", last["eval/knn_top1"])
    assert cli.main(["runs", "--trials"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in expected["recorded"])
    assert cli.main(["runs", "--state", "stopped"]) == 0
    assert "cut" in capsys.readouterr().out


def test_a_recorded_model_loads_and_answers_as_it_did(
    home: Path, unpacked: Path, expected: dict[str, Any]
) -> None:
    """The model brings its own code, and uses ours where that has been imported already, as it is here."""
    import mlflow

    folder = home / "mlflow/artifacts/models" / expected["run"]["models"]["embedder"] / "artifacts"
    model = mlflow.pyfunc.load_model(str(folder))
    found = model.predict(list((digits() * 255 / 16).round().astype(np.uint8)))
    told = np.load(unpacked / "expected.npz")
    np.testing.assert_allclose(np.array(found["embedding"].tolist()), told["embeddings"], atol=1e-4)
    for m in range(2):
        assert found[f"prototype_{m}"].tolist() == told[f"prototypes_{m}"].tolist()


# --- the record of `pcl-ray up` ---


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named by the environment, and none answers at the default address."""
    for name in (
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_MODE",
        "RAY_ADDRESS",
        "MLFLOW_TRACKING_URI",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")


@pytest.mark.usefixtures("nowhere")
def test_the_record_of_processes_that_are_gone_is_read_and_removed(
    home: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    head, token_file = local_head_record.read(), local_head_record.token_file()
    assert head is not None
    assert asdict(head) == expected["up"]
    assert ray_api.read_token(token_file) == expected["token"]
    assert not ray_api.open_to_others(token_file)
    assert cli.main(["status"]) == 0
    said = capsys.readouterr()
    assert "cluster     no Ray cluster answers" in said.out
    assert f"sqlite:///{home}/mlflow/mlflow.db" in said.out
    assert "none under way" in said.out
    assert said.err == ""
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "nothing of `pcl-ray up` runs here\n"
    assert local_head_record.read() is None
    assert ray_api.read_token(token_file) == expected["token"]


@pytest.mark.usefixtures("nowhere")
def test_servers_that_an_earlier_version_started_are_ended(
    home: Path, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record as it was written, of a process that runs."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    known = processes.start(sleeps, {}, tmp_path, tmp_path / "log")
    try:
        record = {**expected["up"], "ray": None, "mlflow": {"pid": known.pid, "created": known.created}}
        (home / "service/up.json").write_text(json.dumps(record))
        assert cli.main(["down"]) == 0
        assert "ended: Ray and MLflow" in capsys.readouterr().out
        assert known.process() is None
    finally:
        processes.end(known)


# --- sweeps ---


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ("swept", ("one of 1, 10", "grid, scheduler none", "3 epochs")),
        ("cut", ("log-uniform 1 … 20", "optuna, scheduler none", "2 configurations, 2 seeds", "6 epochs")),
        ("population", ("log-uniform 1 … 20", "random, scheduler pbt", "every 1 epochs", "6 epochs")),
    ],
)
@pytest.mark.usefixtures("home")
def test_space_settings_and_recipe_of_a_sweep_are_read(
    sweep: str, told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--resume", sweep, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for words in told:
        assert words in out


Sweep = Callable[[str], tuple["subprocess.CompletedProcess[str]", dict[str, Any]]]


@pytest.fixture
def same_versions(expected: dict[str, Any]) -> None:
    """Tune's files belong to a version of Ray, and to one of Python, whose byte code is in them."""
    here = {"ray": metadata.version("ray"), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    if here != {name: expected["versions"][name] for name in here}:
        pytest.skip(f"the files of Ray Tune are of other versions than {here}")


@pytest.fixture
def sweep_on(same_versions: None, home: Path, expected: dict[str, Any], tmp_path: Path) -> Sweep:
    """Goes on with a sweep in a process of its own, by the command that a user types."""

    def run(name: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        result, there = tmp_path / "result.json", Path(expected["home"]).exists()
        command = [sys.executable, "-m", "pcl_ray.cli", "sweep", "--resume", name, "--result", str(result)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert Path(expected["home"]).exists() == there  # nothing goes to where it was
        return ended, json.loads(result.read_text())

    return run


def trials_of(sweep: str) -> dict[str, dict[str, Any]]:
    """`state.json` of each of its runs."""
    folders = RunFolder.path_of(sweep).parent.glob(f"{sweep}.*")
    return {path.name: read_state_at(path) for path in folders}


def checkpoints_of(trial: str) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns for path in (RunFolder.path_of(trial) / "checkpoints").iterdir()
    }


@pytest.mark.slow
def test_a_sweep_that_has_ended_is_ranked_and_not_trained_again(
    sweep_on: Sweep, client: MlflowClient, expected: dict[str, Any]
) -> None:
    told = expected["sweeps"]["swept"]
    before = {trial: checkpoints_of(trial) for trial in told["trials"]}
    ended, result = sweep_on("swept")
    assert (result["best"], result["trials"]) == (told["best"], 2)
    assert result["mlflow_run_id"] == told["mlflow_run_id"]
    assert result["metrics"]["eval/knn_top1"] == told["objective"]
    assert 0.3 < result["metrics"]["eval/test_knn_top1"] <= 1  # of the backbone now
    assert "eval/knn_top1" in ended.stdout
    assert {trial: checkpoints_of(trial) for trial in told["trials"]} == before
    assert client.get_run(told["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_goes_on(
    sweep_on: Sweep, client: MlflowClient, expected: dict[str, Any]
) -> None:
    """Its searcher and the groups of its seeds are in Tune's own files."""
    told = expected["sweeps"]["cut"]
    whole = [trial for trial, state in told["trials"].items() if state["state"] == "finished"]
    (half,) = told["trials"].keys() - set(whole)
    before = {trial: checkpoints_of(trial) for trial in whole}
    figures = history_of(half)
    _, result = sweep_on("cut")
    assert result["state"] == "finished"
    states = trials_of("cut")
    assert len(states) == 4
    assert {state["state"] for state in states.values()} == {"finished"}
    assert {trial: checkpoints_of(trial) for trial in whole} == before
    for trial in whole:
        assert states[trial]["trial"]["objective"] == told["trials"][trial]["objective"]
    assert history_of(half)[: len(figures)] == figures
    assert [entry["epoch"] for entry in history_of(half)] == list(range(6))
    for trial, state in told["trials"].items():
        assert states[trial]["mlflow_run_id"] == state["mlflow_run_id"]
    assert client.get_run(told["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.slow
def test_a_population_that_was_interrupted_goes_on(
    sweep_on: Sweep, client: MlflowClient, expected: dict[str, Any]
) -> None:
    """Its members had 4 and 3 epochs, later than the first comparison, from which Tune counts again."""
    before = expected["sweeps"]["population"]
    _, result = sweep_on("population")
    assert result["state"] == "finished"
    states = trials_of("population")
    assert set(states) == set(before["trials"])
    assert {(state["state"], state["epochs"]) for state in states.values()} == {("finished", 6)}
    for trial in states:
        assert [entry["epoch"] for entry in history_of(trial)] == list(range(6))
        assert states[trial]["mlflow_run_id"] == before["trials"][trial]["mlflow_run_id"]
    assert client.get_run(before["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("sweep", "part"), [("swept", "search_alg"), ("cut", "search_alg"), ("population", "scheduler")]
)
@pytest.mark.usefixtures("same_versions")
def test_what_tune_has_pickled_of_ours_is_found_by_its_name_of_then(
    sweep: str, part: str, home: Path
) -> None:
    """Points of a list, Optuna with groups of seeds, a population."""
    from ray import tune

    from pcl_ray.sweep import earlier_pickles
    from pcl_ray.sweep.space import search
    from pcl_ray.sweep.trials.trainable import TrialProcess

    experiment = home / "sweeps" / sweep / "tune" / "experiment"
    with earlier_pickles.readable():
        tuner = tune.Tuner.restore(str(experiment), trainable=TrialProcess)
    found = getattr(cast(Any, tuner)._local_tuner._tune_config, part)
    assert type(found).__module__ == search.__name__


def test_best_recipe_of_a_sweep_is_trained_by_its_file(home: Path) -> None:
    words = ["train.epochs=2", "tracking.enabled=false", "--name", "best"]
    assert cli.main(["train", str(home / "sweeps/swept/best.yaml"), *words]) == 0
    assert read_state_at(home / "runs/best")["state"] == "finished"
