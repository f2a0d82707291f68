"""The files of checkpoints by their names. Without torch, so that the driver can look before loading it."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = "checkpoints"  # below the folder of a run, here and in a storage

_NAME = re.compile(r"epoch_(\d{5,})\.pt$")


def folder_of(run_dir: Path) -> Path:
    """The folder of the checkpoints of the run in `run_dir`."""
    return run_dir / FOLDER


def path_of(folder: Path, epochs: int) -> Path:
    """The checkpoint after so many epochs: `epoch_00012.pt` after twelve."""
    return folder / f"epoch_{epochs:05d}.pt"


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint; None where there is none."""
    checkpoints = complete(folder)
    return checkpoints[-1] if checkpoints else None


def complete(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.glob("epoch_*.pt") if is_complete(path.name)), key=epochs_done)


def is_complete(name: str) -> bool:
    """Whether a file of this name is a complete checkpoint."""
    return _NAME.match(name) is not None


def epochs_done(path: Path) -> int:
    """The epochs that a checkpoint's name says are done."""
    match = _NAME.search(path.name)
    assert match, path
    return int(match[1])


def prune(folder: Path, keep: int) -> None:
    """Removes all complete checkpoints but the newest `keep`."""
    for path in complete(folder)[:-keep]:
        path.unlink(missing_ok=True)
