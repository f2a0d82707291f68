"""The points of one process, and exact sums over them.

Sums of features must not depend on how the points are spread over processes and threads, nor on the order of
addition: then one shard and several give the same centroids bit by bit. Float64 alone does not promise that.
So every summand is first rounded to a multiple of 2⁻ˢ, with s so large that it changes nothing visible and so
small that any sum of N of them is exact in the 53 bits of a float64. Exact sums have a second use: a pass of
Lloyd's algorithm only has to move the few points whose label changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pcl_ray.clustering.group import Group

_BLOCK = 8192  # rows at a time in float64: 8 MiB at 128 dimensions, which stays in the cache
_BLOCK_GPU = 2**18  # there a block costs a launch


@dataclass(frozen=True, eq=False)
class Points:
    """This process's rows of the [N, C] features of the whole group."""

    rows: Tensor  # [n, C] float32 or float16, on any device
    ids: Tensor  # [n] int64 on the CPU: which of the N points each row is
    total: int  # N, over the group
    largest: float  # no coordinate of the group is larger
    group: Group

    @classmethod
    def of(
        cls,
        rows: Tensor,
        ids: Tensor | None = None,
        *,
        total: int | None = None,
        group: Group | None = None,
        largest: float | None = None,
    ) -> Points:
        """Points and the group's largest coordinate (`largest`, where known), which sets the grid."""
        group = group or Group()
        ids = torch.arange(len(rows)) if ids is None else ids
        total = len(rows) if total is None else total
        if largest is None:
            low, high = torch.aminmax(rows) if rows.numel() else (torch.zeros(1), torch.zeros(1))
            largest = group.max(max(float(high), -float(low), 0.0))
        return cls(rows, ids, total, largest, group)

    def take(self, positions: Tensor) -> Points:
        """Some of the rows, for as long as their sums are not needed by the group."""
        return replace(self, rows=self.rows[positions.to(self.rows.device)], ids=self.ids[positions.cpu()])

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def block(self) -> int:
        """Rows to take at a time where they are widened to float64."""
        return _BLOCK_GPU if self.rows.is_cuda else _BLOCK

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def squares(self) -> Tensor:
        """[n] float64, ‖x‖² of every row, on the grid."""
        squares = torch.empty(len(self.rows), dtype=torch.float64, device=self.device)
        for block, out in zip(self.rows.split(self.block), squares.split(self.block), strict=True):
            out.copy_(block.double().square().sum(dim=1))
        return on_grid(squares, self.total, self.dim * self.largest**2)

    def sums(self, labels: Tensor, values: Tensor, largest: float, num_clusters: int) -> Tensor:
        """[K] float64, the sum of a number [n] that each row has, by cluster and over the group; exact.
        Negative labels take no part.
        """
        labelled = labels >= 0
        sums = torch.zeros(num_clusters, dtype=torch.float64, device=self.device)
        sums.index_add_(0, labels[labelled], on_grid(values[labelled], self.total, largest))
        self.group.sum(sums)
        return sums


def grid_bits(total: int, largest: float) -> int:
    """s, so that sums of `total` multiples of 2⁻ˢ, none larger than `largest`, are exact in float64."""
    assert math.isfinite(largest), "no grid for features that are not finite"
    return 52 - math.ceil(math.log2(max(total, 2))) - (math.ceil(math.log2(largest)) if largest > 0 else 0)


def on_grid(values: Tensor, total: int, largest: float) -> Tensor:
    """A float64 copy rounded to multiples of 2⁻ˢ: any `total` of them, at most `largest`, add up exactly."""
    bits = grid_bits(total, largest)
    return values.to(torch.float64, copy=True).mul_(2.0**bits).round_().div_(2.0**bits)


@dataclass(eq=False)
class Moments:
    """Size, sum and sum of squares of every cluster over the whole group, the same on all its processes.

    sizes: [K] int64. sums: [K, C] float64 and squares: [K] float64, both on the grid and therefore exact.
    rounding: how far a row's square on the grid may lie from the square of the row on the grid.
    """

    sizes: Tensor
    sums: Tensor
    squares: Tensor
    rounding: float

    @classmethod
    def of(cls, points: Points, labels: Tensor, num_clusters: int) -> Moments:
        """The moments of all points; rows with a negative label take no part."""
        moments = cls.zeros(points, num_clusters)
        labelled = (labels >= 0).nonzero().flatten()
        moments._add(points, labelled if len(labelled) < len(labels) else None, labels, sign=1.0)
        points.group.sum(moments.sizes, moments.sums, moments.squares)
        return moments

    def moved(self, points: Points, before: Tensor, after: Tensor) -> int:
        """Takes new labels, in place, and returns how many of the group's rows changed. Equals a recount."""
        changed = (before != after).nonzero().flatten()
        count = torch.tensor(len(changed))
        points.group.sum(count)
        if count > 0:
            change = self.zeros(points, len(self.sizes))
            left = changed[before[changed] >= 0]
            change._add(points, left, before, sign=-1.0)
            change._add(points, changed, after, sign=1.0)
            points.group.sum(change.sizes, change.sums, change.squares)
            self.sizes += change.sizes
            self.sums += change.sums
            self.squares += change.squares
        return int(count)

    def means(self) -> Tensor:
        """[K, C] float64; rows of empty clusters are zero."""
        return self.sums / self.sizes.clamp(min=1)[:, None]

    def scatter(self) -> Tensor:
        """[K] float64, squared distances to each cluster's mean, summed; 0 below the rounding of the sums."""
        within = self.squares - self.sums.square().sum(dim=1) / self.sizes.clamp(min=1)
        return torch.where(within > 1e-12 * self.squares + self.rounding * self.sizes, within, 0.0)

    def objective(self, centroids_KC: Tensor) -> float:
        """Sum of squared distances of all points to the given centroids of their clusters."""
        centroids = centroids_KC.double()
        each = (
            self.squares - 2 * (centroids * self.sums).sum(dim=1) + self.sizes * centroids.square().sum(dim=1)
        )
        return max(float(each.sum()), 0.0)

    @staticmethod
    def zeros(points: Points, num_clusters: int) -> Moments:
        """The moments of no points."""
        wide = {"dtype": torch.float64, "device": points.device}
        # half a step of either grid, and the square of a row half a step off in all coordinates
        total, dim, largest = points.total, points.dim, points.largest
        rounding = 0.5 * 2.0 ** -grid_bits(total, dim * largest**2) + dim * largest * 2.0 ** -grid_bits(
            total, largest
        )
        return Moments(
            torch.zeros(num_clusters, dtype=torch.long, device=points.device),
            torch.zeros(num_clusters, dim, **wide),
            torch.zeros(num_clusters, **wide),
            rounding,
        )

    def _add(self, points: Points, positions: Tensor | None, labels: Tensor, *, sign: float) -> None:
        """Adds (or takes away) rows at `positions`, None for all, to the clusters that `labels` names."""
        count = len(labels) if positions is None else len(positions)
        for start in range(0, count, points.block):
            block = slice(start, start + points.block)
            part = block if positions is None else positions[block]
            clusters = labels[part]
            rows = on_grid(points.rows[part], points.total, points.largest)
            self.sums.index_add_(0, clusters, rows, alpha=sign)
            self.squares.index_add_(0, clusters, points.squares[part], alpha=sign)
            self.sizes.index_add_(0, clusters, torch.ones_like(clusters), alpha=int(sign))
