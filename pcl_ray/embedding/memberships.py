"""Which prototype each image of a collection belongs to: as its parts say, or, for weights without
prototypes, by k-means over the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import torch

from pcl_ray.clustering import kmeans
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.points import Points
from pcl_ray.embedding.collection import Collection
from pcl_ray.embedding.index import SearchIndex
from pcl_ray.plan import resolve_num_clusters
from pcl_ray.support.files import atomic_file

_MOST = 2**27  # numbers that k-means holds: 512 MiB
_BLOCK = 65536  # rows


@dataclass(frozen=True, eq=False)
class Membership:
    """One clustering of all images of a collection."""

    num_clusters: int
    prototypes: np.ndarray  # [n] int64
    distances: np.ndarray  # [n] float32, Euclidean, to the own prototype

    def sizes(self) -> np.ndarray:
        """[K] int64, images."""
        return np.bincount(self.prototypes, minlength=self.num_clusters)


def memberships(
    collection: Collection, index: SearchIndex, *, own: bool = False, say: Callable[[str], None] | None = None
) -> list[Membership]:
    """The clusterings from coarse to fine: those of the encoder's prototypes, or for weights without any, and
    where `own` ones are asked for, those that k-means finds among the embeddings.
    """
    counts = collection.manifest.num_clusters
    if counts and not own:
        made = [
            Membership(k, collection.prototypes(m), collection.distances(m)) for m, k in enumerate(counts)
        ]
        return sorted(made, key=lambda one: one.num_clusters)
    return [
        _of_kmeans(index, k, say) for k in resolve_num_clusters("auto", len(index)) if k <= len(index)
    ] or [_alone(len(index))]


def _alone(size: int) -> Membership:
    return Membership(1, np.zeros(size, np.int64), np.zeros(size, np.float32))


def _of_kmeans(index: SearchIndex, num_clusters: int, say: Callable[[str], None] | None) -> Membership:
    """k-means, from a file beside the index where it was made before."""
    path = index.folder / f"clusters-{num_clusters}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Membership(num_clusters, stored["prototypes"], stored["distances"])
    except (OSError, ValueError, KeyError, BadZipFile):
        pass  # not made yet
    if say:
        say(f"k-means of the embeddings into {num_clusters:,} clusters …")
    made = clustered(index.vectors, num_clusters)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, prototypes=made.prototypes, distances=made.distances)
    return made


def clustered(vectors_ND: np.ndarray, num_clusters: int, *, most: int = _MOST) -> Membership:
    """k-means of all vectors, whose centroids come from no more of them than `most` numbers hold."""
    size, dim = vectors_ND.shape
    rows = min(size, max(num_clusters, most // dim))
    draw = np.random.default_rng(0)
    sample = np.arange(size) if rows == size else np.sort(draw.choice(size, rows, replace=False))
    centroids = kmeans(
        np.ascontiguousarray(vectors_ND[sample]), num_clusters, seed=0, iterations=20
    ).centroids
    find = Nearest()
    prototypes, distances = np.empty(size, np.int64), np.empty(size, np.float32)
    for start in range(0, size, _BLOCK):
        block = torch.from_numpy(np.array(vectors_ND[start : start + _BLOCK], dtype=np.float32))
        ids = find(Points.of(block), centroids)
        prototypes[start : start + len(block)] = ids.numpy()
        distances[start : start + len(block)] = (block - centroids[ids]).norm(dim=1).numpy()
    return Membership(num_clusters, prototypes, distances)
