"""Runs under way as `pcl-ray status` shows them, from folders that real runs leave."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pcl_ray import config as configs
from pcl_ray.cluster import status
from pcl_ray.errors import ConfigError
from pcl_ray.plan import make
from pcl_ray.runs import event_router
from pcl_ray.runs.folder import RunFolder, SweepFolder, read_state_at
from pcl_ray.support import machine
from pcl_ray.training.events import Event

CONFIG = configs.load("digits", ["tracking.enabled=false"])


def shown(*rows: status.StatusRow) -> list[list[str]]:
    """The cells of the table's lines, its heading first."""
    from rich.console import Console

    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    status.table(rows, console.print)
    lines = console.export_text().splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in (lines[0], *lines[2:]) if line.strip()]


def test_a_run_under_way_is_shown_with_what_is_left() -> None:
    plan = make(CONFIG, 1438, 359)
    event = Event("epoch", 9, 200, {"perf/epoch_seconds": 12.0, "eval/knn_top1": 0.91, "train/loss": 3.0})
    with RunFolder.create("mine", CONFIG) as folder:
        folder.write_state(
            state="running",
            began_at=time.time(),
            progress=event_router.progress(event, plan),
            submission_id="job-1",
        )
        (row,) = status.local_runs()
    assert (row.epoch, row.epochs, row.value) == (10, plan.epochs, 0.91)
    assert row.left_s == pytest.approx(12.0 * (plan.epochs - 10), abs=5)
    folder.write_state(phase="training")
    assert shown(replace(row, phase="training", left_s=480.0)) == [
        ["run", "state", "epoch", "left", "figure", "job"],
        ["mine", "running", f"10/{plan.epochs}", "8 min", "kNN 0.91", "job-1"],
    ]


def test_a_run_that_waits_says_for_what() -> None:
    with RunFolder.create("late", CONFIG) as folder:
        folder.write_state(state="running", waits_for="waiting for 2 GPUs", waits_since=time.time() - 200)
        (row,) = status.local_runs()
    assert shown(row)[1] == ["late", "waiting", "waiting for 2 GPUs (for 3 min)"]
    assert row.waits_for == "waiting for 2 GPUs (for 3 min)"


def test_a_run_whose_process_is_gone_is_marked_as_stopped() -> None:
    with RunFolder.create("gone", CONFIG) as folder:
        folder.write_state(state="running", machine=machine.identity())
    (row,) = status.local_runs()
    assert (row.state, row.waits_for) == ("stopped", "its process was killed")
    state = read_state_at(RunFolder.path_of("gone"))
    assert (state["state"], state["error"]) == ("stopped", "its process was killed")
    assert status.local_runs() == []


def test_a_sweep_whose_processes_were_killed_is_marked_with_its_trials() -> None:
    with SweepFolder.create("many", CONFIG) as sweep, RunFolder.create("many.1a2b", CONFIG) as trial:
        sweep.write_state(progress={"trials": 8, "ended": 3, "figure": "eval/knn_top1", "value": 0.8})
        trial.write_state(sweep="many", phase="training", progress={"epoch": 2, "epochs": 9, "left_s": 50.0})
        alive = status.local_runs()
    assert [(row.name, row.kind, row.state) for row in alive] == [
        ("many", "sweep", "running"),
        ("many.1a2b", "trial", "running"),
    ]
    assert shown(*alive) == [
        ["run", "state", "epoch", "left", "figure"],
        ["many", "starting", "3/8 trials", "–", "best kNN 0.8"],
        ["many.1a2b", "running", "2/9", "50 s", "–"],
    ]
    gone = status.local_runs()
    assert {(row.state, row.waits_for, row.left_s) for row in gone} == {
        ("stopped", "its process was killed", None)
    }
    for path in (SweepFolder.path_of("many"), RunFolder.path_of("many.1a2b")):
        assert read_state_at(path)["state"] == "stopped"
    assert status.local_runs() == []


def test_a_run_that_records_what_it_leaves_says_so_and_is_no_more_under_way_without_its_process() -> None:
    with RunFolder.create("done", CONFIG) as folder:
        folder.write_state(
            state="finished", phase="recording", progress={"epoch": 30, "epochs": 30, "left_s": 0.0}
        )
        (row,) = status.local_runs()
    assert shown(row)[1] == ["done", "recording", "30/30"]
    assert status.local_runs() == []
    assert read_state_at(RunFolder.path_of("done"))["state"] == "finished"


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": 3},
        {"progress": {"epoch": "x", "left_s": "y"}},
        {"waits_for": 7},
        {"waits_since": "z", "waits_for": "w"},
    ],
)
def test_a_damaged_state_does_not_hide_the_other_runs(changes: dict[str, Any]) -> None:
    with RunFolder.create("odd", CONFIG) as odd, RunFolder.create("sound", CONFIG) as sound:
        for folder in (odd, sound):
            folder.write_state(state="running", machine=machine.identity())
        odd.write_state(**changes)
        rows = status.local_runs()
    assert [(row.name, row.state) for row in rows] == [("odd", "running"), ("sound", "running")]
    status.table(rows, print)


def test_names_of_others_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(width=160, color_system=None)
    status.table(
        [status.StatusRow("lr [red] [/b]", "running", "1/2", "–", "–", waits_for="for [/x]")], console.print
    )
    assert "lr [red] [/b]" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["another machine", "", None])
def test_a_run_of_another_machine_is_not_judged_by_its_lock(where: str | None) -> None:
    """Storage that all nodes share need not share its locks."""
    with RunFolder.create("elsewhere", CONFIG) as folder:
        folder.write_state(state="running", machine=where)
    (row,) = status.local_runs()
    assert row.state == "running"
    assert read_state_at(RunFolder.path_of("elsewhere"))["state"] == "running"


def test_a_run_that_has_ended_is_not_under_way() -> None:
    with RunFolder.create("done", CONFIG) as folder:
        folder.write_state(state="finished")
    assert status.local_runs() == []


def test_mlflow_is_told_of_a_run_that_was_killed(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("pcl_ray", artifact_location=(tmp_path / "artifacts").as_uri())
    tags = {"pcl_ray.run_name": "gone", "ray.submission_id": "job-7", "mlflow.user": "ada"}
    run = client.create_run(experiment, run_name="gone", tags=tags).info.run_id
    client.log_param(run, "train.epochs", 20)
    client.log_param(run, "resources.workers", 2)
    client.log_metric(run, "epoch", 4, step=50)
    client.log_metric(run, "perf/device_minutes", 10.0, step=50)
    client.log_metric(run, "eval/knn_top1", 0.5, step=50)
    (recorded,) = status.run_list.recorded(status.uri(), "pcl_ray")
    assert (recorded.state, recorded.epoch, recorded.epochs, recorded.submission_id, recorded.user) == (
        "running",
        5,
        20,
        "job-7",
        "ada",
    )
    assert recorded.left_s == pytest.approx(10 * 60 / 2 / 5 * 15)
    strange = client.create_run(
        experiment, run_name="strange", tags={"pcl_ray.run_name": "strange [/b]"}
    ).info.run_id
    client.log_param(strange, "train.epochs", "²")
    for name in ("epoch", "perf/device_minutes", "eval/knn_top1"):
        client.log_metric(strange, name, float("nan"), step=1)
    assert status.run_list.recorded(status.uri(), "pcl_ray")[0].name == "strange [/b]"
    client.delete_run(strange)
    rows, trouble = status.under_way("pcl_ray")
    assert [row.name for row in rows] == ["gone"]  # of another machine: it is not ours to judge
    assert trouble == ""
    with RunFolder.create("gone", CONFIG) as folder:
        folder.write_state(state="running", mlflow_run_id=run, machine=machine.identity())
    status.local_runs()
    assert client.get_run(run).info.status == "KILLED"
    assert [run.name for run in status.run_list.recorded(status.uri(), "pcl_ray", state="stopped")] == [
        "gone"
    ]
    assert status.run_list.recorded(status.uri(), "pcl_ray", state="running") == []
    client.set_terminated(run, "RUNNING")  # its number was not known here when it was killed
    with RunFolder.open("gone") as folder:
        folder.write_state(mlflow_run_id=None)
        assert [row.name for row in status.close_ended("pcl_ray")] == ["gone"]  # somebody holds it
    assert status.close_ended("pcl_ray") == []
    assert client.get_run(run).info.status == "KILLED"
    with pytest.raises(ConfigError, match="--state 'lost': one of failed, finished, running, stopped"):
        status.run_list.recorded(status.uri(), "pcl_ray", state="lost")
