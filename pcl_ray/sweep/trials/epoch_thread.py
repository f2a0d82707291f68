"""Epochs of a run that another thread trains."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pcl_ray.errors import RunFailed
from pcl_ray.training.events import Event, Post


class EpochThread:
    """Iterates over the epochs of a run that another thread trains, as the workers of a Train group need it:
    `train` blocks, its events come one by one. Gives back how many epochs are done.
    """

    def __init__(self, train: Callable[[Callable[[Event], None]], None], handle: Post, limit_s: float):
        """handle: gets each event, in the iterating thread. limit_s: RunFailed after so long without one."""
        self._limit_s = limit_s
        self._handle = handle
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ended = False

        def run() -> None:
            try:
                train(self._put)
            except BaseException as error:  # carried to the thread that waits
                self._failure = error
            with self._changed:
                self._ended = True
                self._changed.notify_all()

        threading.Thread(target=run, name="trial", daemon=True).start()

    def _put(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def __iter__(self) -> EpochThread:
        return self

    def __next__(self) -> int:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._events or self._ended, timeout=self._limit_s):
                    raise RunFailed(f"no sign of life from the trial's workers for {self._limit_s:.0f} s")
                event = self._events.pop(0) if self._events else None
            if event is None:
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            self._handle(event)
            if event.kind == "epoch":
                return event.epoch + 1
