"""Checks whether a sweep's folder may be gone on from. Ray Tune keeps its searcher, scheduler and trials as
pickles, also inside its JSON files: reading them runs what is in them. So they must be ours, and nobody else
may have been able to write them.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pcl_ray.errors import ConfigError

TUNE = "tune"
SPACES = ("space.py", "space.yaml", "space.yml")  # as `driver` writes them
_FILES = (*SPACES, "sweep.yaml", "recipe.yaml")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PRIVATE = 0o700


def make_private(folder: Path) -> Path:
    """The folder for Ray Tune, closed to all others. Raises ConfigError where it belongs to another user."""
    tune_folder = (folder / TUNE).resolve()
    tune_folder.mkdir(mode=_PRIVATE, exist_ok=True)
    _check_owner(tune_folder)
    with suppress(OSError):  # storage without rights
        tune_folder.chmod(_PRIVATE)
    return tune_folder


def keep_from_others(folder: Path) -> None:
    """What a sweep is gone on from can be read by others, but not written, whatever the umask is."""
    for path in (folder, *(folder / name for name in _FILES)):
        with suppress(OSError):  # not there, or storage without rights
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_WRITE)


def check(folder: Path) -> None:
    """Raises ConfigError if another user owns, or could have written, what resuming the sweep executes."""
    folder = folder.resolve()
    for path in (folder, *(folder / name for name in _FILES)):
        if os.path.lexists(path):
            _check_owner(path)
            _check_writers(path)
    tune_folder = (folder / TUNE).resolve()
    if not tune_folder.exists():
        return
    for path in (tune_folder, *_below(tune_folder)):
        _check_owner(path)
        if tune_folder.stat().st_mode & 0o077:  # else nobody else gets in to write
            _check_writers(path)


def _below(tune_folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"{error.filename} cannot be looked into ({error.strerror}): give yourself the right to, or start"
            " a new sweep"
        ) from None

    for folder, folders, files in os.walk(tune_folder, onerror=refuse):
        yield from (Path(folder, name) for name in (*folders, *files))


def _check_owner(path: Path) -> None:
    """Root may do everything anyway, so that its files are no worse than ours."""
    status = path.lstat()
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to another user (number {status.st_uid}), and {_WHY}: start a sweep of your own"
            " under another --name"
        )
    if stat.S_ISLNK(status.st_mode):
        raise ConfigError(f"{path} is a link, and {_WHY}: put the file itself there, or start a new sweep")


def _check_writers(path: Path) -> None:
    if path.stat().st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"{path} can be written by others, and {_WHY}: if you trust them, chmod -R go-w"
            f" {shlex.quote(str(path))}, else start a new sweep; on storage that knows no rights, with"
            " PCL_RAY_HOME elsewhere"
        )


_WHY = "going on with the sweep would run what is in it"
