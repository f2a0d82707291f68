"""What reaches MLflow, what happens when it does not answer, and that neither ever disturbs the caller."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import free_port

from pcl_ray import tracking
from pcl_ray.config import RunConfig, TrackingConfig
from pcl_ray.tracking import MlflowRun, NullRun, RunDescription, open_run, server, tracking_uri

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before any test imports mlflow

HANG = 60  # seconds; a guard against hanging, nothing is timed


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    folder = tmp_path / "a home"  # with a space, as on some machines
    (folder / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow" / "mlflow.db")
    return folder


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store of the machine that runs the tests, and one try an attempt instead of MLflow's waiting."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def described(**changes: Any) -> RunDescription:
    details: dict[str, Any] = {
        "name": "first",
        "params": {"loss.temperature": 0.2},
        "tags": {},
        "config_yaml": "seed: 0\n",
    }
    return RunDescription(**details | changes)


class Opener:
    """Opens runs of one home and run folder, and keeps the warnings."""

    def __init__(self, home: Path):
        self.home = home
        self.run_dir = home / "runs" / "first"
        self.warnings: list[str] = []

    def __call__(self, uri: str | None = None, flush_s: float = 0.1, **changes: Any) -> MlflowRun:
        run = open_run(
            TrackingConfig(uri=uri, flush_s=flush_s),
            described(**changes),
            home=self.home,
            run_dir=self.run_dir,
            warn=self.warnings.append,
        )
        assert isinstance(run, MlflowRun)
        return run

    @property
    def pending(self) -> Path:
        return self.run_dir / "mlflow_pending.jsonl"


@pytest.fixture
def opener(home: Path) -> Opener:
    return Opener(home)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def default_client(home: Path) -> Any:
    return client(tracking_uri(TrackingConfig(), home))


def steps(store: Any, run_id: str | None, key: str) -> list[int]:
    return [metric.step for metric in store.get_metric_history(run_id, key)]


def wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.05)


# --- what is recorded


def test_everything_arrives(opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = RunConfig()
    run = opener(params=config.flatten(), tags={"version.torch": "2.14.1"}, config_yaml=config.to_yaml())
    before = int(time.time() * 1000)
    run.log({"train/loss": 2.0, "train/accuracy": 0.5}, step=0)
    run.log({"train/loss": 1.0}, step=50)
    run.log_text("# notes", "notes/first.md")
    after = int(time.time() * 1000)
    run.finish("finished", timeout_s=HANG)

    store = default_client(opener.home)
    found = store.get_run(run.run_id)
    assert opener.warnings == []
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params["loss.temperature"] == "0.2"
    assert found.data.params["e_step.num_clusters"] == "25000,50000,100000"
    assert found.data.params["loss.mask_duplicates"] == "true"
    assert found.data.params["data.path"] == "null"
    assert set(found.data.params) == set(config.flatten())
    assert found.data.tags["version.torch"] == "2.14.1"
    assert found.data.tags[tracking.RUN_TAG] == "first"
    history = store.get_metric_history(run.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (50, 1.0)]
    assert all(before <= metric.timestamp <= after for metric in history)
    artifacts = opener.home / "mlflow" / "artifacts"
    assert [path.read_text() for path in artifacts.glob("*/artifacts/config.yaml")] == [config.to_yaml()]
    assert [path.read_text() for path in artifacts.glob("*/artifacts/notes/first.md")] == ["# notes"]
    assert list(elsewhere.iterdir()) == []
    assert run.link() is None


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("stopped", "KILLED")])
def test_status(opener: Opener, status: Any, shown: str) -> None:
    run = opener()
    run.finish(status, timeout_s=HANG)
    run.finish("finished", timeout_s=HANG)
    run.log({"late": 1.0}, 0)
    assert default_client(opener.home).get_run(run.run_id).info.status == shown


@pytest.mark.parametrize("by_id", [True, False])
def test_resume_goes_on_in_the_same_run_without_doubled_points(opener: Opener, by_id: bool) -> None:
    first = opener()
    for step in (10, 20, 30):
        first.log({"train/loss": float(step)}, step)
    first.log({"eval/knn": 0.5}, 20)
    first.finish("failed", timeout_s=HANG)
    second = opener(run_id=first.run_id if by_id else None)
    wait_until(lambda: second.run_id)
    store = default_client(opener.home)
    assert store.get_run(second.run_id).info.status == "RUNNING"
    for step in (20, 30, 40):
        second.log({"train/loss": -1.0, "eval/knn": 0.6, "new": 1.0}, step)
    second.finish("finished", timeout_s=HANG)

    assert second.run_id == first.run_id
    assert [(m.step, m.value) for m in store.get_metric_history(second.run_id, "train/loss")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 30.0),
        (40, -1.0),
    ]
    assert steps(store, second.run_id, "eval/knn") == [20, 30, 40]
    assert steps(store, second.run_id, "new") == [20, 30, 40]
    assert store.get_run(second.run_id).info.status == "FINISHED"
    assert opener.warnings == []


def test_steps_repeated_within_one_session_are_recorded_once(opener: Opener) -> None:
    run = opener()
    for step in (1, 2, 3, 2, 3, 4):  # lost workers were replaced, and the epoch repeated
        run.log({"train/loss": 1.0}, step)
    run.finish("finished", timeout_s=HANG)
    assert steps(default_client(opener.home), run.run_id, "train/loss") == [1, 2, 3, 4]


def test_an_unknown_run_id_and_another_name_make_new_runs(opener: Opener) -> None:
    first = opener()
    first.finish("finished", timeout_s=HANG)
    other = opener(name="it's another", run_id="0" * 32)
    other.finish("finished", timeout_s=HANG)
    again = opener(name="it's another")
    again.finish("finished", timeout_s=HANG)
    assert other.run_id not in (None, first.run_id)
    assert again.run_id == other.run_id


def test_changed_params_become_tags_and_new_ones_are_added(opener: Opener) -> None:
    opener(params={"loss.temperature": 0.2, "seed": 0}).finish("finished", timeout_s=HANG)
    second = opener(params={"loss.temperature": 0.1, "seed": 0, "added": "x"}, config_yaml="seed: 1\n")
    second.finish("finished", timeout_s=HANG)
    store = default_client(opener.home)
    data = store.get_run(second.run_id).data
    assert data.params == {"loss.temperature": "0.2", "seed": "0", "added": "x"}
    assert {name: value for name, value in data.tags.items() if name.startswith("changed.")} == {
        "changed.loss.temperature": "0.1"
    }
    assert [path.read_text() for path in opener.home.glob("mlflow/artifacts/*/artifacts/config.yaml")] == [
        "seed: 1\n"
    ]
    opener(params={"loss.temperature": 0.2}).finish("finished", timeout_s=HANG)
    assert store.get_run(second.run_id).data.tags["changed.loss.temperature"] == "0.2"


def test_more_than_the_server_takes_in_one_request(opener: Opener) -> None:
    run = opener(
        params={f"p{i}": "x" * 7000 if i == 0 else i for i in range(230)},
        tags={f"t{i}": str(i) for i in range(230)},
        flush_s=60,
    )
    for step in range(1200):
        run.log({"a": 0.0, "b": 1.0}, step)
    run.finish("finished", timeout_s=HANG)
    store = default_client(opener.home)
    data = store.get_run(run.run_id).data
    assert len(data.params) == 230
    assert len(data.params["p0"]) == 6000
    assert sum(name.startswith("t") for name in data.tags) == 230
    assert steps(store, run.run_id, "a") == list(range(1200)) == steps(store, run.run_id, "b")


def test_values_that_are_not_finite_are_dropped_and_the_first_is_named(opener: Opener) -> None:
    run = opener()
    run.log({"train/loss": 1.0, "other": 1.0}, 1)
    run.log({"train/loss": float("nan"), "other": float("inf")}, 2)
    run.log({"other": float("nan")}, 3)
    run.finish("failed", timeout_s=HANG)
    store = default_client(opener.home)
    assert steps(store, run.run_id, "train/loss") == [1]
    assert steps(store, run.run_id, "other") == [1]
    assert store.get_run(run.run_id).data.tags["diverged"] == "train/loss@2"


def test_odd_names_and_values_cost_only_themselves(opener: Opener) -> None:
    run = opener()
    for step in (1, 2):
        run.log({"inertia@64": 1.0, "../up//x": 2.0, "none": None, "good": 3.0}, step)  # type: ignore[dict-item]
    run.finish("finished", timeout_s=HANG)
    assert default_client(opener.home).get_run(run.run_id).data.metrics == {
        "inertia_64": 1.0,
        "up/x": 2.0,
        "good": 3.0,
    }
    assert len(opener.warnings) == 1
    assert "'none'" in opener.warnings[0]


def test_a_deleted_experiment_is_restored_with_a_warning(opener: Opener) -> None:
    first = opener()
    first.finish("finished", timeout_s=HANG)
    store = default_client(opener.home)
    store.delete_experiment(store.get_run(first.run_id).info.experiment_id)
    second = opener()
    second.finish("finished", timeout_s=HANG)
    assert store.get_experiment_by_name("pcl_ray").lifecycle_stage == "active"
    assert len(opener.warnings) == 1
    assert "restored" in opener.warnings[0]
    assert second.run_id == first.run_id
    assert store.get_run(second.run_id).info.status == "FINISHED"


def test_off_means_nothing_happens(tmp_path: Path) -> None:
    config = TrackingConfig(enabled=False)
    run = open_run(config, described(), home=tmp_path / "h", run_dir=tmp_path / "r", warn=pytest.fail)
    run.log({"a": 1.0}, 0)
    run.log_text("x", "y")
    run.finish("finished")
    assert isinstance(run, NullRun)
    assert run.run_id is None
    assert run.link() is None
    assert list(tmp_path.iterdir()) == []


_ONE_PROCESS = """
import sys, pathlib
from pcl_ray.config import TrackingConfig
from pcl_ray.tracking import RunDescription, open_run
home, name = pathlib.Path(sys.argv[1]), sys.argv[2]
described = RunDescription(name, params={"a": 1}, tags={}, config_yaml="")
run = open_run(TrackingConfig(), described, home=home, run_dir=home / name, warn=lambda m: print(m))
run.log({"x": 1.0}, 1)
run.finish("finished", timeout_s=60)
print("run", run.run_id)
"""


def test_processes_that_open_a_new_store_at_once_all_succeed_and_print_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    command = [sys.executable, "-c", _ONE_PROCESS, str(tmp_path / "new")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen([*command, name], **pipes, text=True, cwd=tmp_path, env=environment)
        for name in "abc"
    ]
    answers = [process.communicate(timeout=HANG) for process in started]
    assert all(out.startswith("run ") and "None" not in out and error == "" for out, error in answers), (
        answers
    )
    assert len({out for out, _ in answers}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


_KILLED_WHILE_IT_MAKES_TABLES = """
import os
from mlflow.store.db import utils
utils._upgrade_db = lambda engine: os._exit(9)  # its tables are there, what says so is not
"""


def test_a_store_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    command = [sys.executable, "-c", _KILLED_WHILE_IT_MAKES_TABLES + _ONE_PROCESS, str(tmp_path / "new"), "a"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    assert subprocess.run(command, **options, timeout=HANG, check=False).returncode == 9
    assert list(tmp_path.glob("new/**/*.db.new"))  # something was left, and is in nobody's way
    command[2] = _ONE_PROCESS
    done = subprocess.run(command, **options, timeout=HANG, check=False)
    assert done.stdout.startswith("run "), done.stderr
    assert "None" not in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.glob("new/**/*.db.new"))


# --- when the server does not answer


def test_a_server_that_is_down_costs_nothing_and_is_made_up_for_later(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", uri.replace("//", "//me:secret@"))
        run = opener()
    run.log({"train/loss": 1.0}, 1)
    wait_until(lambda: opener.warnings)
    run.log({"train/loss": 2.0}, 2)
    run.log_text("text", "a.txt")
    run.finish("stopped", timeout_s=HANG)
    assert run.run_id is None
    assert run.link() is None
    assert uri in opener.warnings[0]
    assert "nothing is lost" in opener.warnings[0]
    assert "refused" in opener.warnings[0]
    assert "secret" not in " ".join(opener.warnings)
    assert len(opener.warnings) == 2
    assert str(opener.pending) in opener.warnings[1]
    assert [json.loads(line).get("step") for line in opener.pending.read_text().splitlines()][:2] == [1, 2]

    with opener.pending.open("a") as file:
        file.write('{"key": "train/loss", "val')  # as a crash would leave it
    still_down = opener(uri)
    still_down.log({"train/loss": 3.0}, 3)
    still_down.log({"train/loss": -2.0}, 2)  # repeated after a restart
    still_down.finish("stopped", timeout_s=HANG)

    opener.warnings.clear()
    there = opener()
    there.log({"train/loss": -3.0}, 3)
    there.log({"train/loss": 4.0}, 4)
    there.finish("finished", timeout_s=HANG)
    history = default_client(opener.home).get_metric_history(there.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert [path.read_text() for path in opener.home.glob("mlflow/artifacts/*/artifacts/a.txt")] == ["text"]
    assert not opener.pending.exists()
    assert opener.warnings == []


def test_an_outage_in_the_middle_is_told_once_and_its_end_too(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcl_ray.tracking import outbox

    def rename_table(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(opener.home / "mlflow" / "mlflow.db")) as database:
            database.execute(f"alter table {old} rename to {new}")

    monkeypatch.setattr(outbox, "BUFFER_POINTS", 5)
    run = opener()
    run.log({"x": 0.0}, 0)
    store = default_client(opener.home)
    wait_until(lambda: run.run_id and steps(store, run.run_id, "x"))
    rename_table("metrics", "metrics_away")
    for step in range(1, 21):
        run.log({"x": float(step)}, step)
    wait_until(opener.pending.exists)  # more than fits the buffer
    for step in range(21, 24):
        run.log({"x": float(step)}, step)
    rename_table("metrics_away", "metrics")
    wait_until(lambda: len(opener.warnings) == 2)
    run.finish("finished", timeout_s=HANG)
    assert steps(default_client(opener.home), run.run_id, "x") == list(range(24))
    assert "nothing is lost" in opener.warnings[0]
    assert "answers again" in opener.warnings[1]
    assert len(opener.warnings) == 2
    assert not opener.pending.exists()


def test_a_broken_database_is_one_warning_and_no_traceback(
    opener: Opener, capfd: pytest.CaptureFixture[str]
) -> None:
    run = opener()
    wait_until(lambda: run.run_id)
    with contextlib.closing(sqlite3.connect(opener.home / "mlflow" / "mlflow.db")) as database:
        database.execute("drop table metrics")
    run.log({"x": 1.0}, 1)
    run.finish("finished", timeout_s=HANG)
    assert "no such table: metrics" in opener.warnings[0]
    assert opener.pending.exists()
    assert capfd.readouterr() == ("", "")


def test_a_black_hole_blocks_neither_log_nor_finish(opener: Opener) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(16)  # connections are made, and nobody ever reads them
        start = time.monotonic()
        run = opener(f"http://127.0.0.1:{hole.getsockname()[1]}")
        for step in range(1000):
            run.log({"x": 1.0}, step)
        logged = time.monotonic() - start
        run.finish("finished", timeout_s=4)
        assert logged < 30
        assert time.monotonic() - start < logged + 20
    assert len(opener.pending.read_text().splitlines()) >= 1000
    assert "Nothing is lost" in opener.warnings[-1]


def test_a_disk_that_refuses_is_a_warning(opener: Opener) -> None:
    opener.run_dir.parent.mkdir(parents=True)
    opener.run_dir.write_text("a file where the folder should be")
    run = opener(f"http://127.0.0.1:{free_port()}")
    run.log({"x": 1.0}, 1)
    run.finish("failed", timeout_s=HANG)
    assert any("cannot be kept" in message for message in opener.warnings)


def test_a_warning_that_cannot_be_shown_disturbs_nobody(opener: Opener) -> None:
    def broken(message: str) -> None:
        raise OSError("terminal is gone")

    config = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}", flush_s=0.1)
    run = open_run(config, described(), home=opener.home, run_dir=opener.run_dir, warn=broken)
    run.log({"x": object()}, 1)  # type: ignore[dict-item]
    run.finish("failed", timeout_s=HANG)
    assert opener.pending.exists()


# --- a real server


@contextlib.contextmanager
def mlflow_server(folder: Path, store: Path) -> Iterator[str]:
    folder.mkdir()
    shutil.copy(store, folder / "server.db")
    uri = f"sqlite:///{folder}/server.db"
    with server.serving(uri, folder / "artifacts", host="127.0.0.1", port=free_port()) as started:
        yield started.address


@pytest.mark.slow
def test_a_real_server(
    opener: Opener, tmp_path: Path, empty_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    down = opener(f"http://127.0.0.1:{free_port()}")
    down.log({"train/loss": 1.0}, 1)
    down.finish("failed", timeout_s=HANG)
    opener.warnings.clear()
    with mlflow_server(tmp_path / "server", empty_store) as uri:
        run = opener(uri, params={"loss.temperature": 0.2})
        run.log({"train/loss": 2.0}, 2)
        run.finish("stopped", timeout_s=HANG)
        again = opener(uri, params={"loss.temperature": 0.1}, run_id=run.run_id)
        again.log({"train/loss": 2.5}, 2)
        again.log({"train/loss": 3.0}, 3)
        again.finish("finished", timeout_s=HANG)
        store = client(uri)
        found = store.get_run(run.run_id)
        assert again.run_id == run.run_id
        assert opener.warnings == []
        assert steps(store, run.run_id, "train/loss") == [1, 2, 3]
        assert found.info.status == "FINISHED"
        assert found.data.tags["changed.loss.temperature"] == "0.1"
        assert [file.path for file in store.list_artifacts(run.run_id)] == ["config.yaml"]
        page = f"{uri}/#/experiments/{found.info.experiment_id}/runs/{run.run_id}"
        assert run.link() == f"{page}?workflowType=machine_learning"
    assert list((tmp_path / "server" / "artifacts").rglob("config.yaml"))
    assert capfd.readouterr() == ("", "")


def test_a_task_that_the_server_refuses_costs_itself_alone(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run is closed all the same, and what waits behind the task is done."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
    from PIL import Image

    from pcl_ray.tracking import models

    def refused(*_: Any, **__: Any) -> None:
        raise MlflowException("no right to the registry", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(models, "log", refused)
    (tmp_path / "epoch_00001.pt").write_bytes(b"")
    run = opener()
    run.log_model(tmp_path / "epoch_00001.pt", RunConfig(), {"eval/rankme": 3.0}, 5)
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    run.log_image(picture, "map", 5)
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:20])
    run.log_image(tmp_path / "half.png", "map", 6)
    run.finish("finished", timeout_s=HANG)
    store = default_client(opener.home)
    assert store.get_run(run.run_id).info.status == "FINISHED"
    assert [
        entry.path.split("+step+")[1][0]
        for entry in store.list_artifacts(run.run_id, "images")
        if entry.path.endswith(".png")
    ] == ["5"]
    assert not picture.exists()
    assert not opener.pending.exists()
    assert any("does not take the model" in text for text in opener.warnings)


def test_a_picture_waits_on_disk_for_its_server(opener: Opener) -> None:
    from PIL import Image

    picture = opener.run_dir / "pictures" / "a.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(picture)
    first = opener("http://127.0.0.1:9")
    first.log_image(picture, "map", 5)
    first.finish("finished", timeout_s=HANG)
    assert picture.exists()
    second = opener()
    second.finish("finished", timeout_s=HANG)
    assert [
        entry.path.split("+")[0]
        for entry in default_client(opener.home).list_artifacts(second.run_id, "images")
    ][0] == "images/map"
    assert not picture.exists()
