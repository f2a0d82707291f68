"""Checkpoints in the storage of a run: uploaded, listed, downloaded to a node. Without torch, so that the
driver can use it before it takes seconds to load it.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from pcl_ray.checkpoints import epoch_files
from pcl_ray.checkpoints.epoch_files import FOLDER
from pcl_ray.errors import RunFailed
from pcl_ray.support.files import LockHeld, file_lock
from pcl_ray.support.storage import Storage


def upload(
    run_storage: Storage,
    path: Path,
    keep: int,
    previous: str | None = None,
    kept_epochs: Collection[int] = (),
) -> None:
    """Uploads a checkpoint and then removes all but the newest `keep` and those after `kept_epochs`.

    previous: the name of the last one uploaded. Raises RunFailed if this fails; one too many is no failure.
    """
    try:
        run_storage.upload(path, f"{FOLDER}/{path.name}")
    except RunFailed as failure:
        last_good = f"The last good one there is {previous}" if previous else "There is none from before"
        raise RunFailed(
            f"the checkpoint after {epoch_files.progress_text(path)} is in {path}, but not in the storage of"
            f" the run: {failure}. {last_good}"
        ) from failure
    with suppress(RunFailed):
        for name in epoch_files.superseded(names(run_storage), keep, kept_epochs):
            run_storage.remove(f"{FOLDER}/{name}")


def names(run_storage: Storage) -> list[str]:
    """The names of all complete checkpoints in the storage, oldest first. Raises RunFailed."""
    complete = (name for name in run_storage.list_objects(FOLDER) if epoch_files.is_complete(name))
    return sorted(complete, key=lambda name: epoch_files.position(Path(name)))


def newest(run_storage: Storage) -> str | None:
    """The name of the newest checkpoint in the storage: what the run goes on from. Raises RunFailed."""
    return next(reversed(names(run_storage)), None)


def download(run_storage: Storage, name: str, folder: Path, keep: int) -> Path:
    """The checkpoint as a file of `folder`. It is downloaded once a node, by whichever of its processes is
    first, unless the file has that very version already.

    All but the newest `keep` files of the folder are removed. Raises RunFailed.
    """
    key, path = f"{FOLDER}/{name}", folder / name
    version = run_storage.version(key)
    if version is None:
        raise RunFailed(
            f"storage {run_storage}: checkpoint {name} was there a moment ago and is gone; resume the run"
            " once more"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            with suppress(LockHeld):  # a file downloaded twice is not wrong
                locks.enter_context(file_lock(folder / ".fetch", run_storage.time_limit_s(version.size)))
            if not version.matches(path):
                run_storage.download(key, path)
    except OSError as error:
        raise RunFailed(
            f"the checkpoint {name} cannot be kept in {folder} ({error.strerror or error})"
        ) from error
    epoch_files.prune(folder, keep)
    return path


def remove_newer(folder: Path, name: str | None) -> None:
    """Removes the files of `folder` that are newer than the checkpoint that the run goes on from (all of
    them, where that is None): leftovers of another course of the run.
    """
    position = epoch_files.position(Path(name)) if name else (0, 0)
    for path in epoch_files.complete(folder):
        if epoch_files.position(path) > position:
            with suppress(OSError):
                path.unlink()
