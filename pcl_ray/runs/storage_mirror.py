"""The driver's side of a run's storage: who trains it, its small files there, and its newest checkpoint here.

A run goes on from any machine: what the local folder lacks is fetched. Locks of files end at a machine's
door, so `owner.json` says who trains: its driver writes it anew again and again, and it counts while it is
fresh by the storage's own clock.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pcl_ray.checkpoints import epoch_files, remote, storage
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.runs import lease
from pcl_ray.runs.folder import RunFolder, write_state_at
from pcl_ray.training.events import Event

CONFIG, STATE, OWNER = "config.yaml", "state.json", "owner.json"
FILES = (STATE, "report.html", "figures.csv", "exhibit.npz", CONFIG)  # the last one makes a folder a run's
_BEAT_S = 30.0
_LAST_BEAT_S = 20.0  # one call of a hurried storage ends sooner, and none is begun after the end


def refused(uri: str) -> Problem | None:
    """Why this storage cannot be used, also because it does not answer."""
    name = storage.VARIABLE if uri == os.environ.get(storage.VARIABLE) else "resources.storage"
    message = storage.problem(uri) or _is_home(uri) or storage.reachable(uri)
    return Problem(name, storage.shown(uri), message) if message else None


def _is_home(uri: str) -> str | None:
    path = uri.removeprefix("file://")
    same = path.startswith("/") and os.path.realpath(path) == os.path.realpath(
        RunFolder.path_of("x").parents[1]
    )
    return "is PCL_RAY_HOME, where everything is already; leave it out" if same else None


def fetch(name: str, overrides: list[str]) -> None:
    """The folder of run `name`, where there is none here, from the storage that `resources.storage=` or
    PCL_RAY_STORAGE names. Raises ConfigError.
    """
    folder = RunFolder.path_of(name)
    given = [text.partition("=")[2] for text in overrides if text.startswith("resources.storage=")]
    uri = given[-1] if given else os.environ.get(storage.VARIABLE)
    if not uri or uri == "null" or (folder / CONFIG).exists():
        return
    if problem := refused(uri):
        raise ConfigError([problem])
    place = storage.of_run(uri, name)
    try:
        there = place.listed()
        if CONFIG not in there:
            raise ConfigError(
                f"there is no run {name!r}, neither in {folder.parent} nor in the storage {place}"
            )
        for file in FILES:
            if file in there:
                place.get(file, folder / file)
    except (RunFailed, OSError) as failure:
        raise ConfigError(f"run {name!r} could not be fetched: {failure}") from failure


def check_free(config: RunConfig, name: str) -> None:
    """Raises ConfigError where a new run cannot have this name because its storage has one of that name."""
    if config.resources.storage and _there(config.resources.storage, name):
        raise _taken(config.resources.storage, name)


def _there(uri: str, name: str) -> bool:
    try:
        return storage.of_run(uri, name).entry(CONFIG) is not None
    except RunFailed as failure:
        raise ConfigError([Problem("resources.storage", storage.shown(uri), str(failure))]) from failure


def _taken(uri: str, name: str) -> ConfigError:
    return ConfigError(
        f"run {name!r} exists already in the storage {storage.shown(uri)}; go on with it by --resume {name},"
        " or choose another --name"
    )


class Keeper:
    """Holds a run's place in its storage; without one, all of this does nothing. Use as a context manager,
    inside that of the run's folder.

    Entering raises Busy where another driver trains the run, ConfigError where the storage cannot be used,
    and brings the local folder up to date.
    """

    def __init__(self, folder: RunFolder, uri: str | None, warn: Callable[[str], None], *, new: bool = False):
        self._folder, self._uri, self._warn, self._new = folder, uri, warn, new
        self._mine = {**lease.this_process(), "token": uuid.uuid4().hex}
        self._sent: dict[str, tuple[int, int]] = {}
        self._away = False
        self._over, self._lost = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of what has been sent
        self._beat = threading.Thread(target=self._beats, name="storage-owner", daemon=True)

    @classmethod
    def resuming(cls, folder: RunFolder, config: RunConfig, warn: Callable[[str], None]) -> Self:
        """Of a run that goes on with this configuration. Raises ConfigError where its storage cannot be
        used.
        """
        uri = config.resources.storage
        if uri and (problem := refused(uri)):
            raise ConfigError([problem])
        return cls(folder, uri, warn)

    def __enter__(self) -> Self:
        if self._uri is None:
            return self
        place = storage.of_run(self._uri, self._folder.name)
        try:
            self._claim(place)
            if self._new:
                remote.forget_newer(self._checkpoints, None)
            else:
                self._catch_up(place)
        except BaseException as failure:
            with suppress(RunFailed):
                self._release(hurried=True)  # nobody else shall wait for a run that did not start
            if isinstance(failure, RunFailed):
                raise ConfigError(
                    [Problem("resources.storage", storage.shown(self._uri), str(failure))]
                ) from failure
            raise
        self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._uri is None:
            return
        self._over.set()
        self._beat.join(_LAST_BEAT_S)  # else it may write owner.json after it was removed
        hurried = kind is not None
        try:
            try:
                self.send(hurried=hurried)
            finally:
                self._release(hurried=hurried)
        except RunFailed as failure:
            self._warn(f"the last files of the run are in {self._folder.path} alone: {failure}")

    def _release(self, *, hurried: bool) -> None:
        """Raises RunFailed where the storage does not answer; then the run is free when `owner.json` is not
        fresh any more.
        """
        assert self._uri is not None
        if not self._lost.is_set() and self._owner() == self._mine:
            storage.of_run(self._uri, self._folder.name, hurried=hurried).remove(OWNER)

    def put_first(self, checkpoint: Path) -> None:
        """The checkpoint that a new run begins with, to where its workers look for one. Raises RunFailed."""
        if self._uri is not None:
            remote.put(storage.of_run(self._uri, self._folder.name), checkpoint, keep=1)

    def send(self, *, hurried: bool = False) -> None:
        """The small files that have changed since, to the storage. Raises RunFailed."""
        if self._uri is None or self._lost.is_set():
            return
        place = storage.of_run(self._uri, self._folder.name, hurried=hurried)
        with self._lock:
            for name in FILES:
                file = self._folder.path / name
                if file.is_file() and self._sent.get(name) != (version := _version(file)):
                    place.write(name, file.read_bytes())
                    self._sent[name] = version

    def bring(self, config: RunConfig, *, hurried: bool = False) -> None:
        """The newest checkpoint, wherever it was written, into the local folder; a warning where that fails,
        once.
        """
        if self._uri is None or self._away:
            return
        place = storage.of_run(self._uri, self._folder.name, hurried=hurried)
        try:
            self._bring(place, config.train.keep_checkpoints)
        except RunFailed as failure:
            self._away = True
            self._warn(f"the newest checkpoint could not be fetched: {failure}")

    def watched(self, handle: Callable[[Event], None]) -> Callable[[Event], None]:
        """`handle`, and RunFailed at the first event after another driver has taken the run over."""

        def watching(event: Event) -> None:
            if self._lost.is_set():
                raise RunFailed(
                    "another process has taken the run over"
                    f" ({self._uri and storage.shown(self._uri)}/runs/{self._folder.name}/{OWNER} names it)"
                )
            handle(event)

        return watching

    @property
    def where(self) -> str | None:
        """The storage's checkpoints, for a message."""
        return (
            f"{storage.shown(self._uri)}, under runs/{self._folder.name}/checkpoints" if self._uri else None
        )

    @property
    def _checkpoints(self) -> Path:
        return self._folder.checkpoints

    def _claim(self, place: storage.Storage) -> None:
        content, since = place.read(OWNER), place.entry(OWNER)
        if self._new and (place.entry(CONFIG) is not None or remote.newest(place)):
            raise _taken(place.uri, self._folder.name)
        if content is not None and since is not None:
            lease.check_free(self._folder.name, content, age_s=(self._now(place) - since.changed_ns) / 1e9)
        place.write(OWNER, json.dumps(self._mine).encode())

    def _now(self, place: storage.Storage) -> int:
        """By the storage's clock."""
        key = f".now-{self._mine['token']}"
        now = place.write(key, b"now").changed_ns
        place.remove(key)
        return now

    def _catch_up(self, place: storage.Storage) -> None:
        """Whoever has the newest checkpoint is right about the run: this folder, as after a change of
        storage, or the storage.
        """
        local, there = epoch_files.latest(self._checkpoints), place.listed()
        newest = remote.newest(place)
        if local is not None and (
            newest is None or epoch_files.epochs_done(local) > epoch_files.epochs_done(Path(newest))
        ):
            remote.put(place, local, self._folder.read_config().train.keep_checkpoints, newest)
            return
        for name in FILES:
            if name in there and name != STATE:
                place.get(name, self._folder.path / name)
        if STATE in there:
            known = {
                name: value
                for name, value in lease.read(place.read(STATE) or b"").items()
                if value is not None
            }
            write_state_at(self._folder.path, **known)
        self._bring(place, self._folder.read_config().train.keep_checkpoints)

    def _bring(self, place: storage.Storage, keep: int) -> None:
        if newest := remote.newest(place):
            remote.fetch(place, newest, self._checkpoints, keep)

    def _beats(self) -> None:
        while not self._over.wait(_BEAT_S):
            # a storage that is away now may be back when the next checkpoint is due
            with suppress(RunFailed):
                found = self._owner()
                if found is not None and found != self._mine:
                    self._lost.set()
                    return
                if not self._over.is_set():
                    self._place().write(OWNER, json.dumps(self._mine).encode())
                if not self._over.is_set():
                    self.send(hurried=True)

    def _place(self) -> storage.Storage:
        assert self._uri is not None
        return storage.of_run(self._uri, self._folder.name, hurried=True)

    def _owner(self) -> dict[str, Any] | None:
        content = self._place().read(OWNER)
        return None if content is None else lease.read(content)


def _version(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
