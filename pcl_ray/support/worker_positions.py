"""Where each worker is, in small files that outlive it, so that its death can be explained.

RUN/workers/START/attempt_00001/rank_00000.position   phase, epoch, step, process, stderr, at every step
                                rank_00000.fault      signal and stack, where a signal ended it

START is one `fit` of the driver, an attempt one start of all its workers.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

FOLDER = "workers"  # below that of a run
STARTING = "the start"
# What faulthandler calls the signals that it sees.
_SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating": "SIGFPE",
}
_FRAME = re.compile(r"^\s*(File \".*)$", re.MULTILINE)
# Ray's handler writes addresses without names.
_NATIVE_STACK = re.compile(r"\[.* logging\.cc|PC: @|\s*@ |\*\*\* ")
_SIZE = 1024  # bytes of a position
_ERROR_BYTES = 16384  # of a worker's stderr, at its end
_LAST_LINES = 5
_SAME_FAULTS, _SAME_LOSSES = (
    2,
    3,
)  # attempts in a row that end at one step, after which a run is not tried again

# Phase, epoch from 0, global step.
Mark = Callable[[str, int, int], None]


def mark_nothing(phase: str, epoch: int, step: int) -> None:
    """Stands for a recorder's `mark` where nobody would explain a death."""


@dataclass(frozen=True)
class WorkerPosition:
    """Where a worker was last. epoch: from 0. errors: the file that is its stderr, "" where it has none.
    fault: what faulthandler wrote, "" unless a signal ended it that a process can see.
    """

    rank: int
    phase: str
    epoch: int
    step: int
    pid: int
    errors: str = ""
    fault: str = ""

    @property
    def signal(self) -> str:
        """The name of the signal that ended it, "" where it left none: after SIGKILL, or an exit."""
        return next((name for words, name in _SIGNALS.items() if words in self.fault), "")

    def sentence(self) -> str:
        """What became of it, without a full stop."""
        how = f"died of {self.signal}" if self.signal else "was killed or lost, without a trace of its own"
        where = f"in {self.phase}"
        if self.phase != STARTING:
            where += f" of epoch {self.epoch + 1}, step {self.step}"
        return f"worker {self.rank} (process {self.pid}) {how} {where}"

    def advice(self) -> str:
        """What to try, as a sentence."""
        if self.signal:
            return (
                "Native code did that (torch, an image decoder): try train.memory_format=contiguous and"
                " data.loader_workers=0, or another version of torch; resources.workers=0 shows whether Ray"
                " matters."
            )
        return (
            "Where memory ran out, the kernel's log (dmesg) says so: lower train.batch_size or set"
            " train.micro_batch, or lower data.memory_gb."
        )

    def last_errors(self) -> str:
        """The last lines of its stderr, "" where there are none or the file is on another machine."""
        with suppress(OSError):
            with open(self.errors, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _ERROR_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
            own = [line for line in lines if line.strip() and not _NATIVE_STACK.match(line)]
            return "\n".join(own[-_LAST_LINES:])
        return ""

    def code(self) -> str:
        """The line that it was in when the signal came: `File "…", line 7 in step`; "" where unknown."""
        match = _FRAME.search(self.fault)
        return match[1] if match else ""


class PositionRecorder:
    """Keeps the position of this process in its files, until `close`. A folder that cannot be written is no
    reason to fail: then nothing is recorded.
    """

    def __init__(self, attempt: Path, rank: int):
        self._rank, self._descriptor = rank, -1
        self._errors = ""
        with suppress(OSError):
            self._errors = os.readlink("/proc/self/fd/2")
        with suppress(OSError):
            attempt.mkdir(parents=True, exist_ok=True)
            self._fault = (attempt / f"rank_{rank:05d}.fault").open("w", encoding="utf-8")
            faulthandler.enable(self._fault, all_threads=False)
            self._descriptor = os.open(
                attempt / f"rank_{rank:05d}.position", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
            )
        self.mark(STARTING, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mark(self, phase: str, epoch: int, step: int) -> None:
        """Says where this process is now."""
        if self._descriptor < 0:
            return
        position = WorkerPosition(self._rank, phase, epoch, step, os.getpid(), self._errors)
        # A plain write: mapped memory would end the process where the disk is full.
        with suppress(OSError):
            os.pwrite(self._descriptor, json.dumps(asdict(position)).encode().ljust(_SIZE), 0)

    def close(self) -> None:
        """Takes the files away: this process has not died."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        faulthandler.enable()
        self._fault.close()
        for path in (Path(self._fault.name), Path(self._fault.name).with_suffix(".position")):
            with suppress(OSError):
                path.unlink()


def attempts_of(start: Path) -> list[Path]:
    """The folders of the attempts of one start, the oldest first."""
    return sorted(start.glob("attempt_*")) if start.is_dir() else []


def next_attempt(start: Path) -> Path:
    """The folder of the attempt that begins now."""
    return start / f"attempt_{len(attempts_of(start)) + 1:05d}"


def read_positions(attempt: Path) -> list[WorkerPosition]:
    """Where the workers were that did not end by themselves, by their ranks."""
    positions = []
    for path in sorted(attempt.glob("rank_*.position")):
        with suppress(OSError, ValueError, TypeError):
            fault = path.with_suffix(".fault")
            written = fault.read_text(encoding="utf-8", errors="replace") if fault.exists() else ""
            position = json.loads(path.read_text(encoding="utf-8").rstrip("\0 "))
            positions.append(WorkerPosition(**position | {"fault": written}))
    return positions


def lost_worker(positions: Sequence[WorkerPosition], dead: Sequence[int] = ()) -> WorkerPosition | None:
    """The worker whose death explains that of an attempt: one that a signal ended, else one of the ranks that
    are known to be dead, else none.
    """
    by_signal = [position for position in positions if position.signal]
    dead_ones = [position for position in positions if position.rank in dead]
    return next(iter([*by_signal, *dead_ones]), None)


def hopeless(start: Path) -> WorkerPosition | None:
    """The worker that has ended this start's last attempts all at the same step, so that another attempt
    would end there too; None where there is hope: it takes two deaths by one signal, or three without a
    trace.
    """
    attempts = [read_positions(attempt) for attempt in attempts_of(start)]
    for needed, with_signal in ((_SAME_FAULTS, True), (_SAME_LOSSES, False)):
        last = attempts[-needed:]
        if len(last) < needed or not all(last):
            continue
        farthest = [_farthest(positions, with_signal=with_signal) for positions in last]
        ends = {(each.signal, each.phase, each.step) for each in farthest if each is not None}
        if None not in farthest and len(ends) == 1:
            return farthest[-1]
    return None


def _farthest(positions: Sequence[WorkerPosition], *, with_signal: bool) -> WorkerPosition | None:
    """The one that had come farthest, among those that a signal ended, or among all."""
    among = [position for position in positions if position.signal or not with_signal]
    return max(among, key=lambda position: position.step, default=None)


def remove(run_dir: Path) -> None:
    """Removes what earlier starts of a run have left."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
