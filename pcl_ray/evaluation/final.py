"""What is measured once, at a run's end, of the backbone's features: `evaluation.final`."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from pcl_ray.config import EvaluationConfig
from pcl_ray.config.final_figures import (
    CLASSIFIERS,
    CLUSTERS_ACCURACY,
    CLUSTERS_AMI,
    CLUSTERS_ARI,
    CLUSTERS_NMI,
    FINAL_SECONDS,
    LABELS_PER_CLASS,
    LINEAR_TOP1,
    few_labels,
    few_labels_spread,
)
from pcl_ray.evaluation.class_clusters import class_clusters
from pcl_ray.evaluation.few_labels import few_label_accuracy
from pcl_ray.evaluation.labelled import LabelledFeatures
from pcl_ray.evaluation.linear import linear_probe_accuracy

# Multiply-adds of one protocol within which it is as thorough as it can be: less than a minute on one core.
_WORK = 1e12
_USUAL_ITERATIONS = 50  # of the logistic regression of one draw
_USUAL_PASSES = 30  # of one run of k-means
_SELECTION = 5000  # images that the linear probe's penalty is chosen on


def measure_final(backbone: LabelledFeatures, settings: EvaluationConfig) -> dict[str, float]:
    """The figures of `evaluation.final`, and perf/final_seconds; {} where that is empty.

    Draws and starts are the same for all runs. Where features, classes and images are many, what is repeated
    is repeated less: the linear probe in 50 instead of 200 iterations, few labels in 5 draws instead of 30,
    k-means from 2 starts instead of 10. With 60,000 images × 2,048 features of 1,000 classes all of it still
    takes minutes.
    """
    if not settings.final:
        return {}
    start = time.perf_counter()
    figures: dict[str, float] = {}
    classes = len(np.unique(backbone.bank_labels_B))
    size = float(classes * backbone.bank_BD.shape[1])  # multiply-adds of an image with all classes
    parts = _tensors(backbone)
    if "linear" in settings.final:
        images = len(backbone.bank_BD) + 5 * min(len(backbone.bank_BD), _SELECTION)
        iterations = _within(200, 50, 2 * images * size)
        figures[LINEAR_TOP1.name] = linear_probe_accuracy(*parts, iterations=iterations, selection=_SELECTION)
    if "few_labels" in settings.final:
        drawn = classes * sum(LABELS_PER_CLASS)
        draws = _within(30, 5, 2 * _USUAL_ITERATIONS * drawn * size)
        for count in LABELS_PER_CLASS:
            figures |= _few_labels(parts, count, draws, settings)
    if "clusters" in settings.final:
        restarts = _within(10, 2, _USUAL_PASSES * len(backbone.bank_BD) * size)
        agreement = class_clusters(*parts[:2], restarts=restarts)
        names = {"ami": CLUSTERS_AMI, "accuracy": CLUSTERS_ACCURACY, "nmi": CLUSTERS_NMI, "ari": CLUSTERS_ARI}
        figures |= {figure.name: agreement[name] for name, figure in names.items()}
    measured = {name: value for name, value in figures.items() if not math.isnan(value)}
    return measured | {FINAL_SECONDS.name: time.perf_counter() - start}


def _few_labels(
    parts: tuple[Tensor, Tensor, Tensor, Tensor], count: int, draws: int, settings: EvaluationConfig
) -> dict[str, float]:
    """Mean and spread over the draws, of each classifier."""
    accuracies = few_label_accuracy(
        *parts, labels_per_class=count, draws=draws, temperature=settings.knn_temperature
    )
    figures = {}
    for classifier in CLASSIFIERS:
        values = accuracies[classifier]
        figures[few_labels(count, classifier).name] = float(values.mean())
        figures[few_labels_spread(count, classifier).name] = float(values.std(ddof=1))
    return figures


def _within(most: int, least: int, cost: float) -> int:
    """How often something is repeated that costs so many multiply-adds each time."""
    return int(min(max(_WORK / max(cost, 1.0), least), most))


def _tensors(features: LabelledFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(features.bank_BD),
        torch.tensor(features.bank_labels_B),  # a copy: from_numpy warns about what is read-only
        torch.from_numpy(features.queries_QD),
        torch.tensor(features.query_labels_Q),
    )
