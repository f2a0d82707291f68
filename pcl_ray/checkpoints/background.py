"""Writes one checkpoint after the other beside the training. Without torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent import futures

from pcl_ray.errors import RunFailed


class BackgroundWriter:
    """One write at a time, in a thread. Not for several callers at once."""

    def __init__(self) -> None:
        self._written: futures.Future[None] | None = None
        self._writes: queue.SimpleQueue[tuple[Callable[[], None], futures.Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def is_safe(self) -> bool:
        """Whether the last write is done, and did not fail."""
        if self._written is None:
            return True
        return self._written.done() and self._written.exception() is None

    def start(self, write: Callable[[], None]) -> None:
        """Begins a write; the one before must have been waited for."""
        assert self._written is None, "a checkpoint is being written"
        if self._thread is None:
            # One for all: memory that the C library gives to ever new threads comes to lie in pieces, and the
            # process grows. An interpreter that ends does not wait for it: half a file is left under a name
            # that nobody reads.
            self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
            self._thread.start()
        self._written = futures.Future()
        self._writes.put((write, self._written))

    def _work(self) -> None:
        while True:
            write, written = self._writes.get()
            try:
                write()
            except BaseException as error:  # it is raised where it is waited for
                written.set_exception(error)
            else:
                written.set_result(None)
            del write, written

    def wait(self) -> str:
        """Waits for the write under way, if any; gives back why it failed, once, else "". Raises what is no
        RunFailed. A wait that a signal's handler ends by raising can be begun again.
        """
        if self._written is None:
            return ""
        # Not the thread's join: Python 3.11 takes a thread for ended when a handler raised in that.
        futures.wait([self._written])
        failure = self._written.exception()
        self._written = None
        if failure is None:
            return ""
        if isinstance(failure, RunFailed):
            return str(failure)
        raise failure
