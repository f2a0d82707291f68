"""What is evaluated: an encoder out of weights, and the images that it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.data import datasets
from pcl_ray.data.images import FileImages
from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.extraction import Say, TestedEncoder
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.voc import find_voc, read_voc
from pcl_ray.model.weights import LoadedWeights, read_weights
from pcl_ray.model.weights.source import WEIGHTS_FILES, locate
from pcl_ray.plan import resolve_num_clusters
from pcl_ray.runs import storage_mirror
from pcl_ray.runs.evaluation.data_choice import evaluation_config
from pcl_ray.support.machine import cores
from pcl_ray.support.paths import CHECKED_IMAGES, home
from pcl_ray.support.text import count

WhichEncoder = Literal["query", "momentum", "auto"]
_PAPER_CLUSTERS, _IMAGENET = (25_000, 50_000, 100_000), 1_281_167
_MANY_FILES = 500  # from so many on, processes that decode are worth their start


@dataclass(frozen=True, eq=False)
class Subject:
    """An encoder and where it comes from. which: "query" or "momentum". run_dir: of the run that trained it,
    None where it is not one of ours.
    """

    source: str
    which: str
    weights: LoadedWeights
    run_dir: Path | None

    @property
    def name(self) -> str:
        """What it is called: as the run, or the file, or the folder of files that are called alike."""
        if self.run_dir is not None:
            return self.run_dir.name
        path = self.weights.path.absolute()
        return path.parent.name if path.name in WEIGHTS_FILES else path.name

    @property
    def epochs(self) -> int:
        """The epochs that it was trained for; 0 where that is not known."""
        path = self.weights.path
        return epoch_files.epochs_done(path) if epoch_files.is_complete(path.name) else 0

    @property
    def own_config(self) -> RunConfig:
        """The run's configuration, or one with the view that the weights know."""
        if self.weights.run is not None:
            return self.weights.run
        view = self.weights.view
        channels = self.weights.channels
        return RunConfig().model_copy(
            update={
                "augment": view,
                "encoder": self.weights.config,
                "data": RunConfig().data.model_copy(update={"channels": channels}),
            }
        )


def read_subject(source: str, which: WhichEncoder) -> Subject:
    """The encoder of a source. auto: the momentum encoder of a run of ours, which is what its own figures are
    measured with; of any other file the query encoder, as published. Raises DataError.
    """
    storage_mirror.fetch_source(source)
    file = locate(source)
    choice: Literal["query", "momentum"]
    if which == "auto":
        choice = "momentum" if file.run is not None else "query"
    else:
        choice = which
    weights = read_weights(source, encoder=choice)
    run_dir = weights.path.absolute().parents[1] if weights.run is not None else None
    return Subject(source, choice, weights, run_dir)


def tested_encoder(subject: Subject, config: RunConfig) -> TestedEncoder:
    """The encoder as protocols take it, on this machine's GPU where it may use one."""
    weights = subject.weights
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TestedEncoder(weights.encoder, weights.config, config, weights.has_head, device)


def config_for(subject: Subject, data: str | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration of the images and their view. Raises ConfigError, DataError."""
    if data is None and subject.weights.run is None and not any("data." in word for word in overrides):
        raise DataError(
            f"on which images? {subject.source} is no run that has its own: name a folder, an .npy or .npz"
            " file or a recipe behind it"
        )
    return evaluation_config(subject.own_config, data, overrides)


def load_images(
    config: RunConfig, say: Say, *, bank: int, queries: int
) -> tuple[EvaluationImages, RunConfig]:
    """The images, and the configuration with as many reading processes as they are worth.

    bank, queries: a sample of so many at most; 0: all. A folder in the layout of Pascal VOC is taken as such,
    whole. Raises DataError.
    """
    if config.data.source == "folder" and config.data.path and find_voc(Path(config.data.path)):
        voc = read_voc(Path(config.data.path), config.data.channels)
        return voc, with_readers(voc, config)
    try:
        splits = datasets.load(
            config.data,
            cache_dir=home() / CHECKED_IMAGES,
            progress=lambda done, total: say(f"checking images: {done} of {total}"),
        )
    except OSError as error:  # a folder that may be listed but not read, a disk that fails
        file = error.filename or config.data.path
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if splits.bad:
        say(f"left out   {count(len(splits.bad), 'image')} that cannot be read, e.g. {splits.bad[0].file}")
    for note in splits.notes:
        say(f"note       {note}")
    name = config.data.source
    if config.data.path:
        name = Path(config.data.path).name or name
    images = EvaluationImages.of_splits(name, splits, bank_images=bank, query_images=queries)
    return images, with_readers(images, config)


def with_readers(images: EvaluationImages, config: RunConfig) -> RunConfig:
    """The configuration with processes that decode, where there are many files and none are configured."""
    many = isinstance(images.bank, FileImages) and len(images.bank) > _MANY_FILES
    if many and config.data.loader_workers is None and cores() > 1:
        return with_overrides(config, {"data.loader_workers": min(cores(), 16)})
    return config


def cluster_counts(subject: Subject, num_images: int) -> tuple[int, ...]:
    """K of the run, or the paper's as shares of ImageNet's images; without those that so few images are too
    few for.
    """
    if subject.weights.run is not None:
        counts = resolve_num_clusters(subject.weights.run.e_step.num_clusters, num_images)
    else:
        counts = tuple(round(count * num_images / _IMAGENET) for count in _PAPER_CLUSTERS)
    return tuple(dict.fromkeys(count for count in counts if 2 <= count <= num_images // 2))
