"""The files of checkpoints by their names. Without torch, so that the driver can look before loading it.

`epoch_00012.pt`: twelve epochs are done. `epoch_00012_step_00340.pt`: and 340 steps of the thirteenth.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_ray.config.figures import OBJECTIVES

FOLDER = "checkpoints"  # below the folder of a run, here and in a storage

_NAME = re.compile(r"epoch_(\d{5,})(?:_step_(\d{5,}))?\.pt$")
_DAMAGED = ".damaged"


def folder_of(run_dir: Path) -> Path:
    """The folder of the checkpoints of the run in `run_dir`."""
    return run_dir / FOLDER


def path_of(folder: Path, epochs: int, steps: int = 0) -> Path:
    """The checkpoint after so many epochs, and so many steps of the next one."""
    within = f"_step_{steps:05d}" if steps else ""
    return folder / f"epoch_{epochs:05d}{within}.pt"


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint; None where there is none."""
    checkpoints = complete(folder)
    return checkpoints[-1] if checkpoints else None


def complete(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first: those within an epoch too."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.glob("epoch_*.pt") if is_complete(path.name)), key=position)


def after_epochs(folder: Path) -> list[Path]:
    """The complete checkpoints that were made between two epochs, oldest first."""
    return [path for path in complete(folder) if not steps_done(path)]


def is_complete(name: str) -> bool:
    """Whether a file of this name is a complete checkpoint."""
    return _NAME.match(name) is not None


def position(path: Path) -> tuple[int, int]:
    """How far a checkpoint's name says the run was: epochs done, steps of the next one."""
    match = _NAME.search(path.name)
    assert match, path
    return int(match[1]), int(match[2] or 0)


def epochs_done(path: Path) -> int:
    """The epochs that a checkpoint's name says are done."""
    return position(path)[0]


def steps_done(path: Path) -> int:
    """The steps of a further epoch that a checkpoint's name says are done; 0 for one between two epochs."""
    return position(path)[1]


def progress_text(path: Path) -> str:
    """How far a checkpoint is, for a sentence: `epoch 12`, `epoch 12 and 340 steps`."""
    epochs, steps = position(path)
    return f"epoch {epochs}" + (f" and {steps} steps" if steps else "")


def best_epochs(history: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """The epochs, counted from 1, after which a run was best by what runs are compared by; of equal ones the
    earlier. history: {"epoch", "metrics"} of each.
    """
    for objective in OBJECTIVES:
        measured = [entry for entry in history if objective.name in entry["metrics"]]
        if measured:
            measured.sort(key=lambda entry: -entry["metrics"][objective.name])
            return [entry["epoch"] + 1 for entry in measured[:count]]
    return []


def superseded(names: Collection[str], keep: int, kept_epochs: Collection[int] = ()) -> list[str]:
    """Those of the checkpoints `names` that need not be kept any more: all between two epochs but the newest
    `keep` and those after `kept_epochs`, and all within an epoch that are not the newest of all.
    """
    ordered = sorted((Path(name) for name in names), key=position)
    newest = {path.name for path in [path for path in ordered if not steps_done(path)][-keep:]}
    newest |= {path.name for path in ordered[-1:]}
    newest |= {path.name for path in ordered if epochs_done(path) in kept_epochs and not steps_done(path)}
    return [path.name for path in ordered if path.name not in newest]


def prune(folder: Path, keep: int, kept_epochs: Collection[int] = ()) -> None:
    """Removes the complete checkpoints that are `superseded`."""
    for name in superseded([path.name for path in complete(folder)], keep, kept_epochs):
        if not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)


def damaged(folder: Path) -> list[Path]:
    """What `set_aside` has left in the folder."""
    return sorted(folder.glob(f"epoch_*{_DAMAGED}*"))


def set_aside(path: Path) -> Path:
    """Gives a damaged checkpoint another name, under which nothing goes on from it; returns that.

    Raises OSError.
    """
    number, target = 1, path.with_name(path.name + _DAMAGED)
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{_DAMAGED}{number}")
    os.rename(path, target)
    return target
