"""k-means: Lloyd's algorithm from random points or a given start, the best of several runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering.assign.nearest import Backend, BruteForce, Nearest
from pcl_ray.clustering.group import Group
from pcl_ray.clustering.lloyd import Assign, LloydRun, LloydSettings, lloyd, random_start
from pcl_ray.clustering.points import Points

_BLOCK = 16384


@dataclass(frozen=True, eq=False)
class KMeansResult:
    """What `kmeans` finds, of this process's points."""

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
    backend: Backend = "faiss",
    group: Group | None = None,
    ids: Tensor | None = None,
    total: int | None = None,
) -> KMeansResult:
    """Lloyd's k-means on [N, C], the best of `restarts`; centroids, labels and distances belong together.

    start_KC: centroids to start from instead of random points (then one run). spherical: centroids are
    normalised after every iteration. threads: CPU threads, 0 takes all cores. gpu: search on faiss' GPUs;
    features that lie on a GPU are clustered there anyway. group, ids, total: this process holds the rows
    `ids` of `total` and all processes of the group call this; assignments and distances are those of its
    rows. Same seed and input, same result, bit by bit on CPUs: on any number of threads and processes, by
    either backend; of equally near centroids the one with the lowest id. Raises ValueError for features or
    starting centroids that are not finite, for fewer points than K, and for a start of another shape.
    """
    rows = torch.as_tensor(np.asarray(features_NC) if not isinstance(features_NC, Tensor) else features_NC)
    rows = rows.contiguous() if rows.dtype in (torch.float32, torch.float16) else rows.float().contiguous()
    total = len(rows) if total is None else total
    if not 1 <= num_clusters <= total:
        raise ValueError(f"{num_clusters} clusters need at least as many points, there are {total}")
    _check_finite(rows, "features")
    start = None if start_KC is None else torch.as_tensor(np.asarray(start_KC), dtype=torch.float32)
    if start is not None:
        if start.shape != (num_clusters, rows.shape[1]):
            raise ValueError(
                f"start_KC has shape {tuple(start.shape)}, {num_clusters} clusters of {rows.shape[1]}"
                f" dimensions need {(num_clusters, rows.shape[1])}"
            )
        _check_finite(start, "starting centroids")
        start = start.to(rows.device)
    points = Points.of(rows, ids, total=total, group=group)
    assign = BruteForce(Nearest(backend, threads, gpu))
    settings = LloydSettings(iterations + 1, seed, spherical)
    if start is not None:
        best = lloyd(points, start, assign, settings)
    else:
        best = best_of(points, num_clusters, assign, settings, restarts)
    distances = distances_to(points, best.centroids, best.labels)
    return KMeansResult(best.centroids, best.labels, distances, _objective(points, distances))


def best_of(
    points: Points, num_clusters: int, assign: Assign, settings: LloydSettings, restarts: int
) -> LloydRun:
    """The run with the smallest objective of `restarts` from random points; of equal ones the first."""
    best: LloydRun | None = None
    for number in range(restarts):
        seed = settings.seed + 7919 * number
        start, _ = random_start(points, num_clusters, seed)
        run = lloyd(points, start, assign, replace(settings, seed=seed))
        if best is None or run.objective < best.objective:
            best = run
    assert best is not None
    return best


def distances_to(points: Points, centroids_KC: Tensor, labels: Tensor) -> Tensor:
    """[n] float32 distance to the own centroid, by subtraction: ‖x‖² − 2x·c + ‖c‖² loses small distances to
    rounding. 0 below the features' own rounding.
    """
    centroids = centroids_KC.to(points.device)
    distances = torch.empty(len(points.rows), device=points.device)
    blocks = zip(points.rows.split(_BLOCK), labels.split(_BLOCK), distances.split(_BLOCK), strict=True)
    for rows, ids, out in blocks:
        wide = rows.float()
        distance = torch.linalg.vector_norm(wide - centroids[ids.clamp(min=0)], dim=1)
        floor = 2.0**-23 * torch.linalg.vector_norm(wide, dim=1)
        out.copy_(torch.where(distance > floor, distance, 0.0))
    return distances


def _objective(points: Points, distances: Tensor) -> float:
    """Sum of the squared distances over the group, exact as a sum."""
    squares = distances.double().square()
    largest = points.group.max(float(squares.max()) if len(squares) else 0.0)
    return float(points.sums(torch.zeros_like(squares, dtype=torch.long), squares, largest, 1))


def _check_finite(rows: Tensor, what: str) -> None:
    """Raises ValueError for NaN, infinities and squares that overflow: faiss would end the whole process."""
    norms = torch.zeros(0)
    if len(rows):
        blocks = rows.split(_BLOCK)
        norms = torch.cat([torch.linalg.vector_norm(block.float(), dim=1).square() for block in blocks])
    bad = (~torch.isfinite(norms)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(rows)} {what} are not finite, the first: {bad[:5].tolist()}")
