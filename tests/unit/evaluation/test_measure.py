from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_features import features, labels

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import EvaluationConfig
from pcl_ray.evaluation import agreement, areq, knn_accuracy, measure, rankme, uniformity

N, Q = 60, 20
LABEL_FREE = {"eval/rankme", "eval/areq", "eval/uniformity"}
KNN = {"eval/knn_top1"}
CLUSTERS = {f"cluster/{m}/{name}" for m in (0, 1) for name in ("ami", "nmi", "ari", "purity")}


def clusters() -> ClusterSet:
    return ClusterSet(1, tuple(Clustering(features(k), labels(N, k), torch.ones(k)) for k in (4, 9)))


@pytest.mark.parametrize(
    ("with_labels", "with_holdout", "with_holdout_labels", "with_clusters", "keys"),
    [
        (True, True, True, True, LABEL_FREE | KNN | CLUSTERS),
        (True, True, True, False, LABEL_FREE | KNN),
        (True, False, False, True, LABEL_FREE | CLUSTERS),
        (True, True, False, True, LABEL_FREE | CLUSTERS),
        (False, True, True, True, LABEL_FREE),
        (False, False, False, False, LABEL_FREE),
    ],
)
def test_what_is_measured(
    with_labels: bool, with_holdout: bool, with_holdout_labels: bool, with_clusters: bool, keys: set[str]
) -> None:
    figures = measure(
        features(N).numpy(),
        labels(N).numpy() if with_labels else None,
        features(Q, seed=1).numpy() if with_holdout else None,
        labels(Q).numpy() if with_holdout_labels else None,
        clusters() if with_clusters else None,
        EvaluationConfig(),
    )
    assert set(figures) == keys
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())


def test_each_figure_is_that_of_its_function() -> None:
    data, of, query, query_of = features(N), labels(N), features(Q, seed=1), labels(Q, seed=1)
    settings = EvaluationConfig(knn_neighbours=7, knn_temperature=0.5)
    figures = measure(data.numpy(), of.numpy(), query.numpy(), query_of.numpy(), clusters(), settings)
    assert figures["eval/rankme"] == rankme(data)
    assert figures["eval/areq"] == areq(data)
    assert figures["eval/uniformity"] == uniformity(data)
    assert figures["eval/knn_top1"] == knn_accuracy(data, of, query, query_of, neighbours=7, temperature=0.5)
    for m, clustering in enumerate(clusters().clusterings):
        assert {
            name: figures[f"cluster/{m}/{name}"] for name in ("ami", "nmi", "ari", "purity")
        } == agreement(clustering.assignments, of)


def test_labels_that_say_nothing_are_as_no_labels() -> None:
    none = np.full(N, -1)
    assert (
        set(measure(features(N).numpy(), none, features(Q).numpy(), none[:Q], clusters(), EvaluationConfig()))
        == LABEL_FREE
    )


def test_figures_that_are_no_number_are_left_out() -> None:
    diverged = np.full((N, 8), np.nan, dtype=np.float32)
    assert measure(diverged, None, None, None, None, EvaluationConfig()) == {}
    # one image has no pairs
    assert set(measure(features(1).numpy(), None, None, None, None, EvaluationConfig())) == {"eval/rankme"}


def test_arrays_may_be_read_only(recwarn: pytest.WarningsRecorder) -> None:
    """Labels come read-only out of Ray's store."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch says it once a process
    of = labels(N).numpy()
    of.setflags(write=False)
    figures = measure(features(N).numpy(), of, features(Q).numpy(), of[:Q], clusters(), EvaluationConfig())
    torch.set_warn_always(before)
    assert "eval/knn_top1" in figures
    assert [str(entry.message) for entry in recwarn if "writ" in str(entry.message)] == []
