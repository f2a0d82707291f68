"""Which file a source of weights means: a run's name, the folder of a run or of checkpoints, or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files, remote
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, DataError, RunFailed
from pcl_ray.support import storage
from pcl_ray.support.paths import CONFIG_FILE, RUNS, home
from pcl_ray.support.text import suggestion

# What a folder of exported weights holds, or one downloaded from a model hub; the first that is there counts.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
SETTINGS_FILE = "config.json"


@dataclass(frozen=True)
class WeightsFile:
    """The file that a source means. run: the configuration of the run that it is a checkpoint of, if any."""

    path: Path
    run: RunConfig | None = None

    @property
    def settings(self) -> Path:
        """Where a description of its architecture would lie, beside it."""
        return self.path.parent / SETTINGS_FILE


def locate(source: str | Path) -> WeightsFile:
    """The file of a source. A word without a slash is a run's name, where there is such a run.

    Raises DataError where there is neither such a run nor such a file, or the run has no checkpoint.
    """
    text = str(source)
    if not text.strip():
        raise DataError("no weights are named: give a run, a checkpoint or a file of weights")
    if isinstance(source, str) and "/" not in text and is_run(home() / RUNS / text):
        return _newest(home() / RUNS / text)
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise DataError(f"{text!r} names a home folder that does not exist") from None
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return WeightsFile(path, _config_beside(path))
    if "/" in text or path.suffix:
        raise DataError(f"the file {text!r} does not exist")
    names = sorted(entry.parent.name for entry in (home() / RUNS).glob(f"*/{CONFIG_FILE}"))
    raise DataError(
        f"{text!r} is neither a run under {home() / RUNS} nor a file{suggestion(text, names, start='; ')}"
    )


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run."""
    return (folder / CONFIG_FILE).is_file()


def _of_folder(folder: Path) -> WeightsFile:
    if is_run(folder):
        return _newest(folder)
    if newest := epoch_files.latest(folder):
        return WeightsFile(newest, _config_beside(newest))
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return WeightsFile(folder / name)
    raise DataError(
        f"the folder {str(folder)!r} holds no weights: neither a run nor checkpoints nor"
        f" {' nor '.join(WEIGHTS_FILES)}"
    )


def _newest(run_dir: Path) -> WeightsFile:
    newest = epoch_files.latest(epoch_files.folder_of(run_dir)) or _downloaded(run_dir)
    if newest is None:
        raise DataError(f"run {run_dir.name!r} has no checkpoint yet")
    return WeightsFile(newest, _config_beside(newest))


def _downloaded(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that this machine has no checkpoint of, out of the run's storage; None
    where it has no storage, or that has none either. Raises DataError where it cannot be had.
    """
    try:
        config = configs.load_stored(run_dir / CONFIG_FILE)
    except ConfigError:
        return None
    if config.resources.storage is None:
        return None
    run_storage = storage.of_run(config.resources.storage, run_dir.name)
    try:
        name = remote.newest(run_storage)
        if name is None:
            return None
        return remote.download(
            run_storage, name, epoch_files.folder_of(run_dir), config.train.keep_checkpoints
        )
    except RunFailed as failure:
        raise DataError(f"the checkpoint of run {run_dir.name!r} cannot be fetched: {failure}") from failure


def _config_beside(path: Path) -> RunConfig | None:
    """The configuration of the run in whose folder of checkpoints a file lies, if it can be read."""
    run_dir = path.absolute().parents[1]
    if path.absolute().parent.name != epoch_files.FOLDER or not is_run(run_dir):
        return None
    try:
        return configs.load_stored(run_dir / CONFIG_FILE)
    except ConfigError:  # of a later version, or damaged: the checkpoint may still be read
        return None
