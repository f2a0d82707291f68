"""What this machine has."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def let_idle_threads_sleep() -> None:
    """Makes OpenMP's threads sleep while they have nothing to do, unless the environment says otherwise.
    Those that spin slow small work down a hundredfold where others want the cores. Read when torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def threads(of_its_own: int) -> int:
    """How many threads a process computes with, whichever kind of process it is: as many as it has cores of
    its own, never more than this machine has, nor than OMP_NUM_THREADS says.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    wanted = min(of_its_own, cores(), int(limit) if limit.isdecimal() and int(limit) else of_its_own)
    return max(wanted, 1)


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU does, by AMX or AVX-512; False where that is not known."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "amx_bf16" in words or "avx512_bf16" in words


def identity() -> str:
    """A text that tells this machine, since it was started, and this container from others: a process number
    means something only there. "" where it is not known.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def user() -> str:
    """The name of the user; "unknown" in a container that has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def as_typed(program: str) -> str:
    """A program's name as it can be typed here: with its path where it lies beside our Python and not on
    PATH, as in an environment that is not activated.
    """
    beside = Path(sys.executable).parent / program
    if not beside.exists() or shutil.which(program) == str(beside):
        return program
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
