"""Lloyd's algorithm over a group of processes: each runs this on its own points, in the same steps.

start centroids → pass: nearest centroid of each point → sizes, sums (reduced) → means → repair of empty
clusters → next pass

The labels, centroids and figures of the *last* pass belong together: after it, nothing is moved any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.clustering.assign.nearest import BruteForce
from pcl_ray.clustering.assign.shortlist import Shortlist
from pcl_ray.clustering.points import Moments, Points


class Assign(Protocol):
    """Gives every point a centroid, [n] int64. `labels`: those of the pass before, None where there are none;
    `spread`: mean squared distance of the points to their centroids, infinite where it is not known.
    """

    def __call__(
        self, points: Points, centroids_KC: Tensor, *, labels: Tensor | None, spread: float
    ) -> Tensor: ...


@dataclass(frozen=True)
class LloydSettings:
    """What every process of a group gives a run alike."""

    passes: int  # at most
    seed: int  # of the directions in which clusters are split to fill empty ones, and of random starts
    spherical: bool = False  # centroids are normalised after every pass
    spread: float = math.inf  # mean squared distance before the first pass, as far as it is known


@dataclass(eq=False)
class LloydRun:
    """One run of Lloyd's algorithm, on this process's points; `search.Search` fills in the last fields."""

    centroids: Tensor  # [K, C] float32, raw
    labels: Tensor  # [n] int64, of this process's points
    moments: Moments  # of the labels, over the group
    # sum of squared distances at each pass, over the group
    objectives: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)  # points of the group whose label each pass changed
    repaired: int = 0  # empty clusters that were put elsewhere
    cold: bool = True  # began without the last E-step's clusters
    first_change: float = 1.0  # share of the labels that the first pass of a warm start changed; 1 where cold
    shortlist: Shortlist | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def objective(self) -> float:
        return self.objectives[-1]


def lloyd(
    points: Points,
    start_KC: Tensor,
    assign: Assign,
    settings: LloydSettings,
    *,
    labels: Tensor | None = None,
    moments: Moments | None = None,
    go_on: Callable[[LloydRun], bool] = lambda run: True,
) -> LloydRun:
    """Makes `settings.passes` passes from the raw centroids [K, C]; fewer where a pass changes no label, or
    `go_on` says no after the first.

    labels, moments: what the start was made of (both or neither), so that only changes are counted. Every
    process of the group gets the same start and settings.
    """
    run = LloydRun(
        start_KC.float(),
        labels if labels is not None else torch.full((len(points.rows),), -1, device=points.device),
        moments or Moments.zeros(points, len(start_KC)),
    )
    for number in range(settings.passes):
        spread = run.objectives[-1] / points.total if run.objectives else settings.spread
        if number == 0 and moments is None and isinstance(assign, BruteForce):
            new_labels, run.moments = assign.with_moments(points, run.centroids, spread=spread)
            changed = points.total
        else:
            before = run.labels if labels is not None or number else None
            new_labels = assign(points, run.centroids, labels=before, spread=spread)
            changed = run.moments.moved(points, run.labels, new_labels)
        run.labels = new_labels
        run.changed.append(changed)
        run.objectives.append(run.moments.objective(run.centroids))
        last = number == settings.passes - 1
        if last or (changed == 0 and not _can_repair(run.moments)) or (number == 0 and not go_on(run)):
            break
        run.centroids, repaired = _next_centroids(
            run, spherical=settings.spherical, seed=settings.seed + number
        )
        run.repaired += repaired
    return run


def _next_centroids(run: LloydRun, *, spherical: bool, seed: int) -> tuple[Tensor, int]:
    means = run.moments.means()
    if spherical:
        means = F.normalize(means, dim=1)
    empty = run.moments.sizes == 0
    means[empty] = run.centroids[empty].double()  # those that nothing can be done about stay where they are
    repaired = split_into_empty(means, run.moments, seed)
    return (F.normalize(means, dim=1) if spherical and repaired else means).float(), repaired


def _can_repair(moments: Moments) -> bool:
    return bool((moments.sizes == 0).any() and ((moments.sizes > 1) & (moments.scatter() > 0)).any())


def split_into_empty(means_KC: Tensor, moments: Moments, seed: int) -> int:
    """Puts each empty cluster beside one that can be split, in place; gives back how many were put.

    Donors are the clusters with the largest sum of squared distances, at most one split each. The two halves
    lie half the cluster's mean distance apart on either side of its mean, in a random direction: far enough
    for half precision and for points that are all but equal.
    """
    empty = (moments.sizes == 0).nonzero().flatten()
    if not len(empty):
        return 0
    scatter = moments.scatter()
    order = torch.argsort(scatter, descending=True, stable=True)  # stable: equal ones by id
    donors = order[(moments.sizes[order] > 1) & (scatter[order] > 0)][: len(empty)]
    empty = empty[: len(donors)]
    directions = torch.randn(
        len(donors),
        means_KC.shape[1],
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed % 2**63),
    )
    reach = 0.5 * (scatter[donors] / moments.sizes[donors]).sqrt()
    offset = F.normalize(directions, dim=1).to(means_KC.device) * reach[:, None]
    means_KC[empty] = means_KC[donors] + offset
    means_KC[donors] -= offset
    return len(donors)


def random_start(points: Points, num_clusters: int, seed: int) -> tuple[Tensor, int]:
    """[K, C] float32: K of the group's points, drawn by id, no two of them equal where that can be had; and
    how many of the K differ.

    Draws do not depend on how points are spread. Where the first hold duplicates more are drawn, up to all.
    """
    wanted, drawn = num_clusters, min(points.total, num_clusters + 64)
    while True:
        # numpy draws without holding all N numbers
        ids = torch.from_numpy(np.random.default_rng(seed).choice(points.total, drawn, replace=False))
        rows = rows_of(points, ids)
        first = _first_of_each(rows)
        if len(first) >= wanted or drawn == points.total:
            break
        drawn = min(points.total, drawn * 4)
    different = min(len(first), wanted)
    rest = torch.ones(len(rows), dtype=torch.bool)
    rest[first] = False
    start = torch.cat([first[:wanted], rest.nonzero().flatten()[: wanted - different]])
    start = start[torch.arange(wanted) % len(start)]  # fewer are held than were asked for: some twice
    return rows[start.to(rows.device)], different


def rows_of(points: Points, ids: Tensor) -> Tensor:
    """[m, C] float32: the group's points with these ids, on every process; m is less than len(ids) where no
    process holds some (they were not usable).
    """
    rows = torch.zeros(len(ids), points.dim, device=points.device)
    held = torch.zeros(len(ids), dtype=torch.long, device=points.device)
    if len(points.ids):
        rising, order = points.ids.sort()
        position = torch.searchsorted(rising, ids).clamp(max=len(rising) - 1)
        own = (rising[position] == ids).nonzero().flatten()
        rows[own.to(points.device)] = points.rows[order[position[own]].to(points.device)].float()
        held[own.to(points.device)] = 1
    points.group.sum(rows, held)  # one process has each row, the others add zeros
    return rows[held > 0]


def distinct_rows(points: Points) -> int:
    """How many different points the group has."""
    return len(torch.unique(points.group.gather(_keys(points.rows))))


def _keys(rows: Tensor) -> Tensor:
    """[n] float64 on the CPU, a random projection of each row: sorting numbers instead of vectors."""
    direction = torch.randn(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # row by row, not as a matrix product: equal rows must give equal keys, wherever they stand
    keys = torch.empty(len(rows), dtype=torch.float64)
    for block, out in zip(rows.split(65536), keys.split(65536), strict=True):
        out.copy_((block.cpu().double() * direction).sum(dim=1))
    return keys


def _first_of_each(rows: Tensor) -> Tensor:
    """Positions of the rows that equal none before them, rising."""
    key = _keys(rows)
    order = torch.argsort(key, stable=True)
    new = torch.ones(len(rows), dtype=torch.bool)
    new[1:] = key[order][1:] != key[order][:-1]
    return order[new].sort().values
