"""The clusterings of a run: prototypes, their concentration, and which images are in each cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pcl_ray.config import RunConfig
from pcl_ray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pcl_ray.clustering import Clustering
    from pcl_ray.data.images import Images


@dataclass(frozen=True, eq=False)
class RunClustering:
    """One clustering of the N training images into K clusters."""

    prototypes: np.ndarray  # [K, C] float32, unit vectors in the space of the momentum encoder's head
    concentration: np.ndarray  # [K] float32, φ: small where the cluster is tight, or has many images
    valid: np.ndarray  # [K] bool: has images
    assignments: np.ndarray  # [N] int64, the cluster of each image; −1: none
    names: np.ndarray | None  # [N] str, the files of the images; None where they are in no files
    labels: np.ndarray | None  # [N] int64, −1: none; None without labels
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"RunClustering(K = {len(self.prototypes)}, {len(self.assignments)} images)"

    def positions(self, prototype: int) -> np.ndarray:
        """[n] int64, the positions in the data set of the images in this cluster."""
        if not 0 <= prototype < len(self.prototypes):
            raise IndexError(f"there are the prototypes 0 … {len(self.prototypes) - 1}, not {prototype}")
        return (self.assignments == prototype).nonzero()[0]

    def files(self, prototype: int) -> list[str]:
        """The files of the images in this cluster. Raises DataError where the images are in no files."""
        if self.names is None:
            raise DataError("the images of this run are in no files of their own; `positions` says which")
        return self.names[self.positions(prototype)].tolist()

    def images(self) -> pd.DataFrame:
        """A row for each training image: file (where it has one), prototype, class (where it has one)."""
        import pandas as pd

        columns = {} if self.names is None else {"file": self.names}
        columns["prototype"] = self.assignments
        if self.labels is not None:
            columns["class"] = self._class_of(self.labels)
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """A row for each prototype: its size (number of images), concentration and, where there are labels,
        the class that most of its images have and their share of those that have any, `purity`.
        """
        import numpy as np
        import pandas as pd

        count = len(self.prototypes)
        inside = self.assignments >= 0
        columns: dict[str, np.ndarray] = {
            "size": np.bincount(self.assignments[inside], minlength=count),
            "concentration": self.concentration,
        }
        if self.labels is not None:
            inside = inside & (self.labels >= 0)
            table = np.zeros((count, max(len(self.class_names), 1)), dtype=np.int64)
            np.add.at(table, (self.assignments[inside], self.labels[inside]), 1)
            labelled = table.sum(1)
            columns["class"] = self._class_of(np.where(labelled > 0, table.argmax(1), -1))
            columns["purity"] = np.where(labelled > 0, table.max(1) / np.maximum(labelled, 1), np.nan)
        return pd.DataFrame(columns, index=pd.RangeIndex(count, name="prototype"))

    def _class_of(self, labels: np.ndarray) -> np.ndarray:
        """The names of classes by their numbers; None for −1."""
        import numpy as np

        return np.array([*self.class_names, None], dtype=object)[labels]


def read(checkpoint: Path, config: RunConfig, run: str, fingerprint: str) -> tuple[RunClustering, ...]:
    """The clusterings of a checkpoint with the names of the images, () without any.

    fingerprint: of the run's images. Raises DataError where they are others now, or are gone.
    """
    from pcl_ray.checkpoints import run_state
    from pcl_ray.data import datasets
    from pcl_ray.support.paths import CHECKED_IMAGES, home

    clusters = run_state.load(checkpoint).clusters
    if clusters is None:
        return ()
    images = datasets.load(config.data, cache_dir=home() / CHECKED_IMAGES).train
    if fingerprint and images.fingerprint != fingerprint:
        raise DataError(f"the images of run {run!r} have changed since it was trained")
    names = _names(images)
    return tuple(
        RunClustering(
            prototypes=clustering.prototypes.numpy(),
            concentration=clustering.concentration.numpy(),
            valid=_valid(clustering),
            assignments=clustering.assignments.numpy(),
            names=names,
            labels=images.labels,
            class_names=images.class_names,
        )
        for clustering in clusters.clusterings
    )


def _valid(clustering: Clustering) -> np.ndarray:
    import numpy as np

    if clustering.valid is None:
        return np.ones(clustering.num_clusters, dtype=bool)
    return clustering.valid.numpy()


def _names(images: Images) -> np.ndarray | None:
    """[N] str, the files of the images, or their shards and members; None where they have none."""
    import numpy as np

    from pcl_ray.data.images import EncodedImages

    if not isinstance(images, EncodedImages):
        return None
    return np.array([images.name(index) for index in range(len(images))], dtype=object)
