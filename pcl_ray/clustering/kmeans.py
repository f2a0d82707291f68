"""k-means with faiss."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KMeansResult:
    centroids: Tensor  # [K, C] float32
    assignments: Tensor  # [N] int64, the nearest centroid of each point
    distances: Tensor  # [N] float32, Euclidean
    objective: float  # sum of squared distances


def kmeans(
    features_NC: Tensor | np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 20,
    restarts: int = 1,
    start_KC: Tensor | np.ndarray | None = None,
    spherical: bool = False,
    threads: int = 0,
    gpu: bool = False,
) -> KMeansResult:
    """Lloyd's k-means on [N, C]; the best of `restarts` runs. Centroids, assignments and distances belong together.

    start_KC: centroids to start from instead of random points (then one run). threads: 0 takes all cores. gpu: search on faiss' GPUs.
    Same seed and input, same result. Raises ValueError for features or starting centroids that are not finite, for fewer points than K, and for a
    start of another shape.
    """
    import faiss

    features = np.ascontiguousarray(features_NC.cpu().numpy() if isinstance(features_NC, Tensor) else features_NC, dtype=np.float32)
    count, dim = features.shape
    if not 1 <= num_clusters <= count:
        raise ValueError(f"{num_clusters} clusters need at least as many points, there are {count}")
    _check_finite(features, "features")
    start = None if start_KC is None else np.ascontiguousarray(start_KC, dtype=np.float32)
    if start is not None:
        if start.shape != (num_clusters, dim):
            raise ValueError(f"start_KC has shape {start.shape}, {num_clusters} clusters of {dim} dimensions need {(num_clusters, dim)}")
        _check_finite(start, "starting centroids")
    faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
    clustering = faiss.Kmeans(
        dim,
        num_clusters,
        niter=iterations,
        nredo=1 if start is not None else restarts,  # faiss' restarts would all go on from the given centroids
        seed=seed,
        spherical=spherical,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=max(count // num_clusters + 1, 256),  # never a subsample
    )
    clustering.train(features, init_centroids=start)
    _, nearest = clustering.index.search(features, 1)
    points, centroids = torch.from_numpy(features), torch.from_numpy(np.array(clustering.centroids))
    assignments = torch.from_numpy(nearest[:, 0].astype(np.int64))
    distances = _distances(points, centroids, assignments)
    return KMeansResult(centroids, assignments, distances, float((distances.double() ** 2).sum()))


def _check_finite(rows: np.ndarray, what: str) -> None:
    """Raises ValueError for NaN, infinities and values whose square overflows: faiss would end the whole process."""
    bad = np.flatnonzero(~np.isfinite(np.einsum("ij,ij->i", rows, rows)))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(rows)} {what} are not finite, the first: {bad[:5].tolist()}")


def _distances(points: Tensor, centroids: Tensor, assignments: Tensor, chunk: int = 65536) -> Tensor:
    """[N] distance to the assigned centroid, by subtraction: faiss' ‖x‖² − 2x·c + ‖c‖² loses small distances to rounding."""
    parts = zip(points.split(chunk), assignments.split(chunk), strict=True)
    return torch.cat([torch.linalg.vector_norm(rows - centroids[ids], dim=1) for rows, ids in parts])
