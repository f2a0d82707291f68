"""Whether k-means finds the classes: as many clusters as there are classes, compared with the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.linear import labelled
from pcl_ray.evaluation.partitions import partition, unit_rows


def class_clusters(
    features_NC: Tensor, labels_N: Tensor, *, restarts: int = 10, iterations: int = 100, seed: int = 0
) -> dict[str, float]:
    """The figures ami, nmi, ari, purity and accuracy of k-means with as many clusters as the labels have
    classes: all 1 where clusters are classes; chance is 0 for ami and ari, and above 0 for the others.

    Features [N, C] are normalised to length 1. The best of `restarts` runs by its sum of squares, each from
    a k-means++ start (Arthur & Vassilvitskii, SODA 2007), in at most `iterations` passes. accuracy: see
    `hungarian_accuracy`. Negative labels take no part. NaN where fewer than two classes are left, or a
    feature is not finite.
    """
    features, labels = labelled(features_NC, labels_N)
    classes = len(np.unique(labels))
    if classes < 2 or not np.isfinite(features).all():
        return dict.fromkeys(("ami", "nmi", "ari", "purity", "accuracy"), float("nan"))
    assignments = partition(unit_rows(features), classes, seed=seed, restarts=restarts, iterations=iterations)
    return {**agreement(assignments, labels), "accuracy": hungarian_accuracy(assignments, labels)}


def hungarian_accuracy(assignments_N: Tensor | np.ndarray, labels_N: Tensor | np.ndarray) -> float:
    """The share of the images (0..1) whose cluster stands for their class, where each class gets at most one
    cluster and each cluster at most one class, in the way that makes the share largest (Kuhn, Naval Research
    Logistics Quarterly 1955).

    Negative labels and assignments take no part. NaN where no image is left. Needs memory for clusters ×
    classes numbers.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    assignments, labels = np.asarray(assignments_N), np.asarray(labels_N)
    rows = np.flatnonzero((labels >= 0) & (assignments >= 0))
    if not len(rows):
        return float("nan")
    table: Any = contingency_matrix(labels[rows], assignments[rows])
    matched = table[linear_sum_assignment(table, maximize=True)]
    return float(matched.sum() / len(rows))
