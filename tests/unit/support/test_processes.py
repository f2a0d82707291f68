from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pcl_ray.support import processes
from pcl_ray.support.processes import StartedProcess

TREE = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    " print('up', flush=True); time.sleep(600)"
)


def two_generations(folder: Path) -> tuple[StartedProcess, Any, Any]:
    """A process, as it is remembered and as it is, and its child."""
    import psutil

    started = processes.start([sys.executable, "-c", TREE], {}, folder, folder / "log")
    deadline = time.monotonic() + 60
    while "up" not in (folder / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    process = psutil.Process(started.pid)
    (child,) = process.children()
    return started, process, child


def test_a_process_ends_with_all_that_it_started(tmp_path: Path) -> None:
    import psutil

    started, process, child = two_generations(tmp_path)
    assert started.process() is not None
    assert processes.end(started)
    process.wait(10)
    assert started.process() is None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert processes.end(started) is False
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_what_outlived_the_process_that_started_it_is_found_and_ended(tmp_path: Path) -> None:
    import psutil

    started, process, child = two_generations(tmp_path)
    process.kill()
    process.wait(10)
    assert child.is_running()
    assert processes.end(started)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_another_process_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    started = processes.start(
        [sys.executable, "-c", "import time; time.sleep(600)"], {}, tmp_path, tmp_path / "log"
    )
    try:
        assert processes.end(StartedProcess(started.pid, started.created - 100)) is False
        assert started.process() is not None
    finally:
        processes.end(started)
