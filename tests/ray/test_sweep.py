"""Sweeps through real Ray Tune, by the command a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from small import DIGITS_RUN

from pcl_ray.cluster import status
from pcl_ray.support.paths import home
from pcl_ray.tracking import run_list

LIMIT_S = 300  # a guard against hanging, not a measurement
SMALL = (
    *[word for word in DIGITS_RUN if not word.startswith(("tracking", "e_step.num_clusters"))],
    "train.epochs=6",
    "e_step.warmup_epochs=2",
    "sweep.with_recipe=false",
)
WITH_RECIPE = SMALL[:-1]

Sweep = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    return lambda *words: [
        sys.executable,
        "-m",
        "pcl_ray.cli",
        "sweep",
        *words,
        "--result",
        str(tmp_path / "result.json"),
    ]


@pytest.fixture
def sweep(tmp_path: Path, command: Callable[..., list[str]]) -> Sweep:
    return lambda *words: subprocess.run(
        command(*words), capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path
    )


def space(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def runs_of(sweep_name: str) -> dict[str, dict[str, Any]]:
    """state.json of every trial, by its title."""
    states = [json.loads(path.read_text()) for path in (home() / "runs").glob(f"{sweep_name}.*/state.json")]
    assert len({state["title"] for state in states}) == len(states)
    return {state["title"]: state for state in states}


def recorded(sweep_name: str) -> tuple[Any, dict[str, Any]]:
    """The parent run in MLflow and its children by name."""
    client = MlflowClient(f"sqlite:///{home()}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("pcl_ray")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`pcl_ray.run_name` = '{sweep_name}'")
    children = client.search_runs(
        [experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    for child in children:
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "train/loss")]
        assert len(steps) == len(set(steps))
    assert len({child.info.run_name for child in children}) == len(children)
    return parent, {child.info.run_name: child for child in children}


GRID = """
base: digits
space:
  loss.temperature: {type: choice, values: [0.1, 0.3]}
  e_step.alpha: {type: choice, values: [1, 10]}
  e_step.num_clusters: {type: choice, values: ["6,12", "20"]}
"""


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, sweep: Sweep, command: Callable[..., list[str]]
) -> None:
    whole = sweep(space(tmp_path, GRID), *WITH_RECIPE, "tracking.enabled=false", "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    expected = json.loads((tmp_path / "result.json").read_text())
    assert expected["trials"] == 9
    assert "(the recipe's own)" in whole.stdout
    assert "recipe      " in whole.stdout
    assert expected["metrics"]["sweep/trials_on_shared_warmup"] == 6  # of 9 trials, 3 temperatures
    assert 0 <= expected["metrics"]["eval/test_knn_top1"] <= 1

    process = subprocess.Popen(
        command(space(tmp_path, GRID), *WITH_RECIPE, "--name", "cut"),
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    deadline = time.monotonic() + LIMIT_S
    while sum(state.get("state") == "finished" for state in _states("cut")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    _wait_until_nothing_trains("cut")
    rows = {row.name: row for row in status.local_runs()}
    assert (rows["cut"].state, rows["cut"].trials) == ("stopped", 9)
    assert all(row.state == "stopped" and row.kind == "trial" for row in rows.values() if row.name != "cut")
    status.close_ended("pcl_ray")
    assert {run.state for run in run_list.recorded(status.uri(), "pcl_ray", trials=True)} <= {
        "finished",
        "stopped",
    }
    finished = {
        title: _checkpoints(state) for title, state in runs_of("cut").items() if state["state"] == "finished"
    }
    resumed = sweep("--resume", "cut")
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    for name in ("objective", "trials"):
        assert result[name] == expected[name]
    # not the point itself: of two with the same accuracy, the one that took less time is the best
    assert result["metrics"][result["objective"]] == expected["metrics"][result["objective"]]
    for title, state in runs_of("cut").items():
        assert state["state"] == "finished"
        assert state["trial"]["objective"] == runs_of("whole")[title]["trial"]["objective"]
        # nothing that was finished has been trained again
        assert finished.get(title, _checkpoints(state)) == _checkpoints(state)
    parent, children = recorded("cut")
    assert parent.info.status == "FINISHED"
    assert {child.info.status for child in children.values()} == {"FINISHED"}
    assert children.keys() == runs_of("whole").keys()
    artifacts = {
        artifact.path
        for artifact in MlflowClient(f"sqlite:///{home()}/mlflow/mlflow.db").list_artifacts(
            parent.info.run_id
        )
    }
    assert {"best.yaml", "leaderboard.csv", "leaderboard.md", "figures"} <= artifacts
    again = sweep("--resume", "cut")
    assert again.returncode == 0, again.stderr
    assert {
        title: _checkpoints(state) for title, state in runs_of("cut").items() if title in finished
    } == finished


def _states(sweep_name: str) -> list[dict[str, Any]]:
    found = []
    for path in (home() / "runs").glob(f"{sweep_name}.*/state.json"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):  # being written
            continue
    return found


def _checkpoints(state: dict[str, Any]) -> list[tuple[str, int]]:
    (path,) = [
        path.parent
        for path in (home() / "runs").glob("*/state.json")
        if path.parent.name.startswith("cut.") and state["title"] in path.read_text()
    ]
    return sorted((file.name, file.stat().st_mtime_ns) for file in (path / "checkpoints").glob("*.pt"))


def _wait_until_nothing_trains(sweep_name: str) -> None:
    """The trials' processes end a moment after the driver; until then they hold their folders."""
    import fcntl

    deadline = time.monotonic() + 60
    for lock in (home() / "runs").glob(f"{sweep_name}.*/lock"):
        while time.monotonic() < deadline:
            with lock.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.2)


@pytest.mark.slow
def test_weak_trials_are_stopped_after_the_warmup_and_two_e_steps(sweep: Sweep) -> None:
    done = sweep(
        "all_three",
        *SMALL,
        "train.epochs=12",
        "--samples",
        "6",
        "--scheduler",
        "asha",
        "--name",
        "pruned",
        "sweep.reduction_factor=2",
    )
    assert done.returncode == 0, done.stderr
    states = runs_of("pruned")
    stopped = {title: state for title, state in states.items() if state["state"] == "stopped early"}
    assert stopped
    # two epochs of warm-up and two E-steps
    assert all(4 <= state["epochs"] < 12 for state in stopped.values())
    assert all(state["epochs"] == 12 for title, state in states.items() if title not in stopped)
    parent, children = recorded("pruned")
    assert parent.info.status == "FINISHED"
    assert {title for title, child in children.items() if child.info.status == "KILLED"} == stopped.keys()
    assert all(children[title].data.tags["trial.status"] == "stopped early" for title in stopped)
    assert all(child.info.status == "FINISHED" for title, child in children.items() if title not in stopped)


FAILING = """
base: digits
space:
  e_step.collapse_cone: {type: choice, values: [0.9999, 1.0e-4]}
  loss.temperature: {type: choice, values: [0.1, 0.2]}
  e_step.num_clusters: "6,12"
  e_step.patience: 1
"""


def test_a_failing_trial_is_kept_with_its_reason_and_ends_nothing(tmp_path: Path, sweep: Sweep) -> None:
    done = sweep(space(tmp_path, FAILING), *SMALL, "e_step.collapse_rank=0", "--name", "one-fails")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    states = runs_of("one-fails")
    failed = {title for title, state in states.items() if state["state"] == "failed"}
    assert failed == {title for title in states if "collapse_cone0.0001" in title}
    assert len(failed) == 2
    assert all("the features have collapsed" in states[title]["error"] for title in failed)
    assert "the features have collapsed" in done.stdout
    _, children = recorded("one-fails")
    assert {title for title, child in children.items() if child.info.status == "FAILED"} == failed


@pytest.mark.slow
def test_many_that_fail_end_the_sweep_with_the_common_cause_and_it_can_go_on(
    tmp_path: Path, sweep: Sweep
) -> None:
    text = FAILING.replace("[0.9999, 1.0e-4]", "[1.0e-4, 2.0e-4]").replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]")
    done = sweep(
        space(tmp_path, text),
        *SMALL,
        "tracking.enabled=false",
        "--name",
        "all-fail",
        "--concurrency",
        "1",
        "sweep.failures=2",
    )
    assert done.returncode == 1
    assert "2 trials failed one after the other. 2 of them: the E-step before epoch 3" in done.stderr
    assert "pcl-ray sweep --resume all-fail" in done.stderr
    assert "Traceback" not in done.stderr
    states = runs_of("all-fail")
    assert 2 <= sum(state["state"] == "failed" for state in states.values()) < 6
    again = sweep("--resume", "all-fail", "sweep.failures=100")
    assert again.returncode == 1, again.stderr
    assert "all trials failed" in again.stderr
    assert sum(state["state"] == "failed" for state in runs_of("all-fail").values()) == 6


@pytest.mark.slow
def test_without_labels_trials_are_compared_by_their_rank(tmp_path: Path, sweep: Sweep) -> None:
    images = np.random.default_rng(0).integers(0, 255, (300, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    text = GRID.replace("space:", "space:\n  data.source: arrays")
    words = [
        f"data.path={tmp_path / 'images.npy'}",
        *[word for word in SMALL if not word.startswith("data.")],
        "tracking.enabled=false",
    ]
    done = sweep(
        space(tmp_path, text),
        *words,
        "--name",
        "bare",
        "--search",
        "random",
        "--samples",
        "3",
        "sweep.min_rank=1",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["objective"] == "eval/rankme"
    assert "eval/test_knn_top1" not in result["metrics"]
    best = max(state["trial"]["objective"] for state in runs_of("bare").values())
    assert result["metrics"]["eval/rankme"] == best
    wrong = sweep(space(tmp_path, text), *words, "--name", "wrong", "sweep.objective=eval/knn_top1")
    assert wrong.returncode == 2
    assert "needs labels" in wrong.stderr


@pytest.mark.slow
def test_members_of_a_population_really_take_over_from_others(tmp_path: Path, sweep: Sweep) -> None:
    text = GRID.replace("{type: choice, values: [0.1, 0.3]}", "{type: loguniform, low: 0.05, high: 1.0}")
    words = (
        *SMALL,
        "train.epochs=10",
        "sweep.perturb_epochs=2",
        "sweep.quantile=0.5",
        "tracking.enabled=false",
    )
    done = sweep(space(tmp_path, text), *words, "--samples", "4", "--scheduler", "pbt", "--name", "people")
    assert done.returncode == 0, done.stderr
    states = [json.loads(path.read_text()) for path in (home() / "runs").glob("people.*/state.json")]
    assert sorted(state["member"] for state in states) == [0, 1, 2, 3]
    assert all(state["state"] == "finished" and state["epochs"] == 10 for state in states)
    exploits = [(state["member"], exploit) for state in states for exploit in state.get("exploits", [])]
    assert exploits
    assert all(exploit["from"] != member for member, exploit in exploits)
    assert any(exploit["old"] != exploit["new"] for _, exploit in exploits)
    for state in states:
        if state.get("exploits"):
            assert state["point"] == state["exploits"][-1]["new"]


@pytest.mark.slow
def test_a_population_goes_on_without_a_member_that_failed(tmp_path: Path, sweep: Sweep) -> None:
    text = (
        "base: digits\nspace:\n  optimizer.lr: {type: choice, values: [0.03, 0.04, 0.05, 100.0]}\n "
        " e_step.num_clusters: '6,12'\n  e_step.patience: 1\n"
    )
    words = (
        *SMALL,
        "train.epochs=8",
        "sweep.perturb_epochs=2",
        "sweep.quantile=0.25",
        "tracking.enabled=false",
        "e_step.collapse_cone=0.9999",
    )
    done = sweep(space(tmp_path, text), *words, "--samples", "30", "--scheduler", "pbt", "--name", "fewer")
    assert done.returncode == 0, done.stderr
    states = [json.loads(path.read_text())["state"] for path in (home() / "runs").glob("fewer.*/state.json")]
    # Exploring may give another member the value that makes it fail; what counts is that the others end.
    assert len(states) == 4
    assert {"failed", "finished"} == set(states)


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_so_that_it_can_go_on(
    tmp_path: Path, sweep: Sweep, command: Callable[..., list[str]]
) -> None:
    words = (space(tmp_path, GRID), *SMALL, "tracking.enabled=false", "--name", "asked")
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + LIMIT_S
    while not any(state.get("state") == "finished" for state in _states("asked")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert err == "pcl-ray: stopped; go on with: pcl-ray sweep --resume asked\n"
    assert "rank" in out  # what there is, is shown
    assert json.loads((tmp_path / "result.json").read_text())["state"] == "stopped"
    resumed = sweep("--resume", "asked")
    assert resumed.returncode == 0, resumed.stderr
    assert all(state["state"] == "finished" for state in runs_of("asked").values())
    assert len(runs_of("asked")) == 8


@pytest.mark.slow
def test_trials_with_workers_of_their_own(tmp_path: Path, sweep: Sweep) -> None:
    text = GRID.replace("[1, 10]", "[1]").replace('["6,12", "20"]', '["6,12"]')
    done = sweep(space(tmp_path, text), *SMALL, "resources.workers=2", "--name", "groups")
    assert done.returncode == 0, done.stderr
    states = runs_of("groups")
    assert len(states) == 2
    assert all(state["state"] == "finished" and state["epochs"] == 6 for state in states.values())


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    words = (
        space(tmp_path, GRID),
        *SMALL,
        "train.epochs=40",
        "tracking.enabled=false",
        "--name",
        "lost",
        "--concurrency",
        "1",
    )
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + LIMIT_S
    while not any(6 <= state.get("epochs", 0) < 30 for state in _states("lost")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trials = [
        pid
        for pid in _descendants(process.pid)
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ResourceTrainable")
    ]
    assert trials
    for pid in trials:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert all(state["state"] == "finished" for state in runs_of("lost").values()), out
    assert len(runs_of("lost")) == 8


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_descendants(child)]
    return found
