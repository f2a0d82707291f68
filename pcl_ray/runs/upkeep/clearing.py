"""What can go without a run, a sweep or a result being lost: it is found, measured, removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files, remote
from pcl_ray.data.decoded import decoded_cache
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.runs import final_artifacts
from pcl_ray.runs.folder import (
    FIGURES_FILE,
    LOCK_FILE,
    STATE_FILE,
    Busy,
    RunFolder,
    SweepFolder,
    read_history_at,
    read_state_at,
)
from pcl_ray.runs.upkeep import disk
from pcl_ray.support import storage
from pcl_ray.support.files import is_unlocked
from pcl_ray.support.paths import CONFIG_FILE, home

_PARTIAL_AGE_S = 3600.0  # a younger file may still be written, by a report for one, which takes no lock
_PARTIAL = "*.partial"
_ENDED = ("finished", "failed", "stopped", "stopped early")
_SHARDS, _CHECKED, _DECODED = "cache", "checked_images", decoded_cache.FOLDER


@dataclass(frozen=True)
class Clearable:
    """Something that can go. owner: the folder of the run or sweep that must not be under way meanwhile;
    None: no run must. keeps_figures: its last checkpoint goes, whose figures stay as a table. stored: objects
    of its copy in a storage, by their sizes.
    """

    paths: tuple[Path, ...]
    owner: Path | None = None
    keeps_figures: bool = False
    storage: str = ""
    stored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of what can go. word: on the command line."""

    word: str
    title: str
    find: Callable[[Callable[[str], None]], Iterator[Clearable]] = field(repr=False)


def kinds_of(words: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds that these words name, all without any. Raises ConfigError for a word that names none."""
    by_word = {kind.word: kind for kind in KINDS}
    if unknown := [word for word in words if word not in by_word]:
        raise ConfigError(f"{unknown[0]!r} is nothing that can be cleared; one of {', '.join(by_word)}")
    return tuple(kind for kind in KINDS if not words or kind.word in words)


def size_of(clearables: Sequence[Clearable]) -> int:
    """The bytes that all of them free here."""
    return disk.freed([path for each in clearables for path in each.paths])


def stored_size_of(clearables: Sequence[Clearable]) -> int:
    """The bytes that all of them free in storages."""
    return sum(sum(each.stored.values()) for each in clearables)


def clear(clearables: Sequence[Clearable], warn: Callable[[str], None]) -> None:
    """Removes them. What is in use after all stays, with a warning. Raises ConfigError where a file cannot be
    removed.
    """
    for each in clearables:
        with ExitStack() as held:
            try:
                if each.owner is not None:
                    held.enter_context(_kind(each.owner).open(each.owner.name))
                _clear(each)
            except Busy as busy:
                warn(str(busy))
            except RunFailed as failure:
                warn(f"not removed: {failure}")


def _clear(each: Clearable) -> None:
    if each.keeps_figures and each.owner is not None and (history := read_history_at(each.owner)):
        final_artifacts.write_figures(history, each.owner / FIGURES_FILE)
    if each.stored and each.owner is not None:
        run_storage = storage.of_run(each.storage, each.owner.name)
        for key in each.stored:
            run_storage.remove(key)
    for path in each.paths:
        disk.remove(path)


def _kind(folder: Path) -> type[RunFolder]:
    return SweepFolder if folder.parent.name == SweepFolder.ROOT else RunFolder


def _folders(kind: type[RunFolder]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of all runs or sweeps that are not under way here, with their states."""
    for path in sorted(kind.root().glob(f"*/{STATE_FILE}")):
        if is_unlocked(path.parent / LOCK_FILE):
            yield path.parent, read_state_at(path.parent)


def _partial_files(warn: Callable[[str], None]) -> Iterator[Clearable]:
    """Files that were being written, and runs that were being deleted, when a process was killed; damaged
    checkpoints.
    """
    yield from (Clearable((path,)) for path in (home() / disk.LEAVING).glob("*"))
    for kind in (RunFolder, SweepFolder):
        for folder, _ in _folders(kind):
            damaged = epoch_files.damaged(epoch_files.folder_of(folder))
            if paths := tuple(path for path in (*folder.rglob(_PARTIAL), *damaged) if _is_old(path)):
                yield Clearable(paths, folder)
    for folder in (home() / _SHARDS, home() / _CHECKED):
        yield from (Clearable((path,)) for path in folder.glob(_PARTIAL) if _is_old(path))


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > _PARTIAL_AGE_S
    return False


def _earlier_checkpoints(warn: Callable[[str], None]) -> Iterator[Clearable]:
    """Those of finished runs beyond the last, here and in their storage."""
    for folder, state in _folders(RunFolder):
        if state.get("state") not in ("finished", "stopped early"):
            continue
        uri, stored, best = "", {}, []
        with suppress(ConfigError):  # a damaged configuration names no storage
            config = configs.load_stored(folder / CONFIG_FILE)
            uri = config.resources.storage or ""
            if config.train.keep_best:
                best = epoch_files.best_epochs(read_history_at(folder), config.train.keep_best)
        checkpoints = epoch_files.folder_of(folder)
        names = [path.name for path in epoch_files.complete(checkpoints)]
        paths = tuple(checkpoints / name for name in epoch_files.superseded(names, 1, best))
        if uri:
            try:
                stored = _stored_checkpoints(uri, folder.name, best)
            except RunFailed as failure:
                warn(str(failure))
        if paths or stored:
            yield Clearable(paths, folder, storage=uri, stored=stored)


def _stored_checkpoints(uri: str, run: str, best: Sequence[int]) -> dict[str, int]:
    """The objects of checkpoints before the newest, but for those after the epochs `best`, and their sizes.
    Raises RunFailed.
    """
    run_storage = storage.of_run(uri, run, hurried=True)
    versions = run_storage.list_objects(epoch_files.FOLDER)
    names = epoch_files.superseded(remote.names(run_storage), 1, best)
    return {f"{epoch_files.FOLDER}/{name}": versions[name].size for name in names}


def _trials(warn: Callable[[str], None]) -> Iterator[Clearable]:
    """Checkpoints of the trials of sweeps that have finished, but for the best configuration's."""
    for sweep, state in _folders(SweepFolder):
        best = disk.best_trials(sweep)
        if state.get("state") != "finished" or not best:
            continue
        for folder in disk.trials_of(sweep.name):
            checkpoints = tuple(epoch_files.complete(epoch_files.folder_of(folder)))
            if checkpoints and folder.name not in best and is_unlocked(folder / LOCK_FILE):
                yield Clearable(checkpoints, folder, keeps_figures=True)


def _warm_ups(warn: Callable[[str], None]) -> Iterator[Clearable]:
    """States that trials of a sweep that has finished began with."""
    for sweep, state in _folders(SweepFolder):
        if state.get("state") == "finished" and (sweep / "warmups").is_dir():
            yield Clearable((sweep / "warmups",), sweep)


def _ray_files(warn: Callable[[str], None]) -> Iterator[Clearable]:
    """Ray Train's own files of runs that have ended: it makes new ones when a run goes on."""
    for folder, state in _folders(RunFolder):
        if state.get("state") in _ENDED and (folder / "ray").is_dir():
            yield Clearable((folder / "ray",), folder)


def _cached(folder: Path) -> Iterator[Clearable]:
    """What is in a cache, as long as no run reads it."""
    under_way = any(
        not is_unlocked(path)
        for kind in (RunFolder, SweepFolder)
        for path in kind.root().glob(f"*/{LOCK_FILE}")
    )
    if folder.is_dir() and not under_way:
        paths = tuple(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
        if paths := tuple(path for path in paths if not path.match(_PARTIAL)):
            yield Clearable(paths)


KINDS = (
    Kind("partial", "files that were never completed", _partial_files),
    Kind("checkpoints", "checkpoints of finished runs before the last", _earlier_checkpoints),
    Kind("trials", "checkpoints of sweeps' trials but the best's", _trials),
    Kind("warm-ups", "shared warm-ups of finished sweeps", _warm_ups),
    Kind("ray", "Ray's own files of runs that have ended", _ray_files),
    Kind("shards", "shards fetched and unpacked (made anew)", lambda warn: _cached(home() / _SHARDS)),
    Kind("decoded", "decoded pictures (decoded anew)", lambda warn: _cached(home() / _DECODED)),
    Kind("checks", "which images can be read (looked at anew)", lambda warn: _cached(home() / _CHECKED)),
)
