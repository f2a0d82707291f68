"""Features on their way from the workers to the clustering: shards, and the matrix in data set order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureShard:
    """Features of some images, in any order. Plain numpy, which Ray's object store shares without copying."""

    indices: np.ndarray  # [n] int64, positions in the data set
    features: np.ndarray  # [n, C] float32 or float16

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.indices.shape != self.features.shape[:1]:
            raise ValueError(
                f"a shard needs one index a row, got indices {self.indices.shape} and features"
                f" {self.features.shape}"
            )


def assemble(shards: Iterable[FeatureShard], num_images: int) -> np.ndarray:
    """The features [N, C] in data set order, every image exactly once.

    An image that several shards hold (samplers pad by repeating) is taken from one of them, never summed.
    Raises ValueError for an index outside 0..N-1 and for images that no shard holds, naming the first few.
    """
    gathering = Gathering(num_images)
    for shard in shards:
        gathering.add(shard)
    return gathering.whole()


class Gathering:
    """`assemble` for shards that come one by one: each is copied at once, so two full copies never exist."""

    def __init__(self, num_images: int):
        self._features: np.ndarray | None = None
        self._held = np.zeros(num_images, dtype=bool)

    def add(self, shard: FeatureShard) -> None:
        """Copies a shard's features to their positions. Raises ValueError for an index outside 0..N-1 and for
        features of another width than those before.
        """
        if not len(shard.indices):
            return
        num_images, first, last = len(self._held), int(shard.indices.min()), int(shard.indices.max())
        if first < 0 or last >= num_images:
            raise ValueError(f"a shard has indices {first}..{last}, outside 0..{num_images - 1}")
        if self._features is None:
            self._features = np.empty((num_images, shard.features.shape[1]), dtype=shard.features.dtype)
        if self._features.shape[1] != shard.features.shape[1]:
            raise ValueError(
                "shards have features of different widths:"
                f" {sorted({self._features.shape[1], shard.features.shape[1]})}"
            )
        # a run of neighbours, as workers have it, is copied as one piece
        as_many = shard.indices[0] == first and last - first + 1 == len(shard.indices)
        neighbours = as_many and bool((np.diff(shard.indices) == 1).all())
        positions = slice(first, last + 1) if neighbours else shard.indices
        self._features[positions] = shard.features
        self._held[positions] = True

    def whole(self) -> np.ndarray:
        """[N, C]. Raises ValueError for images that have not come, naming the first few."""
        if self._features is None:
            raise ValueError(f"no features arrived for {len(self._held)} images")
        if not self._held.all():
            missing = np.flatnonzero(~self._held)
            raise ValueError(
                f"features of {len(missing)} of {len(self._held)} images are missing, the first:"
                f" {missing[:5].tolist()}"
            )
        return self._features
