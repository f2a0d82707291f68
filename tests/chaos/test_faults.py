"""Every fault of the table in docs/reliability.md that ends or stops a process. `make chaos` runs them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from faults import CHECKPOINT, E_STEP, M_STEP, Run

from pcl_ray.checkpoints.run_state import RunState

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    with faults.started(tmp_path_factory.mktemp("undisturbed"), "undisturbed") as run:
        said = run.end()
        assert run.process.returncode == 0, said
        return run.newest()


# Those that the run survives by itself: it ends with 0.
SURVIVED: dict[str, Callable[[Run], None]] = {
    "a worker in the M-step": lambda run: faults.kill_worker(run, M_STEP, 6),
    "a worker in the feature pass": lambda run: faults.kill_worker(run, E_STEP, 6),
    "a worker while it saves": lambda run: faults.kill_worker(run, CHECKPOINT, 6),
    "a worker while it writes beside the training": lambda run: faults.kill_writing_worker(run, 6),
    "the actor while it gathers": lambda run: _kill_actor(run, 0.0),
    "the actor while it clusters": lambda run: _kill_actor(run, 0.02),
    "the board of events": lambda run: _kill_in_m_step(run, "EventBoard"),
    "a worker and the actor": lambda run: _kill_both(run),
}


def _kill_both(run: Run) -> None:
    faults.kill_worker(run, M_STEP, 6)
    faults.kill(run, "EStepActor")


def _kill_actor(run: Run, later_s: float) -> None:
    run.wait_for(E_STEP, 6)
    time.sleep(later_s)
    faults.kill(run, "EStepActor")


def _kill_in_m_step(run: Run, title: str) -> None:
    run.wait_for(M_STEP, 6)
    faults.kill(run, title)


@pytest.mark.parametrize("fault", SURVIVED)
def test_a_killed_process_changes_nothing(fault: str, undisturbed: RunState, tmp_path: Path) -> None:
    before = faults.shared_files()
    with faults.started(tmp_path, "disturbed") as run:
        SURVIVED[fault](run)
        said = run.end()
        assert run.process.returncode == 0, said
        assert "Traceback" not in said
        assert run.state["state"] == "finished"
        faults.assert_same_course(run, undisturbed)
        faults.assert_recorded_once(run)
        faults.assert_nothing_left(run, before)


# Those that end the driver: its state is true, and it goes on by name.
ENDED: dict[str, Callable[[Run], None]] = {
    "the driver": lambda run: run.process.kill(),
    "the raylet of its own Ray": lambda run: faults.kill(run, "raylet/raylet"),
    "the GCS of its own Ray": lambda run: faults.kill(run, "gcs_server"),
}


@pytest.mark.parametrize("fault", ENDED)
def test_what_ends_the_driver_ends_in_a_true_state(fault: str, undisturbed: RunState, tmp_path: Path) -> None:
    before = faults.shared_files()
    with faults.started(tmp_path, "disturbed") as run:
        run.wait_for(M_STEP, 6)
        ENDED[fault](run)
        said = run.end(240)
        assert run.process.returncode != 0, said
        faults.wait_until(lambda: run.state["state"] in ("stopped", "failed"), f"the state is {run.state}")
        faults.wait_until(lambda: not run.family(), f"nothing is left: {run.family()}")
        status = {"stopped": "KILLED", "failed": "FAILED"}[run.state["state"]]
        faults.assert_recorded_once(run, status, perhaps_not_yet=True)
        faults.resume(run)
        faults.assert_same_course(run, undisturbed)
        faults.assert_recorded_once(run)
        faults.assert_nothing_left(run, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_is_told_to_stop_stops_and_goes_on(
    number: signal.Signals, times: int, undisturbed: RunState, tmp_path: Path
) -> None:
    before = faults.shared_files()
    with faults.started(tmp_path, "disturbed") as run:
        run.wait_for(M_STEP, 6)
        for _ in range(times):
            run.process.send_signal(number)
            time.sleep(0.3)
        said = run.end(60)
        assert run.process.returncode == 128 + number, said
        assert "Traceback" not in said
        assert run.state["state"] == "stopped"
        faults.wait_until(lambda: not run.family(), f"nothing is left: {run.family()}")
        faults.resume(run)
        faults.assert_same_course(run, undisturbed)
        faults.assert_recorded_once(run)
        faults.assert_nothing_left(run, before)


@pytest.mark.parametrize("title", ["RayTrainWorker", "EStepActor"])
def test_a_process_that_stands_still_is_noticed(title: str, undisturbed: RunState, tmp_path: Path) -> None:
    before = faults.shared_files()
    short = ("e_step.timeout_s=8", "resources.step_timeout_s=8", "resources.start_timeout_s=60")
    with faults.started(tmp_path, "disturbed", *short) as run:
        run.wait_for(M_STEP, 6)
        faults.stop_process(run, title)
        said = run.end(240)  # survived or ended, in time and with a sentence
        assert "Traceback" not in said
        if run.process.returncode:
            assert "go on with: pcl-ray" in said
            assert run.state["state"] == "failed"
            faults.wait_until(lambda: not run.family(), f"nothing is left: {run.family()}")
            faults.resume(run)
        faults.assert_same_course(run, undisturbed)
        faults.assert_nothing_left(run, before)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"),
    reason="needs root and unshare, for a /dev/shm of its own",
)
def test_shared_memory_that_is_too_small_costs_time_alone(undisturbed: RunState, tmp_path: Path) -> None:
    """Ray keeps its objects in files then, and the run says so."""
    script = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    with faults.started(tmp_path, "cramped", before=["unshare", "--mount", "sh", "-c", script, "sh"]) as run:
        said = run.end()
        assert run.process.returncode == 0, said
        assert "/dev/shm has 0.1 MB free" in said
    faults.assert_same_course(run, undisturbed)
    faults.assert_recorded_once(run)
