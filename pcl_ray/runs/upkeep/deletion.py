"""Deletes a run, or a sweep with its trials: its folder, and its copy in a storage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcl_ray import config as configs
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.runs.folder import STATE_FILE, Busy, RunFolder, SweepFolder, read_state_at
from pcl_ray.runs.lease import Lease
from pcl_ray.runs.upkeep import disk
from pcl_ray.support import storage
from pcl_ray.support.paths import CONFIG_FILE
from pcl_ray.support.storage_address import without_secrets
from pcl_ray.support.text import count, listed

_MOST_NAMED = 5


@dataclass(frozen=True)
class Deletion:
    """What would go. reasons: why it should not, each as a sentence's beginning without its full stop."""

    name: str
    kind: Literal["run", "sweep"]
    folders: tuple[Path, ...]
    size: int  # bytes that it frees here
    storages: Mapping[str, str]  # run → the storage that has a copy of it
    recorded: Mapping[str, str]  # run → its number in MLflow
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """What goes, in words."""
        trials = f" and its {count(len(self.folders) - 1, 'trial')}" if self.kind == "sweep" else ""
        return f"{self.kind} {self.name}{trials}"


def plan(name: str, *, sweep: bool = False) -> Deletion:
    """What deleting the run or the sweep of this name would remove. sweep: the sweep, where a run has the
    name, too. Raises ConfigError where there is neither.
    """
    kind = disk.kind_of(name, sweep=sweep)
    runs = disk.trials_of(name) if kind == "sweep" else [RunFolder.path_of(name)]
    folders = [SweepFolder.path_of(name), *runs] if kind == "sweep" else runs
    states = {folder.name: read_state_at(folder) for folder in folders}
    return Deletion(
        name=name,
        kind=kind,
        folders=tuple(folders),
        size=disk.freed(folders),
        storages={folder.name: uri for folder in runs if (uri := _storage_of(folder))},
        recorded={
            run: str(state["mlflow_run_id"]) for run, state in states.items() if state.get("mlflow_run_id")
        },
        reasons=tuple(_reasons(states)),
    )


def delete(deletion: Deletion, *, with_storage: bool = True) -> None:
    """Deletes it: the copies in storages first, so that what was interrupted can be deleted once more. Raises
    Busy where a process has it, ConfigError where a storage does not answer or a file cannot be removed.
    """
    kinds = [SweepFolder if deletion.kind == "sweep" else RunFolder] + [RunFolder] * len(deletion.folders)
    with ExitStack() as held:
        for kind, folder in zip(kinds, deletion.folders, strict=False):
            held.enter_context(kind.open(folder.name))
        for run, uri in deletion.storages.items() if with_storage else ():
            _delete_stored(uri, run)
        for folder in reversed(deletion.folders):  # the sweep after its trials
            disk.remove(folder)


def _storage_of(folder: Path) -> str | None:
    try:
        return configs.load_stored(folder / CONFIG_FILE).resources.storage
    except ConfigError:  # damaged: there is nothing to be known
        return None


def _reasons(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why what has these states by its name should stay."""
    reasons = []
    running = [name for name, state in states.items() if state.get("state") == "running"]
    if running:
        reasons.append(f"{_named(running)} under way, here or on another machine")
    for name, state in states.items():
        if (sweep := state.get("sweep")) and sweep not in states:
            reasons.append(f"{name} is a trial of sweep {sweep}, whose leaderboard names it")
    if dependents := _dependents(set(states)):
        reasons.append(f"{_named(dependents)} made from it")
    return reasons


def _named(names: list[str]) -> str:
    shown = names if len(names) <= _MOST_NAMED else [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED} more"]
    return f"{listed(shown)} {'is' if len(names) == 1 else 'are'}"


def _dependents(names: set[str]) -> list[str]:
    """Other runs that were forked from one of these, or began with its weights."""
    weights = re.compile(
        rf"^\s*init_from:\s*['\"]?({'|'.join(map(re.escape, names))})['\"]?\s*$", re.MULTILINE
    )
    found_names = []
    for path in sorted(RunFolder.root().glob(f"*/{STATE_FILE}")):
        folder = path.parent
        if folder.name in names:
            continue
        origin = str(read_state_at(folder).get("forked_from") or "").partition("@")[0]
        try:
            text = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        if origin in names or weights.search(text):
            found_names.append(folder.name)
    return found_names


def _delete_stored(uri: str, run: str) -> None:
    """Removes a run's copy in its storage; what makes it a run goes last."""
    lease = Lease(uri, run)
    try:
        lease.acquire()
        run_storage = storage.of_run(uri, run)
        for key in sorted(run_storage.list_tree(), key=lambda key: key == CONFIG_FILE):
            run_storage.remove(key)
    except Busy:
        raise
    except RunFailed as failure:
        raise ConfigError(
            f"the copy of {run} in the storage {without_secrets(uri)} could not be deleted: {failure}."
            " Nothing is deleted here; --keep-storage leaves that copy alone"
        ) from failure
