"""A cap on the size of a cluster, for long-tailed data where a few would otherwise take most images."""

from __future__ import annotations

import torch
from torch import Tensor

from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.lloyd import Assign
from pcl_ray.clustering.points import Points


def capped(assign: Assign, nearest: Nearest, limit: int) -> Assign:
    """`assign`, after which no cluster has more than `limit` points: it keeps those nearest to its centroid,
    of equally near ones those with the lowest ids, and the others go to the nearest centroid that has room,
    by the same rule.

    Raises ValueError where `limit` · K < N.
    """

    def assign_capped(
        points: Points, centroids_KC: Tensor, *, labels: Tensor | None, spread: float
    ) -> Tensor:
        if limit * len(centroids_KC) < points.total:
            raise ValueError(
                f"{len(centroids_KC)} clusters of at most {limit} points cannot hold {points.total}"
            )
        capped_labels = assign(points, centroids_KC, labels=labels, spread=spread).clone()
        open_ids = torch.arange(len(centroids_KC), device=capped_labels.device)
        while True:
            sizes = _sizes(points, capped_labels, len(centroids_KC))
            full = sizes >= limit
            if not (sizes > limit).any():
                return capped_labels
            # A cluster that is full stays closed: each round closes one more at least, so this ends.
            open_ids = open_ids[~full[open_ids]]
            surplus = _beyond(points, centroids_KC, capped_labels, sizes > limit, limit)
            if len(open_ids) > 1:
                capped_labels[surplus] = open_ids[nearest(points.take(surplus), centroids_KC[open_ids])]
            else:
                capped_labels[surplus] = open_ids[:1].expand(len(surplus))

    return assign_capped


def _sizes(points: Points, labels: Tensor, num_clusters: int) -> Tensor:
    sizes = torch.bincount(labels, minlength=num_clusters)
    points.group.sum(sizes)
    return sizes


def _beyond(points: Points, centroids: Tensor, labels: Tensor, too_large: Tensor, limit: int) -> Tensor:
    """Positions of this process's rows that their clusters have no room for."""
    rows = too_large[labels].nonzero().flatten()
    distances = (points.rows[rows].double() - centroids[labels[rows]].double()).square().sum(dim=1)
    ids = points.ids.to(rows.device)[rows].double()
    everyone = points.group.gather(torch.stack([labels[rows].double(), distances, ids], dim=1))
    order = _sorted_by_columns(everyone)
    cluster = everyone[order, 0]
    new = torch.cat([torch.ones(1, dtype=torch.bool, device=cluster.device), cluster[1:] != cluster[:-1]])
    first = torch.where(new, torch.arange(len(order), device=cluster.device), 0).cummax(0).values
    position = torch.arange(len(order), device=cluster.device) - first  # 0 for the nearest of each cluster
    surplus = everyone[order[position >= limit], 2]
    return rows[torch.isin(ids, surplus)]


def _sorted_by_columns(table: Tensor) -> Tensor:
    """Row order by the first column, then the second, then the third."""
    order = torch.arange(len(table), device=table.device)
    for column in reversed(range(table.shape[1])):
        order = order[torch.argsort(table[order, column], stable=True)]
    return order
