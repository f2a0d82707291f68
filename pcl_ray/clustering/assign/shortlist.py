"""Nearest centroids for large K on CPUs: a point is compared only with the centroids around the one it had.

The candidates of a cluster are its centroid's nearest neighbours among the centroids; points of one cluster
share them, so that the work is one small matrix product a cluster: L instead of K distances a point. What
that misses is measured each time, on one point in a hundred by brute force; where too many are missed, all
points are done by brute force.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering.assign.nearest import (
    Nearest,
    cpu_threads,
    flat_index,
    lowest_of_equal,
    tolerance,
    two_best,
)
from pcl_ray.clustering.points import Points

_BATCH = 2**21  # numbers gathered at a time for one batch of products: 8 MiB
# At most so many points are checked: the share of right ones is then known to 0.1 %; more costs too much.
_CHECKED = 20_000
# centroids that moved farther than this share of the clusters' mean squared radius get new neighbours
_MOVED = 0.05


@dataclass(eq=False)
class Shortlist:
    """An `lloyd.Assign` with state: keep one for each run."""

    nearest: Nearest
    candidates: int = 64  # L, the cluster's own centroid among them
    sample: float = 0.01
    enough: float = 0.995
    # share of the sample that was right, at each pass that used candidates
    agreements: list[float] = field(default_factory=list)
    fallbacks: int = 0  # passes done by brute force because too few were right
    _around: Tensor | None = None  # [K, L] candidates, rising
    _made_from: Tensor | None = None  # the centroids they were found among
    _passes: int = 0

    def __call__(
        self, points: Points, centroids_KC: Tensor, *, labels: Tensor | None, spread: float
    ) -> Tensor:
        self._passes += 1
        if labels is None:
            return self.nearest(points, centroids_KC, spread=spread)
        with cpu_threads(self.nearest.threads):
            around = self._neighbours(points, centroids_KC, spread)
            nearest = among(points.rows, centroids_KC, labels, around)
        unlabelled = (labels < 0).nonzero().flatten()
        if len(unlabelled):
            nearest[unlabelled] = self.nearest(points.take(unlabelled), centroids_KC, spread=spread)
        if self._good_enough(points, centroids_KC, nearest):
            return nearest
        self.fallbacks += 1
        return self.nearest(points, centroids_KC, spread=spread)

    def _neighbours(self, points: Points, centroids: Tensor, spread: float) -> Tensor:
        if (
            self._around is None
            or self._made_from is None
            or float((centroids - self._made_from).square().sum(dim=1).mean()) > _MOVED * spread
        ):
            self._around = neighbours(points, centroids, self.candidates, self.nearest.threads)
            self._made_from = centroids.clone()
        return self._around

    def _good_enough(self, points: Points, centroids: Tensor, nearest: Tensor) -> bool:
        share = min(self.sample, _CHECKED / points.total)
        sample = sampled(points.ids, share, self._passes).nonzero().flatten()
        right = self.nearest(points.take(sample), centroids) == nearest[sample]
        counts = torch.tensor([int(right.sum()), len(right)])
        points.group.sum(counts)
        hits, checked = counts.tolist()
        self.agreements.append(hits / checked if checked else 0.0)
        return self.agreements[-1] >= self.enough


def neighbours(points: Points, centroids_KC: Tensor, count: int, threads: int) -> Tensor:
    """[K, L] int64: each centroid's nearest ones and itself, by rising id; the group divides the work."""
    group, num_clusters = points.group, len(centroids_KC)
    part = np.array_split(np.arange(num_clusters), group.size)[group.rank]
    _, ids = flat_index(centroids_KC, threads).search(
        np.ascontiguousarray(centroids_KC.numpy())[part], min(count, num_clusters)
    )
    around = torch.from_numpy(ids.astype(np.int64)).sort(dim=1).values
    # equal centroids may crowd the own one out
    own = torch.from_numpy(part)[:, None]
    crowded_out = ~(around == own).any(dim=1)
    around[crowded_out, -1] = own[crowded_out, 0]
    return group.gather(around.sort(dim=1).values)


def sampled(ids: Tensor, share: float, salt: int) -> Tensor:
    """[n] bool: a choice by the id alone (Knuth's multiplicative hash), however the points are spread."""
    return (ids + salt * 7919) * 2654435761 % 2**32 < share * 2**32


def among(rows_nC: Tensor, centroids_KC: Tensor, labels_n: Tensor, around_KL: Tensor) -> Tensor:
    """[n] int64: each point's nearest candidate of its cluster; −1 for rows with a negative label.

    Exact within the candidates: near ties are decided in float64, equal distances go to the lowest id.
    """
    nearest = torch.full_like(labels_n, -1)
    half_squares = centroids_KC.square().sum(dim=1) / 2
    sizes = torch.bincount(labels_n[labels_n >= 0], minlength=len(centroids_KC))
    order = torch.argsort(labels_n, stable=True)[int((labels_n < 0).sum()) :]
    starts = sizes.cumsum(0) - sizes
    by_size = torch.argsort(sizes, stable=True)
    for clusters in _batches(by_size[sizes[by_size] > 0], sizes, around_KL.shape[1], rows_nC.shape[1]):
        width = torch.arange(int(sizes[clusters].max()))
        filled = width < sizes[clusters][:, None]  # [G, m]: clusters of a batch differ in size
        members = order[(starts[clusters][:, None] + width).clamp(max=len(order) - 1)]
        block = rows_nC[members].float()
        options = around_KL[clusters]  # [G, L]
        scores = torch.baddbmm(
            half_squares[options][:, None, :], block, centroids_KC[options].transpose(1, 2), alpha=-1
        )
        best, margin = two_best(scores)
        ids = options.gather(1, best)
        unclear = filled & (margin <= tolerance(block, centroids_KC))
        if unclear.any():
            group, _ = unclear.nonzero(as_tuple=True)
            ids[unclear] = _exactly(block[unclear], centroids_KC, options[group])
        nearest[members[filled]] = ids[filled]
    return nearest


def _batches(clusters: Tensor, sizes: Tensor, candidates: int, dim: int) -> list[Tensor]:
    """The clusters, by rising size, in batches whose gathered rows and candidates stay small."""
    out, start, listed = [], 0, sizes[clusters].tolist()
    while start < len(listed):
        end = start + 1
        while (
            end < len(listed)
            and (end + 1 - start) * (listed[end] + candidates) * dim <= _BATCH
            and listed[end] <= 1.3 * listed[start] + 2
        ):
            end += 1
        out.append(clusters[start:end])
        start = end
    return out


def _exactly(rows: Tensor, centroids: Tensor, options: Tensor) -> Tensor:
    """[u] the nearest of the candidates [u, L] in float64; of equally near ones the lowest id."""
    out = []
    for block, ids in zip(rows.split(1024), options.split(1024), strict=True):
        candidates = centroids[ids].double()
        wide = block.double()
        scores = candidates.square().sum(dim=-1) / 2 - (candidates * wide[:, None, :]).sum(dim=-1)
        scale = wide.square().sum(dim=1, keepdim=True) + candidates.square().sum(dim=-1).amax(
            dim=1, keepdim=True
        )
        out.append(lowest_of_equal(scores, ids, scale))
    return torch.cat(out)
