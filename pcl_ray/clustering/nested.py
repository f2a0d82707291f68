"""Coarse clusterings made of the finer ones: every coarse prototype is a group of fine prototypes (the
hierarchy of HCSC, Guo et al., CVPR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

_PASSES = 20


def coarse_of_fine(
    centroids_FC: Tensor, sizes_F: Tensor, num_clusters: int, *, seed: int, start_KC: Tensor | None = None
) -> Tensor:
    """[F] int64, the coarse cluster of each fine one: k-means of fine centroids, weighted by their points.

    Fine clusters without points take the nearest coarse one and move none. start_KC: coarse centroids to
    start from; else fine ones drawn by weight, none twice. Needs at least as many fine clusters with points
    as coarse ones. Runs in float64 on numbers that all processes share, so all get the same.
    """
    centroids, weights = centroids_FC.double().cpu(), sizes_F.double().cpu()
    held = int((weights > 0).sum())
    if held < num_clusters:
        raise ValueError(
            f"{num_clusters} coarse clusters need at least as many fine ones with points, there are {held}"
        )
    if start_KC is None:
        # the K largest of u^(1/w) are a draw by weight without replacement (Efraimidis & Spirakis, 2006)
        draw = torch.rand(len(weights), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        keys = torch.where(weights > 0, draw.log() / weights, -torch.inf)
        coarse = centroids[keys.topk(num_clusters).indices.sort().values]
    else:
        coarse = start_KC.double().cpu().clone()
    parents = torch.full((len(centroids),), -1)
    for _ in range(_PASSES):
        nearest = _nearest(centroids, coarse)
        if torch.equal(nearest, parents):
            break
        parents = nearest
        mass = torch.zeros(num_clusters, dtype=torch.float64).index_add_(0, parents, weights)
        sums = torch.zeros_like(coarse).index_add_(0, parents, centroids * weights[:, None])
        coarse = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1)[:, None], coarse)
        _fill_empty(coarse, mass, centroids, weights, parents)
    return parents


def parents(fine_N: Tensor, coarse_N: Tensor, num_fine: int, num_coarse: int) -> Tensor:
    """[F] int64, for each cluster of a fine clustering the cluster of a coarse one that holds most of its
    images (of equal ones the lowest id); −1 if it has none. For any two clusterings of the same N images;
    images that either leaves out (−1) take no part.
    """
    in_both = (fine_N >= 0) & (coarse_N >= 0)
    pairs, counts = torch.unique(fine_N[in_both] * num_coarse + coarse_N[in_both], return_counts=True)
    fine, coarse = pairs // num_coarse, pairs % num_coarse
    order = torch.argsort(counts, stable=True, descending=True)
    order = order[torch.argsort(fine[order], stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = fine[order][1:] != fine[order][:-1]
    parents_F = torch.full((num_fine,), -1)
    parents_F[fine[order][first]] = coarse[order][first]
    return parents_F


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    half = centroids.square().sum(dim=1) / 2
    return torch.cat(
        [(half - block @ centroids.T).argmin(dim=1) for block in rows.split(max(1, 2**23 // len(centroids)))]
    )


def _fill_empty(coarse: Tensor, mass: Tensor, centroids: Tensor, weights: Tensor, parents: Tensor) -> None:
    """Puts coarse clusters without points onto the fine centroids that are farthest from theirs, weighted,
    one each; in place.
    """
    empty = (mass == 0).nonzero().flatten()
    if len(empty):
        strain = weights * (centroids - coarse[parents]).square().sum(dim=1)
        coarse[empty] = centroids[torch.argsort(strain, descending=True, stable=True)[: len(empty)]]
