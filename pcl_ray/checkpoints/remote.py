"""Checkpoints in a run's storage: put there, found, brought to a node. Without torch, so that the driver can
use it before it takes seconds to load it.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from pcl_ray.checkpoints.epoch_files import FOLDER, complete, epochs_done, is_complete
from pcl_ray.checkpoints.storage import Storage
from pcl_ray.errors import RunFailed
from pcl_ray.support.files import LockHeld, file_lock


def put(place: Storage, path: Path, keep: int, before: str | None = None) -> None:
    """Puts a checkpoint there and then removes all but the newest `keep`. before: the name of the one that
    was put there last.

    Raises RunFailed where it cannot be put there; one too many is no failure.
    """
    try:
        place.put(path, f"{FOLDER}/{path.name}")
    except RunFailed as failure:
        raise RunFailed(
            f"the checkpoint after epoch {epochs_done(path)} is in {path}, but not in the storage of the run:"
            f" {failure}. "
            + (f"The last good one there is {before}" if before else "There is none from before")
        ) from failure
    with suppress(RunFailed):
        for name in names(place)[:-keep]:
            place.remove(f"{FOLDER}/{name}")


def names(place: Storage) -> list[str]:
    """All complete checkpoints there, oldest first."""
    return sorted(
        (name for name in place.listed(FOLDER) if is_complete(name)), key=lambda name: epochs_done(Path(name))
    )


def newest(place: Storage) -> str | None:
    """The name of the newest checkpoint there: what the run goes on from."""
    found = names(place)
    return found[-1] if found else None


def fetch(place: Storage, name: str, folder: Path, keep: int) -> Path:
    """The checkpoint as a file of `folder`: fetched once a node, whoever of its processes is first, unless
    that very version is there.

    All but the newest `keep` there are removed. Raises RunFailed.
    """
    key, path = f"{FOLDER}/{name}", folder / name
    entry = place.entry(key)
    if entry is None:
        raise RunFailed(
            f"storage {place}: checkpoint {name} was there a moment ago and is gone; resume the run once more"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            with suppress(LockHeld):  # a file fetched twice is not wrong
                locks.enter_context(file_lock(folder / ".fetch", place.limit_s(entry.size)))
            if not entry.is_of(path):
                place.get(key, path)
    except OSError as error:
        raise RunFailed(
            f"the checkpoint {name} cannot be kept in {folder} ({error.strerror or error})"
        ) from error
    for old in complete(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def forget_newer(folder: Path, name: str | None) -> None:
    """Removes local checkpoints that are newer than the one that the run goes on from (all, where that is
    none): leftovers of another course.
    """
    done = epochs_done(Path(name)) if name else 0
    for path in complete(folder):
        if epochs_done(path) > done:
            with suppress(OSError):
                path.unlink()
