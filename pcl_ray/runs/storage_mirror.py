"""The driver's side of a run's storage: its small files are mirrored there, and its newest checkpoint here.

A run goes on from any machine: what the local folder lacks is fetched. Who trains the run is said by a lease,
see `runs.lease`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pcl_ray.checkpoints import epoch_files, remote
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.runs import lease
from pcl_ray.runs.folder import (
    CONFIG_FILE,
    FIGURES_FILE,
    REPORT_FILE,
    SNAPSHOT_FILE,
    STATE_FILE,
    RunFolder,
    parse_entries,
    write_state_at,
)
from pcl_ray.runs.lease import Lease
from pcl_ray.support import storage, storage_address
from pcl_ray.support.storage_address import without_secrets

# The small files of a run that are mirrored. The last one makes a folder a run's.
FILES = (STATE_FILE, REPORT_FILE, FIGURES_FILE, SNAPSHOT_FILE, CONFIG_FILE)
_LAST_RENEWAL_S = 20.0  # one call of a hurried storage ends sooner, and none is begun after the end


def problem_with(uri: str) -> Problem | None:
    """Why this storage cannot be used, also because it does not answer; None where it can."""
    name = storage.VARIABLE if uri == os.environ.get(storage.VARIABLE) else "resources.storage"
    message = storage_address.problem_with(uri) or _is_home(uri) or storage.access_problem(uri)
    return Problem(name, without_secrets(uri), message) if message else None


def _is_home(uri: str) -> str | None:
    path, home = uri.removeprefix("file://"), RunFolder.path_of("x").parents[1]
    if path.startswith("/") and os.path.realpath(path) == os.path.realpath(home):
        return "is PCL_RAY_HOME, where everything is already; leave it out"
    return None


def fetch(name: str, overrides: list[str]) -> None:
    """Fetches the folder of run `name`, where there is none on this machine, from the storage that
    `resources.storage=` or PCL_RAY_STORAGE names. Raises ConfigError.
    """
    folder = RunFolder.path_of(name)
    given = [text.partition("=")[2] for text in overrides if text.startswith("resources.storage=")]
    uri = given[-1] if given else os.environ.get(storage.VARIABLE)
    if not uri or uri == "null" or (folder / CONFIG_FILE).exists():
        return
    if problem := problem_with(uri):
        raise ConfigError([problem])
    run_storage = storage.of_run(uri, name)
    try:
        stored = run_storage.list_objects()
        if CONFIG_FILE not in stored:
            raise ConfigError(
                f"there is no run {name!r}, neither in {folder.parent} nor in the storage {run_storage}"
            )
        for file in FILES:
            if file in stored:
                run_storage.download(file, folder / file)
    except (RunFailed, OSError) as failure:
        raise ConfigError(f"run {name!r} could not be fetched: {failure}") from failure


def fetch_source(source: str | Path) -> None:
    """Fetches the folder of the run that a source of weights names, where that is no file here and
    PCL_RAY_STORAGE names a storage. Raises ConfigError where neither this machine nor the storage has it.
    """
    text = str(source)
    if os.environ.get(storage.VARIABLE) and "/" not in text and not Path(text).exists():
        fetch(text, [])


def check_free(config: RunConfig, name: str) -> None:
    """Raises ConfigError where a new run cannot have this name because its storage has one of that name."""
    uri = config.resources.storage
    if not uri:
        return
    try:
        exists = storage.of_run(uri, name).version(CONFIG_FILE) is not None
    except RunFailed as failure:
        raise _unusable(uri, failure) from failure
    if exists:
        raise _name_taken(uri, name)


def _name_taken(uri: str, name: str) -> ConfigError:
    return ConfigError(
        f"run {name!r} exists already in the storage {without_secrets(uri)}; go on with it by --resume"
        f" {name}, or choose another --name"
    )


def _unusable(uri: str, failure: RunFailed) -> ConfigError:
    return ConfigError([Problem("resources.storage", without_secrets(uri), str(failure))])


def for_new_run(
    folder: RunFolder, config: RunConfig, warn: Callable[[str], None]
) -> StorageMirror | NullMirror:
    """The mirror of a run that begins with this configuration, to be entered inside the run's folder."""
    uri = config.resources.storage
    return StorageMirror(folder, uri, warn, new=True) if uri is not None else NullMirror()


def for_resumed_run(
    folder: RunFolder, config: RunConfig, warn: Callable[[str], None]
) -> StorageMirror | NullMirror:
    """The mirror of a run with this configuration. Raises ConfigError where its storage cannot be used."""
    uri = config.resources.storage
    if uri and (problem := problem_with(uri)):
        raise ConfigError([problem])
    return StorageMirror(folder, uri, warn) if uri is not None else NullMirror()


class NullMirror:
    """The mirror of a run that has no storage: all of this does nothing."""

    checkpoints_address: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def upload_first_checkpoint(self, checkpoint: Path) -> None:
        pass

    def upload(self) -> None:
        pass

    def download_checkpoint(self, keep: int, *, hurried: bool = False) -> None:
        pass

    def check_held(self) -> None:
        pass


class StorageMirror:
    """The lease and the mirror of a run in its storage, to be used as a context manager inside that of the
    run's folder.

    Entering raises Busy where another driver trains the run, ConfigError where the storage cannot be used,
    and brings the local folder up to date. While it is entered, a thread renews the lease and uploads the
    small files.
    """

    def __init__(self, folder: RunFolder, uri: str, warn: Callable[[str], None], *, new: bool = False):
        self._folder, self._uri, self._warn, self._new = folder, uri, warn, new
        self._lease = Lease(uri, folder.name)
        self._uploaded: dict[str, tuple[int, int]] = {}  # the versions of the small files
        self._upload_lock = threading.Lock()
        self._download_failed = False
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="storage-lease", daemon=True)

    def __enter__(self) -> Self:
        run_storage = self._storage()
        try:
            if self._new and (run_storage.version(CONFIG_FILE) is not None or remote.newest(run_storage)):
                raise _name_taken(self._uri, self._folder.name)
            self._lease.acquire()
            if self._new:
                remote.remove_newer(self._folder.checkpoints, None)
            else:
                self._catch_up(run_storage)
        except BaseException as failure:
            with suppress(RunFailed):
                self._lease.release(hurried=True)  # nobody else shall wait for a run that did not start
            if isinstance(failure, RunFailed):
                raise _unusable(self._uri, failure) from failure
            raise
        self._renewal.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._renewal.join(_LAST_RENEWAL_S)  # else it may write the lease after it was removed
        hurried = kind is not None
        try:
            try:
                self.upload(hurried=hurried)
            finally:
                self._lease.release(hurried=hurried)
        except RunFailed as failure:
            self._warn(f"the last files of the run are in {self._folder.path} alone: {failure}")

    @property
    def checkpoints_address(self) -> str | None:
        """Where its checkpoints are, for a message."""
        return f"{without_secrets(self._uri)}, under runs/{self._folder.name}/{epoch_files.FOLDER}"

    def upload_first_checkpoint(self, checkpoint: Path) -> None:
        """Uploads the checkpoint that a new run begins with, where workers look for it. Raises RunFailed."""
        remote.upload(self._storage(), checkpoint, keep=1)

    def upload(self, *, hurried: bool = False) -> None:
        """Uploads the small files that have changed since the last time. Raises RunFailed."""
        if self._lease.lost:
            return
        run_storage = self._storage(hurried=hurried)
        with self._upload_lock:
            for name in FILES:
                file = self._folder.path / name
                if file.is_file() and self._uploaded.get(name) != (version := _version(file)):
                    run_storage.write(name, file.read_bytes())
                    self._uploaded[name] = version

    def download_checkpoint(self, keep: int, *, hurried: bool = False) -> None:
        """Downloads the newest checkpoint, wherever it was written, into the local folder, which then has the
        newest `keep`. A warning where that fails, once.
        """
        if self._download_failed:
            return
        try:
            self._fetch_newest(self._storage(hurried=hurried), keep)
        except RunFailed as failure:
            self._download_failed = True
            self._warn(f"the newest checkpoint could not be fetched: {failure}")

    def check_held(self) -> None:
        """Raises RunFailed after another driver has taken the run over."""
        self._lease.check_held()

    def _storage(self, *, hurried: bool = False) -> storage.Storage:
        return storage.of_run(self._uri, self._folder.name, hurried=hurried)

    def _catch_up(self, run_storage: storage.Storage) -> None:
        """Brings the folder or the storage up to date: whichever has the newest checkpoint is right about the
        run. After a change of storage that is the folder.
        """
        local, stored = self._folder.newest_checkpoint(), run_storage.list_objects()
        newest = remote.newest(run_storage)
        if local is not None and (
            newest is None or epoch_files.position(local) > epoch_files.position(Path(newest))
        ):
            remote.upload(run_storage, local, self._folder.read_config().train.keep_checkpoints, newest)
            return
        for name in FILES:
            if name in stored and name != STATE_FILE:
                run_storage.download(name, self._folder.path / name)
        if STATE_FILE in stored:
            entries: Any = parse_entries(run_storage.read(STATE_FILE) or b"")
            given = {name: value for name, value in entries.items() if value is not None}
            write_state_at(self._folder.path, **given)
        self._fetch_newest(run_storage, self._folder.read_config().train.keep_checkpoints)

    def _fetch_newest(self, run_storage: storage.Storage, keep: int) -> None:
        if newest := remote.newest(run_storage):
            remote.download(run_storage, newest, self._folder.checkpoints, keep)

    def _renew(self) -> None:
        while not self._ended.wait(lease.RENEW_EVERY_S):
            # a storage that is away now may be back when the next checkpoint is due
            with suppress(RunFailed):
                self._lease.look()
                if self._lease.lost:
                    return
                if not self._ended.is_set():
                    self._lease.renew()
                if not self._ended.is_set():
                    self.upload(hurried=True)


def _version(file: Path) -> tuple[int, int]:
    """What tells one version of a file from another: its size and time."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
