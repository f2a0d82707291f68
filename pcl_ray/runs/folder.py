"""The folder of a run or a sweep under PCL_RAY_HOME: its configuration, its state, its lock.

runs/NAME/    config.yaml  state.json  lock  checkpoints/epoch_00012.pt  ray/  mlflow_pending.jsonl
sweeps/NAME/  config.yaml (of the recipe)  sweep.yaml  space.py  state.json  lock  tune/  warmups/  results
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack

from filelock import BaseFileLock

from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.support import machine
from pcl_ray.support.files import LockHeld, acquire_lock, write_text
from pcl_ray.support.paths import CONFIG_FILE, RUNS, home
from pcl_ray.support.redaction import scrubbed
from pcl_ray.support.text import suggestion

STATE_FILE, LOCK_FILE = "state.json", "lock"
REPORT_FILE, FIGURES_FILE, SNAPSHOT_FILE = "report.html", "figures.csv", "exhibit.npz"
MEMBERS_FILE = "prototypes.csv"  # the prototypes of each image
DATA_FILE = "data.json"  # what was found of its pictures
# stopped early: by the scheduler of its sweep
EndState = Literal["finished", "failed", "stopped", "stopped early"]
State = Literal["running"] | EndState


class StateEntries(TypedDict, total=False):
    """The entries of state.json. Any may be missing: earlier versions wrote fewer, and runs are killed."""

    state: State
    error: str | None
    command: str  # what was typed
    began_at: float  # seconds since 1970
    start: dict[str, float]  # when each thing was begun until the first training step, likewise
    fingerprint: str  # of the images
    content: str  # a hash of what is in their files; "" where that is not known
    forked_from: str  # RUN@EPOCHS
    weights: str  # what it began with, where that is not random
    looked: bool  # whether the clusters of the first look have been shown
    # what `pcl-ray status` shows of it under way
    phase: str  # starting, training, features, clustering, evaluation, recording; "" when it has ended
    machine: str  # `support.machine.identity` of its driver
    submission_id: str | None  # of its Ray job
    mlflow_run_id: str | None
    link: str  # of the run in the dashboard
    progress: dict[str, Any]  # `event_router.progress`; of a sweep `sweep.progress.ProgressCallback`
    waits_for: str  # "" where it does not wait
    waits_since: float | None
    # what reports show
    num_images: int
    num_holdout: int
    num_clusters: list[int]
    steps_per_epoch: int
    class_names: list[str]
    versions: dict[str, str]
    # sweeps alone
    objective: dict[str, str]  # "metric", "direction"
    knobs: dict[str, str]  # the swept ones, and what they may be, in words
    recipe_point: dict[str, Any] | None  # the recipe's own values of the swept knobs
    results: dict[str, float]  # figures of the best configuration on the test split
    # trials of a sweep alone
    sweep: str
    title: str
    point: dict[str, Any]
    seed: int
    member: int | None  # of a population
    began: int  # epochs that another trial trained for it
    epochs: int  # done
    trial: dict[str, Any]  # its summary
    exploits: list[dict[str, Any]]
    recorded: bool  # whether MLflow knows how it ended


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Busy(ConfigError):
    """Another process holds the folder."""


@dataclass
class RunFolder:
    """Held by one process at a time. Use as a context manager."""

    ROOT: ClassVar[str] = RUNS
    KIND: ClassVar[str] = "run"

    name: str
    path: Path
    lock: BaseFileLock

    @classmethod
    def create(cls, name: str, config: RunConfig) -> Self:
        """A new run's folder. Raises ConfigError where the name is taken or not allowed."""
        path = cls.path_of(name)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            # without a config.yaml it was made by a process that was killed right after: nothing is in it
            cls.check_free(name)
        folder = cls(name, path, cls._locked(path, name))
        folder.write_config(config)
        folder.write_state(
            state="running", phase="starting", machine=machine.identity(), began_at=time.time()
        )
        return folder

    @classmethod
    def open(cls, name: str) -> Self:
        """An existing run's folder. Raises ConfigError where there is none, or another process trains it."""
        path = cls.existing(name)
        return cls(name, path, cls._locked(path, name))

    @classmethod
    def existing(cls, name: str) -> Path:
        """Where the folder of this name is. Raises ConfigError where there is none."""
        path = cls.path_of(name)
        if not (path / CONFIG_FILE).is_file():
            hint = suggestion(name, cls.names(), start="; ")
            raise ConfigError(f"there is no {cls.KIND} {name!r} under {home() / cls.ROOT}{hint}")
        return path

    @classmethod
    def names(cls) -> list[str]:
        """The names of all that there are here."""
        return sorted(entry.parent.name for entry in cls.root().glob(f"*/{CONFIG_FILE}"))

    @classmethod
    def root(cls) -> Path:
        """The folder that holds those of all runs, or of all sweeps."""
        return home() / cls.ROOT

    @classmethod
    def path_of(cls, name: str) -> Path:
        """Where the folder of this name is or would be. Raises ConfigError for a name that is not allowed."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{cls.KIND} name {name!r} is not allowed: letters, digits, '.', '_' and '-', at most 100,"
                " beginning with a letter or digit"
            )
        return home() / cls.ROOT / name

    @classmethod
    def check_free(cls, name: str) -> None:
        """Raises ConfigError where a new one cannot have this name."""
        if (cls.path_of(name) / CONFIG_FILE).exists():
            raise ConfigError(
                f"{cls.KIND} {name!r} exists already; go on with it by --resume {name}, or choose another"
                " --name"
            )

    @classmethod
    def free_name(cls, stem: str, stamp: str) -> str:
        """`stem-stamp`, with a number where that is taken."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or cls.KIND
        names = (f"{base[:60]}-{stamp}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
        return next(name for name in names if not cls.path_of(name).exists())

    @classmethod
    def _locked(cls, path: Path, name: str) -> BaseFileLock:
        if (path / LOCK_FILE).is_dir():
            raise ConfigError(
                f"{path / LOCK_FILE} is a folder, and no lock of {cls.KIND} {name!r}; remove it"
            )
        try:
            return acquire_lock(path / LOCK_FILE)
        except LockHeld:
            raise Busy(
                f"{cls.KIND} {name!r} is being trained by another process; wait for it or stop it first"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return epoch_files.folder_of(self.path)

    def newest_checkpoint(self) -> Path | None:
        return epoch_files.latest(self.checkpoints)

    def read_history(self) -> list[dict[str, Any]]:
        return read_history_at(self.path)

    def read_config(self) -> RunConfig:
        return configs.load_stored(self.path / CONFIG_FILE)

    def write_config(self, config: RunConfig) -> None:
        try:
            write_text(self.path / CONFIG_FILE, config.to_yaml())
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror}): free some space, or set PCL_RAY_HOME to"
                " another folder"
            ) from None

    def read_state(self) -> dict[str, Any]:
        return read_state_at(self.path)

    def write_state(self, **changes: Unpack[StateEntries]) -> None:
        """Changes some entries of state.json. A full disk must not end a run for it."""
        write_state_at(self.path, **changes)


class SweepFolder(RunFolder):
    """The same for a sweep; its config.yaml is what its trials have in common."""

    ROOT = "sweeps"
    KIND = "sweep"


def write_state_at(path: Path, **changes: Unpack[StateEntries]) -> None:
    """`RunFolder.write_state` from outside, for a run that another process may hold."""
    state: dict[str, Any] = {**read_state_at(path), **changes}
    for name in ("error", "command"):
        if name in changes and isinstance(state[name], str):
            state[name] = scrubbed(state[name])
    with suppress(OSError):
        write_text(path / STATE_FILE, json.dumps(state, indent=2))


def read_state_at(path: Path) -> dict[str, Any]:
    """The entries of state.json in this folder, see `StateEntries`; {} where it is missing or damaged."""
    try:
        return parse_entries((path / STATE_FILE).read_bytes())
    except OSError:
        return {}


def parse_entries(content: bytes) -> dict[str, Any]:
    """The entries of a small JSON file; {} where it is damaged."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def read_history_at(path: Path) -> list[dict[str, Any]]:
    """The epochs of the run in this folder, oldest first: {"epoch", "step", "metrics"}, from its newest
    checkpoint that can be read; [] where there is none.
    """
    for file in reversed(epoch_files.complete(epoch_files.folder_of(path))):
        from pcl_ray.checkpoints import run_state  # it loads torch: where there is something to read

        try:
            return run_state.load(file, check=False).history  # a report need not read all of it twice
        except RunFailed:
            continue
    return []
