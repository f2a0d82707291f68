"""The figures that are measured during training from features that the E-step has anyway."""

from __future__ import annotations

import math

import numpy as np
import torch

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import EvaluationConfig
from pcl_ray.config.figures import AREQ, KNN_TOP1, RANKME, UNIFORMITY
from pcl_ray.evaluation.knn import knn_accuracy
from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.unlabelled import areq, rankme, uniformity


def measure(
    features_NC: np.ndarray,
    labels_N: np.ndarray | None,
    holdout_QC: np.ndarray | None,
    holdout_labels_Q: np.ndarray | None,
    clusters: ClusterSet | None,
    config: EvaluationConfig,
) -> dict[str, float]:
    """The figures eval/rankme, eval/areq and eval/uniformity always; with labels eval/knn_top1 on the
    held-out part and the figures of `measure_clusters`.
    """
    features = torch.from_numpy(features_NC)
    figures = {
        RANKME.name: rankme(features),
        AREQ.name: areq(features),
        UNIFORMITY.name: uniformity(features),
    }
    if labels_N is not None and holdout_QC is not None and holdout_labels_Q is not None:
        figures[KNN_TOP1.name] = knn_accuracy(
            features,
            # a copy: labels come read-only out of Ray's store, which from_numpy warns about
            torch.tensor(labels_N),
            torch.from_numpy(holdout_QC),
            torch.tensor(holdout_labels_Q),
            neighbours=config.knn_neighbours,
            temperature=config.knn_temperature,
        )
    figures |= measure_clusters(clusters, labels_N)
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def measure_clusters(clusters: ClusterSet | None, labels_N: np.ndarray | None) -> dict[str, float]:
    """The figures cluster/M/ami … of clustering number M, where there are clusters and labels."""
    if clusters is None or labels_N is None:
        return {}
    return {
        f"cluster/{m}/{name}": value
        for m, c in enumerate(clusters.clusterings)
        for name, value in agreement(c.assignments, labels_N).items()
    }
