"""Writes one checkpoint after the other beside the training. Without torch."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pcl_ray.errors import RunFailed


class BackgroundWriter:
    """One write at a time, in a thread. Not for several callers at once."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def is_safe(self) -> bool:
        """Whether the last write is done, and did not fail."""
        return self._failure is None and (self._thread is None or not self._thread.is_alive())

    def start(self, write: Callable[[], None]) -> None:
        """Begins a write; the one before must have been waited for."""
        assert self._thread is None, "a checkpoint is being written"

        def run() -> None:
            try:
                write()
            except BaseException as error:  # it is raised where it is waited for
                self._failure = error

        # An interpreter that ends does not wait for it: half a file is left under a name that nobody reads.
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """Waits for the write under way, if any; gives back why it failed, once, else "". Raises what is no
        RunFailed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            return ""
        if isinstance(failure, RunFailed):
            return str(failure)
        raise failure
