"""Whether this machine can train: what is installed, what it has, and which services it reaches.

Nothing is left running, and nothing may take long.
"""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pcl_ray.cluster import machine_hardware, machine_services, machine_software
from pcl_ray.cluster.check import Check as Check
from pcl_ray.support.text import count


@dataclass(frozen=True)
class MachineCheck:
    """A check that can be made: its name, and the function that makes it, which may raise."""

    name: str
    run: Callable[[], Check]
    elsewhere: bool = False  # it asks another process or machine: begun at once, while the others run


CHECKS = (
    MachineCheck("packages", machine_software.packages),
    MachineCheck("Ray", machine_services.ray_cluster, elsewhere=True),
    MachineCheck("Ray's token", machine_services.ray_token),
    MachineCheck("GPUs", machine_hardware.gpus),
    MachineCheck("faiss", machine_software.faiss),
    MachineCheck("shared memory", machine_hardware.shared_memory),
    MachineCheck("memory", machine_hardware.memory),
    MachineCheck("cores", machine_hardware.cores),
    MachineCheck("PCL_RAY_HOME", machine_hardware.home_folder),
    MachineCheck("tracking", machine_services.tracking_store, elsewhere=True),
)


def check(checks: Sequence[MachineCheck] = CHECKS, limit_s: float = 12.0) -> list[Check]:
    """Makes the checks, none of which trains: the results in the order of `checks`.

    limit_s: for all of them together; most of the time goes into imports.
    """
    end = time.monotonic() + limit_s
    started = {entry.name: _Started(entry) for entry in checks if entry.elsewhere}
    return [(started.get(entry.name) or _Started(entry)).result(end) for entry in checks]


class _Started:
    """A check in a thread that the process does not wait for at its end: a driver may hang for good."""

    def __init__(self, entry: MachineCheck):
        self._entry = entry
        self._result: Check | None = None
        self._thread = threading.Thread(target=self._run, name=f"check-{entry.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._entry.run()
        except Exception as error:  # whatever it is, the other checks are still made
            message = f"could not be looked at: {type(error).__name__}: {error}"
            self._result = Check(self._entry.name, "failed", message)

    def result(self, end: float) -> Check:
        """The result at the time `end` (of time.monotonic) at the latest; each has half a second at least."""
        self._thread.join(max(end - time.monotonic(), 0.5))
        return self._result or Check(
            self._entry.name,
            "failed",
            "gave no answer in time",
            "something hangs: a driver, a file system or a server that does not answer",
        )


def as_text(checks: list[Check], width: int = 100) -> str:
    """A line or two for each check, what to do below it; and a line that sums up."""
    marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
    lines: list[str] = []
    for entry in checks:
        lines.append(_wrapped(f"{marks[entry.level]}  {entry.name}: {entry.message}", width))
        if entry.advice:
            lines.append(_wrapped(f"         → {entry.advice}", width))
    failed, warned = (sum(entry.level == level for entry in checks) for level in ("failed", "warning"))
    summary = "all is well"
    if failed or warned:
        summary = f"{failed} failed, {count(warned, 'warning')}"
    return "\n".join([*lines, "", summary])


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
