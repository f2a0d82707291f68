"""What a run leaves, as its readers find it: report, figures, note, record, and commands that show them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import free_port
from small import DIGITS_RUN

from pcl_ray import cli, tracking
from pcl_ray.runs import driver, record_reader, request
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import FIGURES_FILE
from pcl_ray.support.paths import home
from pcl_ray.tracking import server as tracking_server
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import PHASES, SystemLog, SystemWatch, node_figures

WITH_MLFLOW = [word for word in DIGITS_RUN if word != "tracking.enabled=false"]


@pytest.fixture(scope="module")
def home_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with one run, recorded in an sqlite store."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PCL_RAY_HOME", str(folder))
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        checked = request.check(
            "digits",
            [
                *WITH_MLFLOW,
                "resources.workers=0",
                "tracking.pictures=3",
                "tracking.system_metrics_s=0.2",
                "tracking.register_as=enc",
            ],
        )
        driver.start(
            checked, name="one", command="pcl-ray train digits --name one", display=Display(io.StringIO())
        )
    return folder


@pytest.fixture
def run_home(home_with_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PCL_RAY_HOME", str(home_with_run))
    return home_with_run


@pytest.fixture
def recorded(run_home: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_home}/mlflow/mlflow.db")
    return client, client.get_run(json.loads((run_home / "runs/one/state.json").read_text())["mlflow_run_id"])


def test_a_record_has_everything_that_reports_need(run_home: Path) -> None:
    record = record_reader.read("one")
    assert (record.state, record.epochs, record.num_images, record.num_clusters) == (
        "finished",
        4,
        300,
        (6, 12),
    )
    assert record.command == "pcl-ray train digits --name one"
    assert record.class_names == tuple(map(str, range(10)))
    assert record.snapshot is not None
    assert record.thumbnails is not None
    assert record.snapshot.epoch == 4
    assert "version.torch" in record.versions
    assert record_reader.read(str(run_home / "runs" / "one")).name == "one"


def test_all_figures_of_all_epochs_are_in_the_table(run_home: Path) -> None:
    rows = list(csv.DictReader((run_home / "runs/one" / FIGURES_FILE).open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    history = record_reader.read("one").history
    assert float(rows[3]["cluster/1/phi_raw_p50"]) == history[3]["metrics"]["cluster/1/phi_raw_p50"]
    assert rows[0]["train/loss_prototype"] == ""  # the warm-up


def test_the_dashboard_has_about_25_figures_and_counts_clusterings_by_index(recorded: Any) -> None:
    _, run = recorded
    names = {name for name in run.data.metrics if not name.startswith("system/")}
    assert {
        "train/gradient_norm",
        "train/feature_std",
        "cluster/0/collisions",
        "cluster/1/phi_p90",
        "perf/device_minutes",
        "epoch",
    } <= names
    assert not {"cluster/0/purity", "perf/step_seconds_p95"} & names
    assert len({name.replace("/1/", "/0/").replace("prototype_1", "prototype_0") for name in names}) <= 35


def test_params_are_numbers_where_they_can_be(recorded: Any) -> None:
    params = recorded[1].data.params
    assert (
        params["plan.num_clusters_0"],
        params["plan.num_clusters_1"],
        params["plan.num_clusters_total"],
    ) == ("6", "12", "18")
    assert float(params["loss.temperature"]) == 0.2
    assert params["plan.num_images"] == "300"


def test_the_data_set_is_an_input(recorded: Any) -> None:
    [entry] = recorded[1].inputs.dataset_inputs
    assert entry.dataset.name == "digits"
    assert entry.dataset.digest == record_reader.read("one").fingerprint[:36]
    assert json.loads(entry.dataset.profile)["num_images"] == 300


def test_the_note_tells_command_recipe_data_and_result(recorded: Any) -> None:
    note = recorded[1].data.tags[tracking.NOTE]
    for part in (
        "**one**: finished",
        "`pcl-ray train digits --name one`",
        "300 images",
        "K = 6, 12",
        "| kNN accuracy",
    ):
        assert part in note


def test_pictures_are_on_the_slider_from_step_0_to_the_last(recorded: Any, run_home: Path) -> None:
    client, run = recorded
    files = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    for key in ("prototypes~0", "prototypes~1", "clusters~phi", "clusters~sizes", "map", "views"):
        steps = {
            int(path.split("+step+")[1].split("+")[0])
            for path in files
            if path.startswith(f"images/{key}+") and path.endswith(".png")
        }
        assert {0, 15} <= steps, key
    assert list((run_home / "runs/one/pictures").iterdir()) == []  # the server has them


def test_the_model_is_registered_with_its_aliases(recorded: Any) -> None:
    client, run = recorded
    assert str(client.get_model_version_by_alias("enc", "best").version) == "1"
    # MLflow itself reads @latest as the newest
    assert [str(version.version) for version in client.search_model_versions("name = 'enc'")] == ["1"]
    assert len(run.outputs.model_outputs) == 2


def test_saved_views_and_artifacts_are_there(recorded: Any) -> None:
    client, run = recorded
    assert "mlflow.sharedViewState.pcl" in client.get_experiment(run.info.experiment_id).tags
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} >= {
        "report.html",
        "figures.csv",
        "config.yaml",
        "images",
    }


def test_system_figures_have_the_phase_beside_them(recorded: Any) -> None:
    metrics = recorded[1].data.metrics
    assert any(name.endswith("/cpu_utilization_percentage") for name in metrics)
    assert metrics["system/phase"] in PHASES.values()


def test_a_node_that_two_processes_watch_is_logged_once() -> None:
    logged: list[dict[str, float]] = []
    log = SystemLog(lambda figures, step: logged.append({**figures, "step": step}), began=100.0)
    log.handle(Event("phase", text="clustering"), 101)
    log.handle(Event("system", metrics={"system/a/cpu": 1.0}, text="a:1"), 110)
    log.handle(Event("system", metrics={"system/a/cpu": 9.0, "system/e_step/cpu": 5.0}, text="a:2"), 111)
    log.handle(Event("alive"), 112)
    log.handle(Event("system", metrics={"system/b/cpu": 2.0}, text="b:1"), 113)
    log.handle(Event("start"), 114)  # workers were replaced
    log.handle(Event("system", metrics={"system/a/cpu": 3.0}, text="a:7"), 115)
    assert logged.pop() == {"system/a/cpu": 3.0, "system/phase": 0.0, "step": 15}
    assert logged == [
        {"system/a/cpu": 1.0, "system/phase": 2.0, "step": 10},
        {"system/e_step/cpu": 5.0, "system/phase": 2.0, "step": 11},
        {"system/b/cpu": 2.0, "system/phase": 0.0, "step": 13},
    ]


def test_a_watch_ends_when_it_is_told_to() -> None:
    import threading

    seen: list[Event] = []
    came = threading.Event()

    def post(event: Event) -> None:
        seen.append(event)
        came.set()

    watch = SystemWatch(0.01, post, process="e_step")
    assert came.wait(60)
    watch.stop()
    assert {"system/e_step/memory_usage_megabytes"} <= set(seen[0].metrics)
    assert all(value >= 0 for value in node_figures("n").values())


@pytest.mark.parametrize("words", [["report", "one"], ["doctor", "one"]])
def test_commands_that_look_at_a_run(
    words: list[str], run_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip()
    assert (run_home / "runs/one/report.html").stat().st_size > 10_000


def test_compare_takes_two_runs_or_more(
    run_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_home / "runs/one", run_home / "runs/two", dirs_exist_ok=True)
    target = tmp_path / "both.html"
    assert cli.main(["compare", "one", "two", "--out", str(target)]) == 0
    assert "two" in target.read_text()
    assert cli.main(["compare", "one"]) == 2
    assert cli.main(["compare", "one", "one"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "onne"], "did you mean"),
        (["doctor", "none/of/these"], "there is no run"),
        (["compare", "one", "nobody"], "there is no run 'nobody'"),
        (["report", "one", "--out", "/no/such/folder/r.html"], "cannot be written"),
        (["ui", "--port", "99999999"], "a port is a number"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    words: list[str], message: str, run_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_without_tracking_has_its_report_too() -> None:
    driver.start(
        request.check("digits", [*DIGITS_RUN, "resources.workers=0"]),
        name="plain",
        display=Display(io.StringIO()),
    )
    folder = home() / "runs" / "plain"
    assert (folder / "report.html").is_file()
    assert record_reader.read("plain").snapshot is not None  # drawn at the end alone
    assert not list((folder / "pictures").glob("views*"))


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    store, artifacts = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts"
    words = [
        *WITH_MLFLOW,
        "resources.workers=0",
        "train.epochs=40",
        "tracking.flush_s=0.2",
        f"tracking.uri=http://127.0.0.1:{port}",
    ]
    command = [sys.executable, "-m", "pcl_ray.cli", "train", "digits", *words, "--name", "hit"]
    errors, environment = tmp_path / "stderr", {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = []
    with (
        tracking_server.serving(store, artifacts, host="127.0.0.1", port=port) as server,
        errors.open("w") as error,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=error, text=True, env=environment
        ) as training,
    ):
        assert training.stdout is not None
        for line in training.stdout:
            lines.append(line)
            if line.startswith("epoch 5/40 done"):
                server.end()
        assert training.wait(timeout=240) == 0
    assert any(line.startswith("epoch 40/40 done") for line in lines)
    assert any(line.startswith("dashboard ") and "workflowType=machine_learning" in line for line in lines)
    warnings = [line for line in errors.read_text().splitlines() if line.startswith("warning:")]
    assert 1 <= len(warnings) <= 2  # it does not answer; what is left waits on disk
    pending = home() / "runs" / "hit" / tracking.PENDING_FILE
    assert pending.exists()
    with tracking_server.serving(store, artifacts, host="127.0.0.1", port=port) as server:
        assert cli.main(["train", "--resume", "hit"]) == 0
        from mlflow import MlflowClient

        client = MlflowClient(server.address)
        run = client.get_run(json.loads((home() / "runs/hit/state.json").read_text())["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert sorted(
            {point.step for point in client.get_metric_history(run.info.run_id, "eval/knn_top1")}
        ) == [4 * epoch + 3 for epoch in range(40)]
        pictures = {
            entry.path.split("+step+")[1].split("+")[0]
            for entry in client.list_artifacts(run.info.run_id, "images")
            if "/prototypes~0+" in entry.path
        }
        assert {"0", "159"} <= pictures
        assert len(run.outputs.model_outputs) == 2
        assert {entry.path for entry in client.list_artifacts(run.info.run_id)} >= {
            "report.html",
            "figures.csv",
        }
    assert not pending.exists()


def test_a_note_that_somebody_edited_stays(run_home: Path, recorded: Any) -> None:
    client, run = recorded
    before = run.data.tags[tracking.NOTE]
    try:
        client.set_tag(run.info.run_id, tracking.NOTE, "my own words")
        driver.resume("one", ["train.epochs=5", "tracking.model=false"], display=Display(io.StringIO()))
        assert client.get_run(run.info.run_id).data.tags[tracking.NOTE] == "my own words"
    finally:
        client.set_tag(run.info.run_id, tracking.NOTE, before)
