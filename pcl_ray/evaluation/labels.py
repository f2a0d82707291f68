"""Clusters against labels."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_SAMPLE = 50_000  # images that the scores are computed on at most; AMI's cost grows with classes × clusters


def agreement(assignments_N: Tensor | np.ndarray, labels_N: Tensor | np.ndarray) -> dict[str, float]:
    """ami, nmi, ari (chance level 0 for ami and ari, perfect 1) and purity (0..1) of a clustering; empty where fewer than two images have labels.

    ami and ari are adjusted for chance: only they compare clusterings with different K. Of more than 50,000 images a fixed sample is taken.
    """
    from sklearn import metrics

    assignments, labels = np.asarray(assignments_N), np.asarray(labels_N)
    known = np.flatnonzero(labels >= 0)
    if len(known) < 2:
        return {}
    if len(known) > _SAMPLE:
        known = np.random.default_rng(0).choice(known, _SAMPLE, replace=False)
    assignments, labels = assignments[known], labels[known]
    table = np.asarray(metrics.cluster.contingency_matrix(labels, assignments))
    return {
        "ami": float(metrics.adjusted_mutual_info_score(labels, assignments)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, assignments)),
        "ari": float(metrics.adjusted_rand_score(labels, assignments)),
        "purity": float(table.max(axis=0).sum() / table.sum()),
    }
