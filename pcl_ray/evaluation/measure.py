"""The figures that are measured during training from features that the E-step has anyway."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import EvaluationConfig
from pcl_ray.config.figures import (
    AREQ,
    HEAD_KNN_TOP1,
    KNN_ERROR,
    KNN_TOP1,
    LARGEST_CLASS,
    PIXELS_KNN_TOP1,
    RANKME,
    SAMPLED_KNN_TOP1,
    UNIFORMITY,
    UNTRAINED_KNN_TOP1,
)
from pcl_ray.config.knn_figures import half_width
from pcl_ray.evaluation.knn import knn_hits, share_of
from pcl_ray.evaluation.labelled import LabelledFeatures
from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.unlabelled import areq, rankme, uniformity


def measure(features_NC: np.ndarray) -> dict[str, float]:
    """The figures eval/rankme, eval/areq and eval/uniformity of the head's features, which need no labels."""
    features = torch.from_numpy(features_NC)
    return _numbers(
        {RANKME.name: rankme(features), AREQ.name: areq(features), UNIFORMITY.name: uniformity(features)}
    )


def measure_labelled(
    backbone: LabelledFeatures,
    head: LabelledFeatures,
    reference_queries: np.ndarray,
    config: EvaluationConfig,
) -> dict[str, float]:
    """The figures eval/knn_top1 with its ±, eval/head/knn_top1 and eval/largest_class, on the same images;
    where reference lines are measured on fewer queries, those at the positions `reference_queries`,
    eval/sampled/knn_top1 on these.
    """
    hits = _hits(backbone, config)
    accuracy, labels = share_of(hits), backbone.query_labels_Q
    figures = {KNN_TOP1.name: accuracy, HEAD_KNN_TOP1.name: share_of(_hits(head, config))}
    if len(labels):
        figures[KNN_ERROR.name] = half_width(accuracy, len(labels))
        figures[LARGEST_CLASS.name] = float(np.bincount(labels).max() / len(labels))
    if config.reference_lines and len(reference_queries) < len(hits):
        figures[SAMPLED_KNN_TOP1.name] = share_of(hits[torch.from_numpy(reference_queries)])
    return _numbers(figures)


def measure_references(
    pixels: LabelledFeatures, untrained: LabelledFeatures, config: EvaluationConfig
) -> dict[str, float]:
    """The figures eval/pixels/knn_top1 and eval/untrained/knn_top1."""
    return _numbers(
        {
            PIXELS_KNN_TOP1.name: share_of(_hits(pixels, config)),
            UNTRAINED_KNN_TOP1.name: share_of(_hits(untrained, config)),
        }
    )


def measure_clusters(clusters: ClusterSet | None, labels_N: np.ndarray | None) -> dict[str, float]:
    """The figures cluster/M/ami … of clustering number M, where there are clusters and labels."""
    if clusters is None or labels_N is None:
        return {}
    return _numbers(
        {
            f"cluster/{m}/{name}": value
            for m, c in enumerate(clusters.clusterings)
            for name, value in agreement(c.assignments, labels_N).items()
        }
    )


def _hits(features: LabelledFeatures, config: EvaluationConfig) -> Tensor:
    """[Q] bool: the queries that the kNN classifier gets right."""
    return knn_hits(
        torch.from_numpy(features.bank_BD),
        torch.tensor(features.bank_labels_B),  # a copy: from_numpy warns about what is read-only
        torch.from_numpy(features.queries_QD),
        torch.tensor(features.query_labels_Q),
        neighbours=config.knn_neighbours,
        temperature=config.knn_temperature,
    )


def _numbers(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not math.isnan(value)}
