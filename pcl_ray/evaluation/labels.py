"""How well clusters agree with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def agreement(assignments_N: Tensor | np.ndarray, labels_N: Tensor | np.ndarray) -> dict[str, float]:
    """The figures ami, nmi, ari (chance level 0 for ami and ari, perfect 1) and purity (0..1) of a
    clustering; empty where fewer than two images have labels.

    ami and ari are adjusted for chance: only they compare clusterings with different K. All labelled images
    count: in a sample, most of many small clusters would hold one image or none, which flatters nmi and
    purity.
    """
    from sklearn import metrics  # takes a second, which runs without labels need not wait for

    assignments, labels = np.asarray(assignments_N), np.asarray(labels_N)
    labelled = np.flatnonzero((labels >= 0) & (assignments >= 0))
    if len(labelled) < 2:
        return {}
    assignments, labels = assignments[labelled], labels[labelled]
    table: Any = metrics.cluster.contingency_matrix(labels, assignments, sparse=True)
    return {
        "ami": float(metrics.adjusted_mutual_info_score(labels, assignments)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, assignments)),
        "ari": float(metrics.adjusted_rand_score(labels, assignments)),
        "purity": float(table.max(axis=0).toarray().sum() / table.sum()),
    }
