"""Processes that outlive the command that started them, and that a later command recognises and ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_END_S = 45.0  # Ray drains a node for up to half a minute
_SAME_S = 1.0


@dataclass(frozen=True)
class StartedProcess:
    """A process by its number and when it was created: numbers are used again, but not at the same second."""

    pid: int
    created: float

    @classmethod
    def of_child(cls, process: subprocess.Popen[bytes]) -> StartedProcess:
        return cls(process.pid, psutil.Process(process.pid).create_time())

    @classmethod
    def of(cls, content: Mapping[str, object]) -> StartedProcess:
        """Reads one out of JSON. Raises KeyError, TypeError or ValueError where it is none."""
        pid, created = content["pid"], content["created"]
        if not isinstance(pid, int) or not isinstance(created, float) or not 1 < pid < 2**31:
            raise ValueError(f"{pid!r} at {created!r} is no process")
        return cls(pid, created)

    def process(self) -> psutil.Process | None:
        """The process while it runs; None where it has ended, whoever has its number now."""
        try:
            process = psutil.Process(self.pid)
            return process if self.same(process) and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def same(self, other: psutil.Process) -> bool:
        return abs(other.create_time() - self.created) < _SAME_S


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> StartedProcess:
    """Starts a process in a session of its own, so that Ctrl-C at this terminal does not reach it.

    Its output goes to `log`, which only its owner may read.
    """
    return StartedProcess.of_child(start_child(command, environment, folder, log))


def start_child(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Does what `start` does, for a caller that waits for the process and wants to know its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(started: StartedProcess, limit_s: float = _END_S) -> bool:
    """Ends a process and everything that it started: politely (SIGTERM), and after `limit_s` by force.

    Those that it started are ended also where it has ended before them. False where nothing was left.
    """
    process, family = started.process(), _session(started)
    if process is not None:
        with suppress(psutil.Error):
            family += [one for one in (process, *process.children(recursive=True)) if one not in family]
            process.send_signal(signal.SIGTERM)
        psutil.wait_procs([process], timeout=limit_s)
        psutil.wait_procs(family, timeout=5)  # they end with it
    left = [one for one in family if _runs(one)]
    for one in left:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(left, timeout=5)
    return process is not None or bool(left)


def _session(started: StartedProcess) -> list[psutil.Process]:
    """The processes that it started and that have not left its session.

    Each process of `start` has its own session, whose number is not reused while one of its processes lives.
    """
    members: list[psutil.Process] = []
    with suppress(psutil.Error):
        if not started.same(psutil.Process(started.pid)):
            return []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if (
                os.getsid(process.pid) == started.pid
                and process.create_time() >= started.created - _SAME_S
                and process.pid != os.getpid()
            ):
                members.append(process)
    return members


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def last_lines(log: Path, number: int = 15) -> str:
    """The end of a log; "" where it cannot be read."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-number:])
    except OSError:
        return ""
