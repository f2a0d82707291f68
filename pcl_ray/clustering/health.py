"""Whether features can be clustered, and whether a clustering can be used. φ cannot tell: its clip and its
stand-ins make a collapsed run look healthy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pcl_ray.clustering.assign.shortlist import sampled
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.config.figures import CONE, RANK, SPREAD

# Mean squared distance of unit features to their mean below which all images sit on one point.
COLLAPSED_SPREAD = 1e-4
_SAME = 1e-9  # what rounding leaves between features of one image
NORMS = (0.5, 1.5)  # features are L2-normalised; zero vectors and rows that were added up twice lie outside
FEW = 1e-4  # share of rows that may be unusable; more, and the encoder is broken
_SAMPLE = 8192  # rows that the gauges are taken from
_RANK_DIMS = 512  # dimensions that the rank is taken in

EMPTY, _SINGLETONS = 0.01, 0.25
DOMINANT, TIMES_MEAN = 0.1, 20.0
# A cluster whose mean squared distance is below this share of the others' holds copies of one image.
_COPIES = 0.01


@dataclass(frozen=True)
class Gauges:
    """How spread out unit features are."""

    cone: float  # ‖mean‖², the mean cosine of two random images: 1 where all point one way
    spread: float  # mean squared distance to the mean
    # Effective rank: exp of the entropy of the singular values around the mean (RankMe, ICML 2023).
    rank: float

    def figures(self) -> dict[str, float]:
        return {CONE.name: self.cone, SPREAD.name: self.spread, RANK.name: self.rank}


def unusable(rows_nC: Tensor) -> tuple[Tensor, Tensor]:
    """Two [n] bool: rows that are not finite, and finite rows whose length is nowhere near one."""
    norms = torch.zeros(0)
    if len(rows_nC):
        blocks = rows_nC.split(65536)
        norms = torch.cat([torch.linalg.vector_norm(block.float(), dim=1) for block in blocks])
    broken = ~torch.isfinite(norms)
    return broken, ~broken & ((norms < NORMS[0]) | (norms > NORMS[1]))


def gauges(points: Points) -> Gauges:
    """The group's gauges, from one sample that all processes see, however the points are spread."""
    # drawn, not every so many: images often come in a pattern
    sample = sampled(points.ids, _SAMPLE / max(points.total, 1), 0)
    ids = points.group.gather(points.ids[sample])
    rows = points.group.gather(points.rows[sample.to(points.device)])
    rows = rows[ids.argsort().to(rows.device)].double()
    if points.dim > _RANK_DIMS:  # a random projection keeps what is asked here: whether the rank is small
        draw = torch.randn(
            points.dim, _RANK_DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        rows = rows @ draw.to(rows.device) / math.sqrt(_RANK_DIMS)
    mean = rows.sum(dim=0) / max(len(rows), 1)
    covariance = rows.T @ rows / max(len(rows), 1) - torch.outer(mean, mean)
    values = torch.linalg.eigvalsh(covariance.cpu()).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12) + 1e-12
    return Gauges(
        float(mean.square().sum()), float(covariance.trace()), float(torch.exp(-(share * share.log()).sum()))
    )


def least_rank(rank: float, dim: int) -> float:
    """The limit of the effective rank: of few dimensions even healthy features use few."""
    return min(rank, dim / 4)


def collapse(gauges: Gauges, dim: int, *, cone: float, rank: float) -> str:
    """Why these features have collapsed, by the limits of `e_step.collapse_cone` and `e_step.collapse_rank`;
    "" if they have not.
    """
    if gauges.spread < COLLAPSED_SPREAD:
        alike = "; so near that the images may be all the same" if gauges.spread < _SAME else ""
        return (
            "the features have collapsed onto one point (mean squared distance to their mean"
            f" {max(gauges.spread, 0.0):.1e}{alike})"
        )
    if gauges.cone > cone:
        return (
            f"the features have collapsed into a cone (mean cosine of two images {gauges.cone:.3f}, the limit"
            f" is e_step.collapse_cone = {cone:g})"
        )
    least = least_rank(rank, dim)
    if gauges.rank < least:
        return (
            f"the features have collapsed into {gauges.rank:.1f} of {dim} dimensions (the limit is {least:g},"
            " from e_step.collapse_rank)"
        )
    return ""


def faults(moments: Moments, total: int) -> list[str]:
    """What makes a clustering unusable, in words; empty if nothing does."""
    sizes, num_clusters = moments.sizes, len(moments.sizes)
    reasons = []
    empty, singletons = int((sizes == 0).sum()), int((sizes == 1).sum())
    if empty > EMPTY * num_clusters:
        reasons.append(f"{empty} of {num_clusters} clusters are empty")
    size, copies = _dominant(moments, total)
    others = total - size if copies else total
    # with fewer images a cluster, many singletons are to be expected
    if singletons > _SINGLETONS * num_clusters and others >= 4 * num_clusters:
        reasons.append(f"{singletons} of {num_clusters} clusters hold one image")
    if size and not copies:
        reasons.append(f"one of {num_clusters} clusters holds {size / total:.0%} of the images")
    return reasons


def duplicates(moments: Moments, total: int) -> str:
    """A warning where one image, many times over, fills a cluster of its own; else ""."""
    size, copies = _dominant(moments, total)
    if not copies:
        return ""
    return (
        f"one cluster holds {size / total:.0%} of the images, all but a few with the same features: look for"
        " duplicate images"
    )


def _dominant(moments: Moments, total: int) -> tuple[int, bool]:
    """Images of the largest cluster where they are far too many, else 0; and whether they are copies of one
    image, which are one cluster rightly.

    A few others may lie among the copies: those for which no other centroid is nearer.
    """
    largest = int(moments.sizes.argmax())
    size = int(moments.sizes[largest])
    if size <= max(DOMINANT, TIMES_MEAN / len(moments.sizes)) * total:
        return 0, False
    scatter = moments.scatter()
    within, rest = float(scatter[largest]), float(scatter.sum() - scatter[largest])
    return size, within == 0 or within / size < _COPIES * rest / max(int(moments.sizes.sum()) - size, 1)
