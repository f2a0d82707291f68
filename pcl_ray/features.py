"""Features on their way from the workers to the clustering: shards, and the matrix in data set order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureShard:
    """Features of some images, in any order. Plain numpy, because Ray's object store shares numpy without copying."""

    indices: np.ndarray  # [n] int64, positions in the data set
    features: np.ndarray  # [n, C] float32

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.indices.shape != self.features.shape[:1]:
            raise ValueError(f"a shard needs one index a row, got indices {self.indices.shape} and features {self.features.shape}")


def assemble(shards: Iterable[FeatureShard], num_images: int) -> np.ndarray:
    """The features [N, C] in data set order, every image exactly once.

    An image that several shards hold (samplers pad by repeating) is taken from one of them, never summed. Raises ValueError for an index
    outside 0..N-1 and for images that no shard holds, naming the first few.
    """
    shards = [shard for shard in shards if len(shard.indices)]
    if not shards:
        raise ValueError(f"no features arrived for {num_images} images")
    widths = {shard.features.shape[1] for shard in shards}
    if len(widths) > 1:
        raise ValueError(f"shards have features of different widths: {sorted(widths)}")
    features = np.empty((num_images, widths.pop()), dtype=np.float32)
    held = np.zeros(num_images, dtype=bool)
    for shard in shards:
        if shard.indices.min() < 0 or shard.indices.max() >= num_images:
            raise ValueError(f"a shard has indices {shard.indices.min()}..{shard.indices.max()}, outside 0..{num_images - 1}")
        features[shard.indices] = shard.features
        held[shard.indices] = True
    if not held.all():
        missing = np.flatnonzero(~held)
        raise ValueError(f"features of {len(missing)} of {num_images} images are missing, the first: {missing[:5].tolist()}")
    return features
