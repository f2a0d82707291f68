"""Processes that outlive the command that started them, and are found again by a later one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_END_S = 45.0  # Ray drains a node for up to half a minute
_SAME_S = 1.0


@dataclass(frozen=True)
class Known:
    """A process as it is remembered: numbers are used again, but not at the same second."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """None where it has ended, whoever has its number now."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < _SAME_S and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return found if same else None


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> tuple[Known, subprocess.Popen[bytes]]:
    """In a session of its own, so that Ctrl-C at this terminal does not reach it. What it says goes to `log`, which only its owner may read."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Known(process.pid, psutil.Process(process.pid).create_time()), process


def end(known: Known, limit_s: float = _END_S) -> bool:
    """Politely, then not; with everything that it started. False where it had ended before."""
    process = known.process()
    if process is None:
        return False
    family = [process]
    with suppress(psutil.Error):
        family += process.children(recursive=True)
    with suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([process], timeout=limit_s)
    deadline = time.monotonic() + 5
    while (alive := [one for one in family if _runs(one)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in alive:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(alive, timeout=5)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def last_lines(log: Path, number: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-number:])
    except OSError:
        return ""
