"""What all rules of the doctor use: what they say, and how they read the curves of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pcl_ray import plan
from pcl_ray.clustering import health
from pcl_ray.config.figures import (
    CONE,
    HEAD_KNN_TOP1,
    KNN_TOP1,
    LOSS_PROTOTYPE,
    NUM_CLUSTERS,
    PIXELS_KNN_TOP1,
    RANK,
    SPREAD,
    UNTRAINED_KNN_TOP1,
    Figure,
)
from pcl_ray.report.run_record import RunRecord

Severity = Literal["problem", "warning", "note", "good"]
LINES = {PIXELS_KNN_TOP1: "raw pixels", UNTRAINED_KNN_TOP1: "the untrained encoder"}
_NOISE = 2.0  # standard errors of a difference of two accuracies, which differ by chance alone
_FEW_HELD_OUT = 200  # images, where their number is not known
Points = list[tuple[int, float]]  # (epoch from 1, value)


@dataclass(frozen=True)
class Finding:
    """What one rule has to say of a run. rule: its name, for tests and links. meaning: what is seen, with
    the numbers of this run. advice: knobs with values to try.
    """

    rule: str
    severity: Severity
    title: str
    meaning: str
    advice: tuple[str, ...]


def late(points: Points) -> Points:
    """The last third of a curve, at least its last value."""
    return points[-max(1, len(points) // 3) :]


def mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points)


def at_end(record: RunRecord, figure: Figure) -> float | None:
    """The mean of the last third; None where the figure is not known."""
    points = record.finite(figure)
    return mean(late(points)) if points else None


def newest(record: RunRecord, figure: Figure) -> float | None:
    """The last value; None where the figure is not known."""
    points = record.finite(figure)
    return points[-1][1] if points else None


def prototype_epochs(record: RunRecord) -> int:
    """The number of epochs that were trained with prototypes."""
    return len(record.series(LOSS_PROTOTYPE))


def clusterings(record: RunRecord) -> list[tuple[int, int]]:
    """(m, K) of every clustering whose K is known: from the run, its E-steps or its configuration."""
    counts = []
    for m, configured in enumerate(record.configured_clusters):
        measured = newest(record, NUM_CLUSTERS.at(m))
        if m < len(record.num_clusters) and record.num_clusters[m]:
            k = record.num_clusters[m]
        elif measured:
            k = int(measured)
        elif isinstance(configured, int):
            k = configured
        else:
            k = round(configured * record.num_images)
        if k >= 2:
            counts.append((m, k))
    return counts


def each(record: RunRecord, figure: Figure) -> list[tuple[int, int, float]]:
    """(m, K, newest value) of a figure that every clustering has."""
    return [
        (m, k, value) for m, k in clusterings(record) if (value := newest(record, figure.at(m))) is not None
    ]


def which(record: RunRecord, m: int, k: int) -> str:
    """A clustering in words; its number only where there are several."""
    several = len(record.configured_clusters) > 1
    return f"clustering {m} (K = {k})" if several else f"the clustering (K = {k})"


def covered(loss: float, columns: float, temperature: float) -> float:
    """How much of its way a contrastive loss has gone, 0..1: from the logarithm of the number of columns,
    where all look alike, to where the right one has cosine 1 and all others 0. A share, since at a high
    temperature the whole way is short.
    """
    top, floor = math.log(columns), math.log(1 + (columns - 1) * math.exp(-1 / temperature))
    return (top - loss) / (top - floor) if top > floor else 1.0


def columns_of(record: RunRecord, k: int) -> float:
    """What a prototype is compared with, itself among it: all K, or the batch's own and the drawn ones less
    those that are hidden as its own.
    """
    drawn = plan.negatives(record.config, k)
    if drawn is None:
        return k
    batch = record.config.train.batch_size
    seen = (batch - 1) * (1 - 1 / k) if record.config.loss.mask_duplicates else batch - 1
    return 1 + seen + min(drawn, k - 1)


def collapse_limit(record: RunRecord) -> float:
    """Effective rank below which the E-step refuses features."""
    return health.least_rank(record.config.e_step.collapse_rank, record.config.encoder.dim)


def gauges_collapsed(record: RunRecord, metrics: Mapping[str, float]) -> bool:
    """Whether the E-step of an epoch refused the features themselves, rather than the clustering."""
    config = record.config
    gauges = health.Gauges(
        metrics.get(CONE.name, 0.0), metrics.get(SPREAD.name, 1.0), metrics.get(RANK.name, math.inf)
    )
    limits = config.e_step
    reason = health.collapse(gauges, config.encoder.dim, cone=limits.collapse_cone, rank=limits.collapse_rank)
    return bool(reason)


def accuracy_figure(record: RunRecord) -> Figure:
    """The kNN accuracy of the backbone; of runs that earlier versions recorded the head's, the only one."""
    return KNN_TOP1 if record.finite(KNN_TOP1) else HEAD_KNN_TOP1


def reference_lines(record: RunRecord) -> dict[Figure, float]:
    """What raw pixels and the untrained encoder reach, those of them that were measured."""
    lines = {line: newest(record, line) for line in LINES}
    return {line: value for line, value in lines.items() if value is not None}


def knn_noise(record: RunRecord, accuracy: float, most: int | None = None) -> float:
    """The difference that two kNN accuracies must have before it means anything. most: images that they were
    measured on at the most, instead of `evaluation.query_images`.
    """
    images = min(record.num_holdout or _FEW_HELD_OUT, most or record.config.evaluation.query_images)
    return _NOISE * math.sqrt(2 * max(accuracy * (1 - accuracy), 1e-4) / images)
