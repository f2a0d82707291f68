"""A driver that ends without a word leaves a true state all the same, in its folder and in MLflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from small import DIGITS_RUN

from pcl_ray.runs.folder import read_state_at, write_state_at
from pcl_ray.tracking import run_list

WORDS = [*DIGITS_RUN, "resources.workers=0", "train.epochs=500", "tracking.enabled=true"]


def waited_for(condition: Callable[[], Any], what: str, limit_s: float = 120.0) -> Any:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"{what} did not come within {limit_s:g} s")


def guardians(home: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if (b"guardian.py" in command or b"mark_ended" in command) and str(home) in environment:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number_is_written_down", [True, False])
def test_a_killed_driver_is_marked_without_anybody_looking(
    number_is_written_down: bool, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["PCL_RAY_HOME"])
    store = home / "mlflow/mlflow.db"
    store.parent.mkdir(parents=True)
    shutil.copy(empty_store, store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-m", "pcl_ray.cli", "train", "digits", *WORDS, "--name", "killed"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, start_new_session=True)
        try:
            folder = home / "runs/killed"
            waited_for(lambda: read_state_at(folder).get("progress", {}).get("epoch", 0) >= 1, "an epoch")
            waited_for(lambda: read_state_at(folder).get("mlflow_run_id"), "MLflow's number")
            (guardian,) = guardians(home)
            if not number_is_written_down:
                os.kill(process.pid, signal.SIGSTOP)
                waited_for(lambda: psutil.Process(process.pid).status() == "stopped", "its standstill")
                write_state_at(folder, mlflow_run_id=None)
            assert os.getpgid(guardian) != os.getpgid(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    waited_for(lambda: read_state_at(folder).get("state") == "stopped", "the state")
    waited_for(lambda: not guardians(home), "the guardian's end")
    state = read_state_at(folder)
    assert state["error"] == "its process was killed"
    assert bool(state["mlflow_run_id"]) is number_is_written_down
    recorded = run_list.recorded(f"sqlite:///{store}", "pcl_ray")
    assert [(run.name, run.state) for run in recorded] == [("killed", "stopped")]


def test_a_driver_that_ends_in_good_order_has_no_guardian_any_more(tmp_path: Path) -> None:
    home = Path(os.environ["PCL_RAY_HOME"])
    words = [*DIGITS_RUN, "resources.workers=0", "train.epochs=1", "optimizer.warmup_epochs=0"]
    command = [sys.executable, "-m", "pcl_ray.cli", "train", "digits", *words, "--name", "fine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not guardians(home)
    assert read_state_at(home / "runs/fine")["state"] == "finished"
