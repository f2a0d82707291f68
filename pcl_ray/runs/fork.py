"""`pcl-ray fork`: a new run that begins with the weights of another's checkpoint, and goes on with other
knobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files, remote, storage
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.runs import driver, lease, preparation, request, storage_mirror
from pcl_ray.runs.final_artifacts import RunResult
from pcl_ray.runs.folder import STATE_FILE, RunFolder, read_state_at

_ALL = 10**9


def fork(
    source: str,
    overrides: Iterable[str],
    *,
    name: str | None = None,
    epoch: int | None = None,
    command: str = "",
    result_file: Path | None = None,
) -> RunResult:
    """Trains a new run from the checkpoint of run `source` after `epoch` epochs (None: the newest); its next
    epoch begins with an E-step of its own knobs.

    Raises as `run.start` does.
    """
    preparation.prepare_process()
    overrides = list(overrides)
    # Where it lies on a storage, and this machine has not seen it. What is asked for is the new run's, but
    # the only one to look in where none is set.
    storage_mirror.fetch(source, [] if os.environ.get(storage.VARIABLE) else overrides)
    origin = RunFolder.existing(source)
    stored = configs.load(origin / "config.yaml")
    asked = request.check_config(request.with_storage(_changed(stored, overrides)))
    config = asked.config
    _bring(stored.resources.storage, config.resources.storage, source, origin, epoch)
    file = _checkpoint(source, origin, epoch)
    done = epoch_files.epochs_done(file)
    if config.train.epochs <= done:
        message = (
            f"run {source!r} has trained {done} epochs already; ask for more, or begin earlier: --epoch N"
        )
        raise ConfigError([Problem("train.epochs", config.train.epochs, message)])
    begins = driver.Origin(file, source, read_state_at(origin).get("fingerprint"))
    return driver.start(
        asked, name=name, stem=source, command=command, origin=begins, result_file=result_file
    )


def _changed(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    new = configs.with_overrides(config, overrides)
    before, after = config.flatten(), new.flatten()
    fixed = [name for name in after if after[name] != before[name] and configs.properties(name).fixed_in_fork]
    if fixed:
        raise ConfigError(
            [
                Problem(
                    name,
                    after[name],
                    f"cannot change in a fork; it is {before[name]!r} there. Start a new run",
                )
                for name in fixed
            ]
        )
    return new


def _bring(stored: str | None, asked: str | None, source: str, folder: Path, epoch: int | None) -> None:
    """The wanted checkpoint of a run whose checkpoints are on a storage. Raises ConfigError where that does
    not answer.

    stored: the storage that its own configuration names. A run that was brought to one after its end names
    none: it is looked for in that of today.
    """
    uri = stored or os.environ.get(storage.VARIABLE) or asked
    if uri is None:
        return
    place = storage.of_run(uri, source)
    try:
        if not stored and not _is_same(place, folder):
            return
        wanted = [
            name
            for name in remote.names(place)
            if epoch is None or epoch_files.epochs_done(Path(name)) == epoch
        ]
        if wanted:
            remote.fetch(place, wanted[-1], epoch_files.folder_of(folder), keep=_ALL)
    except RunFailed as failure:
        raise ConfigError(str(failure)) from failure


def _is_same(place: storage.Storage, folder: Path) -> bool:
    """Whether the run there is that of the folder, and not another one's of that name."""
    return lease.parse(place.read(STATE_FILE) or b"").get("began_at") == read_state_at(folder).get("began_at")


def _checkpoint(source: str, folder: Path, epoch: int | None) -> Path:
    kept = epoch_files.complete(epoch_files.folder_of(folder))
    if not kept:
        raise ConfigError(f"run {source!r} has no checkpoint to start from")
    if epoch is None:
        return kept[-1]
    found = next((path for path in kept if epoch_files.epochs_done(path) == epoch), None)
    if found is None:
        there = ", ".join(str(epoch_files.epochs_done(path)) for path in kept)
        raise ConfigError(
            f"--epoch {epoch}: run {source!r} keeps the checkpoints after {there} epochs"
            " (train.keep_checkpoints)"
        )
    return found
