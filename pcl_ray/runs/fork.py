"""`pcl-ray fork`: a new run that begins with the weights of another's checkpoint, and has other knobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files, remote
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.runs import driver, preparation, request, storage_mirror
from pcl_ray.runs.console import Display
from pcl_ray.runs.final_artifacts import RunResult
from pcl_ray.runs.folder import CONFIG_FILE, STATE_FILE, RunFolder, parse_entries, read_state_at
from pcl_ray.support import storage

_ALL = 10**9


def fork(
    source: str,
    overrides: Iterable[str],
    *,
    name: str | None = None,
    epoch: int | None = None,
    command: str = "",
    display: Display | None = None,
    result_file: Path | None = None,
) -> RunResult:
    """The result of a new run, trained from the checkpoint of run `source` after `epoch` epochs (None: the
    newest); its next epoch begins with an E-step of its own knobs.

    Raises what `driver.start` raises.
    """
    preparation.prepare_process()
    overrides = list(overrides)
    # The run may lie on a storage that this machine has never seen. The storage among the overrides is
    # the new run's, but the only one to look in where the environment names none.
    storage_mirror.fetch(source, [] if os.environ.get(storage.VARIABLE) else overrides)
    folder = RunFolder.existing(source)
    stored = configs.load_stored(folder / CONFIG_FILE)
    new = configs.with_overrides(stored, overrides)
    request.refuse_changes(stored, new, lambda knob: knob.fixed_in_fork, "in a fork")
    if new.encoder.init_from is not None:  # it begins with the source's checkpoint
        new = configs.with_overrides(new, {"encoder.init_from": None})
    run_request = request.check_config(request.with_storage(new))
    config = run_request.config
    uri = stored.resources.storage or os.environ.get(storage.VARIABLE) or config.resources.storage
    if uri:
        _fetch_checkpoint(uri, source, folder, epoch, is_own=bool(stored.resources.storage))
    file = _checkpoint(source, folder, epoch)
    done = epoch_files.epochs_done(file)
    if config.train.epochs <= done:
        message = (
            f"run {source!r} has trained {done} epochs already; ask for more, or begin earlier: --epoch N"
        )
        raise ConfigError([Problem("train.epochs", config.train.epochs, message)])
    origin = driver.Origin(file, source, read_state_at(folder).get("fingerprint"))
    return driver.start(
        run_request,
        name=name,
        stem=source,
        command=command,
        origin=origin,
        display=display,
        result_file=result_file,
    )


def _fetch_checkpoint(uri: str, source: str, folder: Path, epoch: int | None, *, is_own: bool) -> None:
    """Brings the wanted checkpoint of a run into its folder, if the storage has it. Raises ConfigError where
    the storage does not answer.

    is_own: the run's own configuration names this storage. A run that was brought to one after its end names
    none: it is looked for in that of today, where another run may have its name.
    """
    run_storage = storage.of_run(uri, source)
    try:
        if not is_own and not _is_same_run(run_storage, folder):
            return
        names = [
            name
            for name in remote.names(run_storage)
            if not epoch_files.steps_done(Path(name))
            and (epoch is None or epoch_files.epochs_done(Path(name)) == epoch)
        ]
        if names:
            remote.download(run_storage, names[-1], epoch_files.folder_of(folder), keep=_ALL)
    except RunFailed as failure:
        raise ConfigError(str(failure)) from failure


def _is_same_run(run_storage: storage.Storage, folder: Path) -> bool:
    """Whether the run on the storage is that of the folder: both began at the same time."""
    state = parse_entries(run_storage.read(STATE_FILE) or b"")
    return state.get("began_at") == read_state_at(folder).get("began_at")


def _checkpoint(source: str, folder: Path, epoch: int | None) -> Path:
    """The checkpoint after `epoch` epochs (None: the newest). Raises ConfigError where there is none."""
    checkpoints = epoch_files.after_epochs(epoch_files.folder_of(folder))
    if not checkpoints:
        raise ConfigError(f"run {source!r} has no checkpoint to start from, made after a whole epoch")
    if epoch is None:
        return checkpoints[-1]
    for path in checkpoints:
        if epoch_files.epochs_done(path) == epoch:
            return path
    epochs = ", ".join(str(epoch_files.epochs_done(path)) for path in checkpoints)
    raise ConfigError(
        f"--epoch {epoch}: run {source!r} keeps the checkpoints after {epochs} epochs"
        " (train.keep_checkpoints)"
    )
