"""Where workers were when they died, out of real processes that a signal ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pcl_ray.support import worker_positions
from pcl_ray.support.worker_positions import (
    PositionRecorder,
    attempts_of,
    hopeless,
    lost_worker,
    next_attempt,
    read_positions,
)

DYING = """
import os, signal, sys
from pathlib import Path
from pcl_ray.support.worker_positions import PositionRecorder

attempt, rank, step, ending = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with PositionRecorder(attempt, rank) as recorder:
    for number in range(step + 1):
        recorder.mark("the M-step", number // 10, number)
    print("careful:\\nsomething is odd", file=sys.stderr, flush=True)
    if ending == "error":
        raise SystemExit("as it should not be")
    if ending != "well":
        os.kill(os.getpid(), getattr(signal, ending))
"""


def died(attempt: Path, step: int, ending: str, rank: int = 0) -> None:
    """A process that comes to a step and ends so."""
    words = [sys.executable, "-c", DYING, str(attempt), str(rank), str(step), ending]
    with (attempt.parent.parent / f"stderr-{rank}").open("w") as errors:
        subprocess.run(words, stderr=errors, timeout=60, check=False)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = tmp_path / "workers" / "abc"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_signal_is_named_with_its_place_and_the_last_words(start: Path, name: str) -> None:
    attempt = next_attempt(start)
    died(attempt, 23, name, rank=1)
    died(attempt, 22, "SIGKILL", rank=0)  # as Ray ends the others
    lost = lost_worker(read_positions(attempt), dead=[0, 1])
    assert lost is not None
    assert (lost.rank, lost.signal, lost.phase, lost.epoch, lost.step) == (1, name, "the M-step", 2, 23)
    said = f"worker 1 (process {lost.pid}) died of {name} in the M-step of epoch 3, step 23"
    assert lost.sentence() == said
    assert lost.last_errors() == "careful:\nsomething is odd"
    assert lost.code().startswith('File "<string>", line')


def test_a_killed_worker_leaves_its_position(start: Path) -> None:
    attempt = next_attempt(start)
    died(attempt, 5, "SIGKILL", rank=1)
    positions = read_positions(attempt)
    assert lost_worker(positions) is None  # it might be one of those that are ended with another
    lost = lost_worker(positions, dead=[1])
    assert lost is not None
    assert lost.signal == ""
    assert "without a trace of its own in the M-step of epoch 1, step 5" in lost.sentence()
    assert "memory" in lost.advice()


def test_who_ends_by_itself_leaves_nothing(start: Path) -> None:
    for ending in ("well", "error"):
        attempt = next_attempt(start)
        died(attempt, 3, ending)
        assert read_positions(attempt) == []
        assert list(attempt.iterdir()) == []


def test_before_the_first_step(start: Path) -> None:
    recorder = PositionRecorder(next_attempt(start), 0)
    (position,) = read_positions(attempts_of(start)[0])
    assert position.sentence().endswith("in the start")
    recorder.close()
    recorder.close()
    recorder.mark("the M-step", 0, 0)  # too late, and no error
    assert read_positions(attempts_of(start)[0]) == []


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(7, "SIGSEGV")], False),
        ([(7, "SIGSEGV"), (7, "SIGSEGV")], True),
        ([(7, "SIGSEGV"), (8, "SIGSEGV")], False),
        ([(7, "SIGSEGV"), (7, "SIGABRT")], False),
        ([(7, "SIGSEGV"), (9, "SIGSEGV"), (9, "SIGSEGV")], True),
        ([(7, "SIGKILL"), (7, "SIGKILL")], False),
        ([(7, "SIGKILL"), (7, "SIGKILL"), (7, "SIGKILL")], True),
        ([(7, "SIGKILL"), (8, "SIGKILL"), (7, "SIGKILL")], False),
        ([(7, "SIGSEGV"), (7, "well")], False),
    ],
)
def test_deaths_at_one_step_leave_no_hope(start: Path, ends: list[tuple[int, str]], expected: bool) -> None:
    for step, ending in ends:
        died(next_attempt(start), step, ending)
    lost = hopeless(start)
    assert (lost is not None) == expected
    if lost is not None:
        assert lost.step == ends[-1][0]


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with PositionRecorder(tmp_path / "file" / "attempt_00001", 0) as recorder:
        recorder.mark("the M-step", 0, 1)


def test_what_is_damaged_is_passed_over(start: Path) -> None:
    attempt = next_attempt(start)
    attempt.mkdir()
    (attempt / "rank_00000.position").write_text("{")
    (attempt / "rank_00001.position").write_text(json.dumps({"rank": 1}))
    assert read_positions(attempt) == []
    assert hopeless(start) is None
    worker_positions.remove(start.parents[1])
    assert attempts_of(start) == []
