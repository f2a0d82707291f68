"""The protocols that look at how features lie: clusters against classes, and criteria without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pcl_ray.errors import DataError
from pcl_ray.evaluation.class_clusters import hungarian_accuracy
from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.partitions import cluster_stability, partition, unit_rows
from pcl_ray.evaluation.protocols.classifiers import Values
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.unlabelled import alignment, areq, lidar, rankme, uniformity

_RESTARTS = 10  # of k-means at the number of classes; fewer where it is costly
_WORK = 1e12  # multiply-adds of one protocol: a minute on one core
_PASSES = 30  # of one run of k-means, as a rule
_STABILITY_IMAGES = 20_000
_FEWEST_STARTS = 3  # of stability: three pairs


@dataclass(frozen=True, eq=False)
class UnlabelledFeatures:
    """Features of images, and of random views of some of them."""

    rows_NC: np.ndarray
    views_nQC: np.ndarray | None = None  # n images with Q views each; None where there are none


def clusters(features_NC: np.ndarray, labels_N: np.ndarray, settings: ProtocolSettings) -> Values:
    """ami, nmi, ari and Hungarian accuracy of k-means with as many clusters as there are classes,
    `classes/ami`, and with each of `cluster_counts`, `k250/ami`. A run is a seed of k-means.

    Raises DataError for fewer than two classes.
    """
    labelled = np.flatnonzero(labels_N >= 0)
    labels = labels_N[labelled]
    classes = len(np.unique(labels))
    if classes < 2:
        raise DataError("the labelled images are of one class: clusters cannot be compared with it")
    unit = unit_rows(features_NC[labelled])
    counts = {"classes": classes} | {f"k{count}": count for count in settings.cluster_counts}
    values: dict[str, list[float]] = {}
    too_many = [count for count in settings.cluster_counts if count > len(unit)]
    for title, count in counts.items():
        if count in too_many:
            continue
        restarts = _restarts(unit, count, settings.runs)
        for run in range(settings.runs):
            assigned = partition(unit, count, seed=settings.seed + run, restarts=restarts)
            measured = agreement(assigned, labels) | {"accuracy": hungarian_accuracy(assigned, labels)}
            for name in ("ami", "nmi", "ari", "accuracy"):
                values.setdefault(f"{title}/{name}", []).append(measured[name])
    notes: dict[str, Any] = {"classes": classes, "images": len(unit)}
    if too_many:
        notes["left_out"] = f"K = {', '.join(map(str, too_many))}: more than the {len(unit)} labelled images"
    return values, notes


def unlabelled(features: UnlabelledFeatures, num_clusters: int, settings: ProtocolSettings) -> Values:
    """rankme, areq and uniformity of the features; lidar and alignment of the views; stability_ami and
    stability_ari of k-means with `num_clusters` clusters from several seeds, one value a pair of seeds.

    uniformity and alignment are those of features of length 1.
    """
    rows = torch.from_numpy(np.asarray(features.rows_NC, dtype=np.float32))
    if not len(rows) or not bool(torch.isfinite(rows).all()):
        raise DataError("some features are not finite, or there are none: the encoder has diverged")
    unit = unit_rows(features.rows_NC)
    values = {
        "rankme": [rankme(rows)],
        "areq": [areq(rows)],
        "uniformity": [uniformity(torch.from_numpy(unit))],
    }
    notes: dict[str, Any] = {"images": len(rows), "clusters": num_clusters}
    if features.views_nQC is not None:
        images, count, dim = features.views_nQC.shape
        views = torch.from_numpy(np.asarray(features.views_nQC, dtype=np.float32))
        of_unit = torch.from_numpy(unit_rows(views.reshape(-1, dim).numpy())).reshape(views.shape)
        values["lidar"] = [lidar(views)]
        values["alignment"] = [alignment(of_unit[:, 0::2].flatten(0, 1), of_unit[:, 1::2].flatten(0, 1))]
        notes |= {"view_images": images, "views": count}
    sample = unit[np.linspace(0, len(unit) - 1, min(len(unit), _STABILITY_IMAGES)).astype(int)]
    if 2 <= num_clusters <= len(sample) // 2:
        starts = max(settings.runs, _FEWEST_STARTS)
        parts = [partition(sample, num_clusters, seed=settings.seed + run) for run in range(starts)]
        values |= {f"stability_{name}": pairs for name, pairs in cluster_stability(parts).items()}
        notes["starts"] = starts
    return values, notes


def _restarts(unit_NC: np.ndarray, num_clusters: int, runs: int) -> int:
    cost = float(_PASSES) * runs * unit_NC.size * num_clusters
    return int(min(max(_WORK / cost, 1), _RESTARTS))
