"""Partitions of features by k-means, for any number of clusters, and how much two seeds agree."""

from __future__ import annotations

import itertools
import os
import warnings

import numpy as np

from pcl_ray.clustering.kmeans import kmeans
from pcl_ray.evaluation.labels import agreement

_FEW_CLUSTERS = 1000  # up to so many, k-means++ finds better starts than random points in little time


def unit_rows(features_NC: np.ndarray) -> np.ndarray:
    """The features as float32 of length 1; a row of zeros remains one."""
    from sklearn.preprocessing import normalize

    return normalize(np.asarray(features_NC, dtype=np.float32))


def partition(
    unit_NC: np.ndarray, num_clusters: int, *, seed: int, restarts: int = 1, iterations: int = 100
) -> np.ndarray:
    """The cluster [N] int64 of each of the features, by k-means of Euclidean distance: the best of `restarts`
    runs by its sum of squares.

    Few clusters start by k-means++ (Arthur & Vassilvitskii, SODA 2007), many from random points, as in an
    E-step. Raises ValueError for fewer features than clusters.
    """
    if num_clusters > len(unit_NC):
        raise ValueError(f"{num_clusters} clusters need at least as many images, there are {len(unit_NC)}")
    if num_clusters > _FEW_CLUSTERS:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        result = kmeans(
            unit_NC,
            num_clusters,
            seed=seed,
            iterations=min(iterations, 20),
            restarts=min(restarts, 5),
            threads=threads,
        )
        return result.assignments.numpy()
    # takes a second, which runs without labels need not wait for
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(num_clusters, n_init=restarts, max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters
        return model.fit_predict(unit_NC).astype(np.int64)


def cluster_stability(partitions: list[np.ndarray]) -> dict[str, list[float]]:
    """How much each pair of partitions [N] of the same images agrees: ami and ari, 1 where both are the same,
    0 where they agree by chance; a list over the pairs.

    What structure the features have, k-means finds from any start (Ben-Hur, Elisseeff & Guyon, Pacific
    Symposium on Biocomputing 2002, of subsamples; of starts, von Luxburg, Foundations and Trends in Machine
    Learning 2010). The paper of the adjusted Rand index is Hubert & Arabie, Journal of Classification 1985.
    """
    pairs = [agreement(one, other) for one, other in itertools.combinations(partitions, 2)]
    return {name: [pair[name] for pair in pairs] for name in ("ami", "ari")}
