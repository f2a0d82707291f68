"""The outbox of a run: a buffer, the thread that sends it to the tracking server, and the file that holds it
over an outage. It knows nothing of MLflow: the server is whatever offers the methods of `RunStore`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pcl_ray.support.redaction import scrubbed
from pcl_ray.tracking import pending
from pcl_ray.tracking.pending import POINTS_A_REQUEST, Part, Point, Unsent

BUFFER_POINTS = 10_000  # more than that are not held in memory during an outage
_LONGEST_PAUSE_S = 60.0
_TIMES_ANEW = 3


class RunStore(Protocol):
    """The run on the server. Every method may take long and raise; only the outbox's thread calls them."""

    name: str  # for messages

    def open(self) -> list[str]:
        """Finds or creates the run, once; gives back what the user should know."""

    def send_points(self, points: list[Point]) -> None: ...

    def send_tags(self, tags: dict[str, str]) -> None: ...

    def send_text(self, artifact: str, text: str) -> None: ...

    def send_file(self, artifact: str, path: str) -> None: ...

    def perform(self, task: dict[str, Any]) -> None: ...

    def set_status(self, status: str) -> None: ...

    def forget_unknown(self, error: Exception) -> bool:
        """Whether an error means that the server has lost the run: `open` makes it anew then."""


class Outbox:
    """Takes everything at once and sends it every `flush_s` seconds from a daemon thread. Over an outage it
    is held in memory, and then in the file `path`. first: what is sent before anything else. hold_s: it
    begins after so many seconds, unless `release`, `announce` or `close` let it begin before.
    """

    def __init__(
        self,
        store: RunStore,
        path: Path,
        flush_s: float,
        first: Unsent,
        warn: Callable[[str], None],
        *,
        hold_s: float = 0.0,
    ):
        self._store, self._path, self._flush_s, self._warn = store, path, flush_s, warn
        self._changed = threading.Condition()  # guards the buffer, the file and the two statuses
        self._first = first.copy()
        self._unsent = first
        self._made_anew = 0
        self._last_status: str | None = None  # set: close() was called
        self._announced: str | None = None  # a status that the run gets before anything else is sent
        # close() took what was left; a thread still stuck in a request must touch nothing
        self._abandoned = False
        self._disk_failed = False
        self._released = False
        self._hold_s = hold_s
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, new: Unsent) -> None:
        """Adds to the buffer; nothing is taken any more after `close`."""
        with self._changed:
            if self._last_status is not None:
                return
            self._unsent.add(new)
            if len(self._unsent.points) >= POINTS_A_REQUEST:
                self._changed.notify_all()

    def announce(self, status: str) -> None:
        """Gives the run this status before all else. Signal handlers may call it: the lock is reentrant."""
        with self._changed:
            self._announced = status
            self._changed.notify_all()

    def release(self) -> None:
        """Lets it begin where it still holds back."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def close(self, status: str, timeout_s: float) -> None:
        """Sends what is left and closes the run, once; what is left after `timeout_s` goes to the file."""
        with self._changed:
            if self._last_status is not None:
                return
            self._last_status = status
            self._changed.notify_all()
        try:
            self._thread.join(0.9 * timeout_s)  # the rest of the time is for the disk
        finally:  # an impatient second Ctrl-C loses nothing either
            with self._changed:
                self._abandoned = True
                left = bool(self._unsent)
                written = self._move_to_file()
        if left and written:
            self.warn(
                f"{self._store.name} has not taken everything. Nothing is lost: the rest is in"
                f" {self._path} and sent on resume"
            )

    def warn(self, message: str) -> None:
        try:
            self._warn(message)
        except Exception as error:  # a closed terminal must end neither the thread nor the caller
            logging.getLogger(__name__).debug("warning not delivered: %s (%s)", message, error)

    def _work(self) -> None:
        self._hold()
        pause = 0.0  # above 0 while the server does not answer
        while True:
            with self._changed:
                # read before sending: what was put before close() is in the buffer now
                status = self._last_status
            try:
                self._send_all(status)
                if pause:
                    self.warn(f"{self._store.name} answers again: everything kept meanwhile is recorded")
                pause = 0.0
            except Exception as error:  # whatever it is: training goes on
                if self._begins_anew(error):
                    continue
                self._after_failure(error, first=pause == 0.0)
                pause = min(max(2 * pause, 1.0), _LONGEST_PAUSE_S)
            if status is not None:
                return
            self._wait(pause)

    def _begins_anew(self, error: Exception) -> bool:
        """Where the server has another database now: what was sent first is sent again, a few times."""
        try:
            unknown = self._made_anew < _TIMES_ANEW and self._store.forget_unknown(error)
        except Exception:  # it is away again
            return False
        if unknown:
            self._made_anew += 1
            with self._changed:
                self._unsent.entries = self._first.entries | self._unsent.entries
            self.warn(f"{self._store.name} does not know this run any more: it is recorded there anew")
        return unknown

    def _hold(self) -> None:
        def due() -> bool:
            return self._released or self._last_status is not None or self._announced is not None

        with self._changed:
            self._changed.wait_for(due, timeout=self._hold_s)

    def _wait(self, pause: float) -> None:
        def due() -> bool:
            if self._last_status is not None:
                return True
            urgent = self._announced is not None or len(self._unsent.points) >= POINTS_A_REQUEST
            return urgent and pause == 0.0

        with self._changed:
            self._changed.wait_for(due, timeout=pause or self._flush_s)

    def _after_failure(self, error: Exception, first: bool) -> None:
        with self._changed:
            if self._abandoned:
                return
            if len(self._unsent.points) > BUFFER_POINTS:
                self._move_to_file()
        if first:
            self.warn(
                f"{self._store.name} cannot be reached or refuses the data ({_root_reason(error)}). "
                "Training goes on and nothing is lost: the points are kept, and sent as soon as it takes them"
            )

    def _send_all(self, status: str | None) -> None:
        """Sends what waits, oldest first. What a failure interrupts stays where it was, for the next try."""
        self._check_open()
        for message in self._store.open():
            self.warn(message)
        if (announced := self._announced) is not None:
            self._store.set_status(announced)
            self._announced = None
        if self._path.exists():
            self._take_from_file()
        with self._changed:
            waiting = self._unsent.copy()
        for part in waiting.parts(status):
            self._send(part)
            with self._changed:
                self._check_open()
                self._unsent.remove(part)

    def _take_from_file(self) -> None:
        """Sends the points of the file, which may be many, and takes the rest into the buffer."""
        older = pending.read(self._path)
        for part in Unsent(older.points).parts():
            self._send(part)
        with self._changed:
            self._check_open()
            self._unsent.entries = older.entries | self._unsent.entries
            self._path.unlink()

    def _send(self, part: Part) -> None:
        self._check_open()
        match part.kind:
            case "points":
                self._store.send_points(part.content)
            case "tag":
                self._store.send_tags(part.content)
            case "status":
                self._store.set_status(part.content)
            case "file":
                for artifact, text in part.content.items():
                    self._store.send_text(artifact, text)
            case "artifact":
                for artifact, path in part.content.items():
                    self._store.send_file(artifact, path)
            case "task":
                for task in part.content.values():
                    self._store.perform(task)

    def _check_open(self) -> None:
        if self._abandoned:
            raise TimeoutError("closed while this was under way")

    def _move_to_file(self) -> bool:
        """Moves the buffer to the file; False if the disk does not take it. The caller holds the lock."""
        try:
            if self._unsent:
                pending.append(self._path, self._unsent)
        except OSError as error:
            if not self._disk_failed:
                self._disk_failed = True
                self.warn(
                    f"what waits for {self._store.name} cannot be kept in {self._path} ({error}): free"
                    " some space, it is in memory only"
                )
            return False
        self._unsent = Unsent()
        return True


def _root_reason(error: BaseException) -> str:
    """The innermost cause in one line: `[Errno 111] Connection refused`, not the four layers around it."""
    while (
        inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        error = inner
    # before it is cut: half a secret would not be known
    return scrubbed(" ".join(str(error).split()) or type(error).__name__)[:200]
