"""What trials are compared by: possible metrics, what speaks against a trial, the score for Ray Tune."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pcl_ray.config import figures
from pcl_ray.config.figures import Direction
from pcl_ray.errors import Problem
from pcl_ray.support.text import suggestion
from pcl_ray.sweep.space.settings import SweepConfig

WORST = -1e6  # score of a trial that is refused: below any metric here

# Wu et al., CVPR 2018; Garrido et al., ICML 2023; Thilak et al., ICLR 2024; Agrawal et al., NeurIPS 2022
_DIRECTIONS = {
    figure.name: figure.direction
    for figure in (figures.KNN_TOP1, figures.HEAD_KNN_TOP1, figures.RANKME, figures.LIDAR, figures.AREQ)
    if figure.direction is not None
}
_WITHOUT_LABELS = tuple(figure.name for figure in figures.WITHOUT_LABELS)
_AGREEMENT = re.compile(r"cluster/\d+/(ami|ari)")
_INCOMPARABLE = {
    r"train/.*loss.*|.*/loss": (
        "the loss grows and shrinks with τ and K by itself: a lower one does not mean better features"
    ),
    r"cluster/\d+/objective.*|.*inertia.*": (
        "the inertia of k-means falls with every further cluster: it cannot compare different K"
    ),
    r"train/.*(accuracy|proto|top1).*": (
        "the accuracy among prototypes or keys is that of another task for every K, τ and queue: it cannot"
        " compare trials"
    ),
    r"cluster/\d+/(nmi|purity)": (
        "NMI and purity rise with K by chance alone; cluster/0/ami and cluster/0/ari are adjusted for that"
    ),
    r"eval/(alignment|uniformity)": (
        "alignment and uniformity trade off against each other with τ: neither alone says which trial is"
        " better"
    ),
}


@dataclass(frozen=True)
class Objective:
    """A metric that trials are compared by, and what makes it comparable."""

    metric: str
    direction: Direction
    guarded: bool  # without labels: collapsed trials are refused

    def score(self, value: float) -> float:
        """The value as searchers and schedulers see it: more is better."""
        match self.direction:
            case "max":
                return value
            case "min":
                return -value
            case "nearest_one":
                return -abs(value - 1)

    def refusal(self, metrics: Mapping[str, float], settings: SweepConfig) -> str:
        """Why these metrics mean collapsed features, or "". Criteria without labels can be high for such."""
        if not self.guarded:
            return ""
        rank = metrics.get(figures.RANKME.name, math.inf)
        if rank < settings.min_rank:
            return f"effective rank {rank:.1f}, below sweep.min_rank = {settings.min_rank:g}"
        for m in figures.clusterings_in(metrics):
            largest = metrics.get(figures.LARGEST_SHARE.at(m).name, 0.0)
            if largest > settings.max_cluster_share:
                return (
                    f"the largest cluster holds {largest:.0%} of the images, above sweep.max_cluster_share ="
                    f" {settings.max_cluster_share:g}"
                )
            count = metrics[figures.NUM_CLUSTERS.at(m).name]
            empty = metrics.get(figures.EMPTY.at(m).name, 0.0) / max(count, 1.0)
            if empty > settings.max_empty_share:
                return (
                    f"{empty:.0%} of the clusters are empty, above sweep.max_empty_share ="
                    f" {settings.max_empty_share:g}"
                )
        return ""


def default(labelled: bool) -> str:
    """The metric of sweeps whose space and settings name none."""
    return (figures.KNN_TOP1 if labelled else figures.RANKME).name


def of(metric: str, mode: str | None = None) -> Objective:
    """The objective of a metric that `problems` has nothing against."""
    direction: Direction = _DIRECTIONS.get(metric, "max")
    if mode is not None and direction != "nearest_one":
        direction = "max" if mode == "max" else "min"
    return Objective(metric, direction, guarded=metric in _WITHOUT_LABELS)


def problems(
    metric: str, mode: str | None, *, labelled: bool, name: str = "sweep.objective"
) -> Iterable[Problem]:
    """What is wrong with comparing trials by `metric`."""
    examples = [*_DIRECTIONS, figures.AMI.at(0).name, figures.ARI.at(0).name]
    allowed = ", ".join(examples)
    if metric not in _DIRECTIONS and not _AGREEMENT.fullmatch(metric):
        for pattern, reason in _INCOMPARABLE.items():
            if re.fullmatch(pattern, metric):
                yield Problem(name, metric, f"{reason}; use one of {allowed}")
                return
        hint = suggestion(metric, examples)
        yield Problem(name, metric, (f"{hint} " if hint else "") + f"allowed: {allowed}")
        return
    if metric not in _WITHOUT_LABELS and not labelled:
        yield Problem(
            name,
            metric,
            "needs labels of training and held-out images, which these data do not have; use one of"
            f" {', '.join(_WITHOUT_LABELS)}",
        )
    better = _DIRECTIONS.get(metric, "max")
    if mode is not None and mode != better:
        meant = "values near 1 are" if better == "nearest_one" else "more is"
        yield Problem("sweep.mode", mode, f"of {metric}, {meant} better; leave the mode out")


def clustering_of(metric: str) -> int | None:
    """The number of the clustering that a metric is about."""
    entry = figures.find(metric)
    return entry[1] if entry else None
