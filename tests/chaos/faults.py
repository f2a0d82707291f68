"""Runs whose processes are really killed, stopped or told to stop, at a moment that their marks tell.

A disturbed run is started by the command a user types, with two workers on a Ray of its own. Where the fault
ends it, it is resumed by name. In the end its weights, queue, prototypes and figures must be those, bit by
bit, of a run that nobody disturbed, and nothing may be left of it: no process, no file in /dev/shm.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from same_states import assert_equal
from small import DIGITS_RUN

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.support import worker_positions

EPOCHS = 24
KNOBS = (
    *DIGITS_RUN,
    "resources.workers=2",
    f"train.epochs={EPOCHS}",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=2",
    "resources.max_failures=5",
    "e_step.timeout_s=30",
    "resources.step_timeout_s=30",
    "tracking.enabled=true",
    "tracking.model=false",
    "tracking.report=false",
    "tracking.pictures=0",
)
LIMIT_S = 420.0  # a guard against hanging
M_STEP, E_STEP, CHECKPOINT = "the M-step", "the features and the E-step", "the checkpoint"
_SHARED = ("plasma", "ray", "torch_", "psm_", "pymp")


@dataclass
class Run:
    """A run by its name, and the process that drives it now."""

    home: Path
    name: str
    process: subprocess.Popen[str]

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.name

    @property
    def state(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads((self.folder / "state.json").read_text())
        return {}

    def family(self) -> list[psutil.Process]:
        """All processes of this home, whoever their parents are by now, but for this one."""
        members = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                own = process.environ().get("PCL_RAY_HOME") == str(self.home)
                if own and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def titled(self, title: str) -> list[psutil.Process]:
        """Those of its processes whose command line has this text."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def positions(self) -> list[worker_positions.WorkerPosition]:
        """Where the workers of the newest start are."""
        starts = sorted(
            (self.folder / worker_positions.FOLDER).glob("*"), key=lambda path: path.stat().st_mtime
        )
        attempts = worker_positions.attempts_of(starts[-1]) if starts else []
        return worker_positions.read_positions(attempts[-1]) if attempts else []

    def wait_for(self, phase: str, epoch: int) -> None:
        """Returns when a worker is in this phase of this epoch, or a later one; polls without a pause."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError, ValueError):
                if any(at.phase == phase and at.epoch >= epoch for at in self.positions()):
                    return
            time.sleep(0.002)
        raise AssertionError(f"{phase} of epoch {epoch} was not seen: {self.end()}")

    def end(self, limit_s: float = LIMIT_S) -> str:
        """Waits for the end of the driver, which must come; gives back what it said."""
        try:
            out, err = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"the run hung\n{out[-3000:]}\n{err[-3000:]}") from None
        return out + err

    def newest(self) -> RunState:
        path = epoch_files.latest(self.folder / "checkpoints")
        assert path is not None
        return run_state.load(path)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pcl_ray.cli", *words]


@contextmanager
def started(home: Path, name: str, *words: str, before: Sequence[str] = ()) -> Iterator[Run]:
    """A run under way; whatever is left of its processes at the end of the block is ended. before: a command
    that takes that of the run as its arguments.
    """
    home.mkdir(parents=True, exist_ok=True)
    process = start(home, ["train", "digits", *KNOBS, *words, "--name", name], before)
    run = Run(home, name, process)
    try:
        yield run
    finally:
        for left in [process, *run.family()]:
            with suppress(psutil.Error, OSError):
                left.kill()
        process.communicate()


def start(home: Path, words: list[str], before: Sequence[str] = ()) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PCL_RAY_HOME": str(home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return subprocess.Popen(
        [*before, *command(*words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=environment,
        start_new_session=True,
    )


def resume(run: Run) -> str:
    """Goes on with a run by its name, to its end; gives back what was said."""
    run.process = start(run.home, ["train", "--resume", run.name])
    said = run.end()
    assert run.process.returncode == 0, said
    return said


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 90.0) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"{what} within {limit_s:g} s")


def assert_nothing_left(run: Run, shared_before: set[str]) -> None:
    """No process of its home, and no file in shared memory that was not there."""
    wait_until(lambda: not run.family(), f"no process of the run is left: {run.family()}")
    left = shared_files() - shared_before
    assert not left, f"left in /dev/shm: {left}"


def shared_files() -> set[str]:
    """What runs put into shared memory: Ray's store, torch's tensors on their way between processes."""
    return {path.name for path in Path("/dev/shm").glob("*") if path.name.startswith(_SHARED)}


def assert_same_course(run: Run, undisturbed: RunState) -> None:
    """Weights, queue, optimizer, random state, prototypes and figures are those of the undisturbed run."""
    state = run.newest()
    assert state.epoch == undisturbed.epoch == EPOCHS
    assert_equal(state.learner, undisturbed.learner, "learner")
    assert_equal(state.random_states, undisturbed.random_states, "random states")
    assert state.clusters is not None
    assert undisturbed.clusters is not None
    assert_equal(state.clusters.state_dict(), undisturbed.clusters.state_dict(), "clusters")
    assert_equal(state.history, undisturbed.history, "history")


def assert_recorded_once(
    run: Run, status: str = "FINISHED", *, perhaps_not_yet: bool = False, uri: str = ""
) -> None:
    """One MLflow run, in this state, with one point of a metric at each step. perhaps_not_yet: it was killed
    in the seconds after its first step, in which MLflow may not have heard of it. uri: of another store than
    that of its home.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{run.home}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.run_name = '{run.name}'") if experiments else []
    if perhaps_not_yet and not found:
        return
    (recorded,) = found
    assert recorded.info.status == status
    for metric in ("train/loss", "eval/knn_top1"):
        steps = [point.step for point in client.get_metric_history(recorded.info.run_id, metric)]
        assert len(steps) == len(set(steps)), f"{metric} has two points at a step"
    if status == "FINISHED":
        steps = [point.step for point in client.get_metric_history(recorded.info.run_id, "train/loss")]
        assert max(steps) == EPOCHS * 4 - 1


# ---- what may happen


def kill(run: Run, title: str) -> None:
    """kill −9 of one such process."""
    victims = run.titled(title)
    assert victims, f"no process called {title}"
    with suppress(psutil.Error):
        victims[0].kill()


def kill_worker(run: Run, phase: str, epoch: int) -> None:
    run.wait_for(phase, epoch)
    os.kill(run.positions()[-1].pid, signal.SIGKILL)


def kill_writing_worker(run: Run, epoch: int) -> None:
    """kill −9 of rank 0 while it writes a checkpoint of this epoch or a later one, beside the training."""
    run.wait_for(M_STEP, epoch)
    folder = run.folder / "checkpoints"
    until = time.monotonic() + LIMIT_S
    while not any(folder.glob("*.partial")):
        assert time.monotonic() < until, "no checkpoint was seen being written"
        time.sleep(0.0005)
    os.kill(run.positions()[0].pid, signal.SIGKILL)


def stop_process(run: Run, title: str) -> None:
    """SIGSTOP: it is there and does nothing."""
    victims = run.titled(title)
    assert victims, f"no process called {title}"
    victims[0].suspend()
