"""A small process beside a driver. Where the driver ends without a word (SIGKILL, or Ray's own exit when its
raylet or GCS is gone), it marks the run as stopped, in the folder and in MLflow: no state says *running* of
what does not run.

driver ── a pipe; "concluded" or nothing, then its end ──→ guardian (the standard library alone, a few MB)
                                                             └ nothing was said: cluster/status.mark_ended
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CONCLUDED = b"concluded"
_MARK = "import sys; from pcl_ray.cluster import status; status.mark_ended(sys.argv[1])"


@contextmanager
def guarded(run: str) -> Iterator[None]:
    """Inside of the block, a run is marked as stopped should this process be gone of a sudden.

    Where a process cannot be started, nobody watches: the next `pcl-ray status` marks the run then.
    """
    reading, writing = os.pipe()
    guardian = None
    with suppress(OSError):
        guardian = subprocess.Popen(
            [sys.executable, "-S", __file__, run],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # whoever kills our group shall leave it
        )
    os.close(reading)
    try:
        yield
    finally:
        with suppress(OSError):  # it may be gone itself
            os.write(writing, _CONCLUDED)
        os.close(writing)
        if guardian is not None:
            with suppress(subprocess.TimeoutExpired):
                guardian.wait(timeout=5)


def _watch(run: str) -> None:
    """Waits until the other end of the pipe is closed, which also the death of its process does."""
    last_word = sys.stdin.buffer.read()
    if last_word != _CONCLUDED:
        os.execv(sys.executable, [sys.executable, "-c", _MARK, run])


if __name__ == "__main__":
    _watch(sys.argv[1])
