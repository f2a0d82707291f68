"""Between a run and its tracking server: a buffer, the thread that empties it, and the file that keeps
everything over an outage.

Private to `tracking`. Of MLflow it knows only which names it accepts: the server is whatever offers the
methods of `Store`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pcl_ray.support.redaction import scrubbed

BATCH_POINTS = 500  # so many wake the thread early, and go into one request (MLflow takes at most 1,000)
BUFFER_POINTS = 10_000  # more than that are not kept in memory during an outage
_LONGEST_PAUSE_S = 60.0


class Point(NamedTuple):
    key: str
    value: float
    step: int
    time: int  # ms since 1970, of the call: by it the server knows a point that is sent twice


@dataclass
class Unsent:
    """Points in the order of logging; of tags and files only the newest content counts."""

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # artifact: its text
    # artifact: the file on this disk that it is sent from
    paths: dict[str, str] = field(default_factory=dict)
    # what else the store is to do, in words of its own that JSON can hold
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.points or self.tags or self.files or self.paths or self.tasks)


class Store(Protocol):
    """The run on the server. Every method may take long and raise; only the thread calls them."""

    name: str  # for messages

    def open(self) -> list[str]:
        """Finds or creates the run, once; gives back what the user should know."""

    def send_points(self, points: list[Point]) -> None: ...

    def send_tags(self, tags: dict[str, str]) -> None: ...

    def send_file(self, file: str, text: str) -> None: ...

    def send_path(self, file: str, path: str) -> None: ...

    def do(self, task: dict[str, Any]) -> None: ...

    def close(self, status: str) -> None: ...


class Outbox:
    """Takes everything at once and sends it every `flush_s` seconds from a daemon thread; over an outage
    memory and then `pending` keep it.
    """

    def __init__(
        self, store: Store, pending: Path, flush_s: float, first: Unsent, warn: Callable[[str], None]
    ):
        self._store, self._pending, self._flush_s, self._warn = store, pending, flush_s, warn
        self._changed = threading.Condition()  # guards the buffer, the file and the two below
        self._unsent = first
        self._status: str | None = None  # set: close() was called
        self._early: str | None = None  # a status that the run gets before anything else is sent
        # close() took what was left; a thread still stuck in a request must touch nothing
        self._abandoned = False
        self._disk_failed = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, new: Unsent) -> None:
        """Adds to the buffer; nothing is taken any more after `close`."""
        with self._changed:
            if self._status is not None:
                return
            self._unsent.points += new.points
            self._unsent.tags |= new.tags
            self._unsent.files |= new.files
            self._unsent.paths |= new.paths
            self._unsent.tasks |= new.tasks
            if len(self._unsent.points) >= BATCH_POINTS:
                self._changed.notify_all()

    def announce(self, status: str) -> None:
        """Gives the run this status before anything else is sent. May be called by a signal's handler: the
        lock knows its own thread.
        """
        with self._changed:
            self._early = status
            self._changed.notify_all()

    def close(self, status: str, timeout_s: float) -> None:
        """Sends what is left and closes the run; what is not sent in `timeout_s` seconds goes to the file. A
        second call does nothing.
        """
        with self._changed:
            if self._status is not None:
                return
            self._status = status
            self._changed.notify_all()
        try:
            self._thread.join(0.9 * timeout_s)  # the rest of the time is for the disk
        finally:  # an impatient second Ctrl-C loses nothing either
            with self._changed:
                self._abandoned = True
                left = bool(self._unsent)
                kept = self._keep_on_disk()
        if left and kept:
            self.say(
                f"{self._store.name} has not taken everything. Nothing is lost: the rest is in"
                f" {self._pending} and sent on resume"
            )

    def say(self, message: str) -> None:
        try:
            self._warn(message)
        except Exception as error:  # a closed terminal must end neither the thread nor the caller
            logging.getLogger(__name__).debug("warning not delivered: %s (%s)", message, error)

    def _work(self) -> None:
        pause = 0.0  # above 0 while the server does not answer
        while True:
            with self._changed:
                status = self._status  # read before sending: what was put before close() is in the buffer now
            try:
                self._send_all(status)
                if pause:
                    self.say(f"{self._store.name} answers again: everything kept meanwhile is recorded")
                pause = 0.0
            except Exception as error:  # whatever it is: training goes on
                self._after_failure(error, first=pause == 0.0)
                pause = min(max(2 * pause, 1.0), _LONGEST_PAUSE_S)
            if status is not None:
                return
            self._wait(pause)

    def _wait(self, pause: float) -> None:
        def due() -> bool:
            return self._status is not None or (
                pause == 0.0 and (self._early is not None or len(self._unsent.points) >= BATCH_POINTS)
            )

        with self._changed:
            self._changed.wait_for(due, timeout=pause or self._flush_s)

    def _after_failure(self, error: Exception, first: bool) -> None:
        with self._changed:
            if self._abandoned:
                return
            if len(self._unsent.points) > BUFFER_POINTS:
                self._keep_on_disk()
        if first:
            self.say(
                f"{self._store.name} cannot be reached or refuses the data ({_root_reason(error)}). "
                "Training goes on and nothing is lost: the points are kept, and sent as soon as it takes them"
            )

    def _send_all(self, status: str | None) -> None:
        """Empties file and buffer, oldest first; with a status the run is closed before its tasks, which may
        take minutes, and which a closed run takes too.

        What a failure interrupts stays where it was, for the next try.
        """
        self._go_on()
        for message in self._store.open():
            self.say(message)
        if (early := self._early) is not None:
            self._store.close(early)
            self._early = None
        if self._pending.exists():
            kept = read(self._pending)
            self._send_points(kept.points)
            with self._changed:
                self._go_on()
                self._unsent.tags, self._unsent.files = (
                    kept.tags | self._unsent.tags,
                    kept.files | self._unsent.files,
                )
                self._unsent.paths, self._unsent.tasks = (
                    kept.paths | self._unsent.paths,
                    kept.tasks | self._unsent.tasks,
                )
                self._pending.unlink()
        with self._changed:
            points, tags, files = list(self._unsent.points), dict(self._unsent.tags), dict(self._unsent.files)
            paths, tasks = dict(self._unsent.paths), dict(self._unsent.tasks)
        self._send_points(points)
        with self._changed:
            self._go_on()
            del self._unsent.points[: len(points)]
        if tags:
            self._go_on()
            self._store.send_tags(tags)
            self._forget(self._unsent.tags, tags)
        for file, text in files.items():
            self._go_on()
            self._store.send_file(file, text)
            self._forget(self._unsent.files, {file: text})
        for file, path in paths.items():
            self._go_on()
            self._store.send_path(file, path)
            self._forget(self._unsent.paths, {file: path})
        if status is not None:
            self._go_on()
            self._store.close(status)
        for name, task in tasks.items():
            self._go_on()
            self._store.do(task)
            self._forget(self._unsent.tasks, {name: task})

    def _send_points(self, points: list[Point]) -> None:
        for start in range(0, len(points), BATCH_POINTS):
            self._go_on()
            self._store.send_points(points[start : start + BATCH_POINTS])

    def _forget(self, waiting: dict[str, Any], sent: dict[str, Any]) -> None:
        with self._changed:
            self._go_on()
            for name, value in sent.items():
                if waiting.get(name) == value:  # else newer content came meanwhile
                    del waiting[name]

    def _go_on(self) -> None:
        if self._abandoned:
            raise TimeoutError("closed while this was under way")

    def _keep_on_disk(self) -> bool:
        """Moves the buffer to the file; False if the disk does not take it. The caller holds the lock."""
        try:
            if self._unsent:
                append(self._pending, self._unsent)
        except OSError as error:
            if not self._disk_failed:
                self._disk_failed = True
                self.say(
                    f"what waits for {self._store.name} cannot be kept in {self._pending} ({error}): free"
                    " some space, it is in memory only"
                )
            return False
        self._unsent.points, self._unsent.tags, self._unsent.files, self._unsent.paths, self._unsent.tasks = (
            [],
            {},
            {},
            {},
            {},
        )
        return True


def append(path: Path, unsent: Unsent) -> None:
    """Adds to the file, one JSON object a line. Raises OSError."""
    lines: list[dict[str, Any]] = [point._asdict() for point in unsent.points]
    lines += [{"tag": name, "value": value} for name, value in unsent.tags.items()]
    lines += [{"file": name, "text": text} for name, text in unsent.files.items()]
    lines += [{"artifact": name, "path": path} for name, path in unsent.paths.items()]
    lines += [{"task": name, "content": task} for name, task in unsent.tasks.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # the last line may be cut off: what comes now must not be joined to it
    start = "\n" if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(start + "".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> Unsent:
    """What earlier `append`s wrote; lines that a crash cut off are left out. Raises OSError.

    So are files outside the folder that `path` lies in: what is sent, and pictures are removed then, belongs
    to the run.
    """
    unsent = Unsent()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if not _inside(path.parent, entry):
                continue
            if "tag" in entry:
                unsent.tags[entry["tag"]] = str(entry["value"])
            elif "task" in entry:
                unsent.tasks[entry["task"]] = dict(entry["content"])
            elif "artifact" in entry:
                unsent.paths[entry["artifact"]] = str(entry["path"])
            elif "file" in entry:
                unsent.files[entry["file"]] = str(entry["text"])
            else:
                unsent.points.append(
                    Point(str(entry["key"]), float(entry["value"]), int(entry["step"]), int(entry["time"]))
                )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return unsent


def _inside(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the files of an entry lie in the folder, and its artifact in the run's."""
    task = entry.get("content") or {}
    files = [entry.get("path"), task.get("path"), task.get("checkpoint")]
    named = str(entry.get("file") or entry.get("artifact") or "")
    return all(
        Path(file).resolve().is_relative_to(folder.resolve()) for file in files if file is not None
    ) and not (named.startswith("/") or ".." in named.split("/"))


def _root_reason(error: BaseException) -> str:
    """The innermost cause in one line: `[Errno 111] Connection refused`, not the four layers of HTTP around
    it.
    """
    while (
        inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        error = inner
    # before it is cut: half a secret would not be known
    return scrubbed(" ".join(str(error).split()) or type(error).__name__)[:200]
