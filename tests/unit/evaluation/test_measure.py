from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_features import features, labels

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import EvaluationConfig
from pcl_ray.config.knn_figures import half_width
from pcl_ray.evaluation import (
    LabelledFeatures,
    agreement,
    areq,
    knn_accuracy,
    measure,
    measure_clusters,
    measure_labelled,
    measure_references,
    rankme,
    uniformity,
)

N, Q = 60, 20
ALL = np.arange(Q)


def clusters() -> ClusterSet:
    return ClusterSet(1, tuple(Clustering(features(k), labels(N, k), torch.ones(k)) for k in (4, 9)))


def labelled(dim: int, seed: int = 0) -> LabelledFeatures:
    return LabelledFeatures(
        features(N, dim, seed).numpy(),
        labels(N).numpy(),
        features(Q, dim, seed + 1).numpy(),
        labels(Q, seed=1).numpy(),
    )


def accuracy(of: LabelledFeatures, **settings: float) -> float:
    arrays = (of.bank_BD, of.bank_labels_B, of.queries_QD, of.query_labels_Q)
    return knn_accuracy(*(torch.from_numpy(array) for array in arrays), **settings)  # type: ignore[arg-type]


def test_without_labels_figures_are_those_of_the_heads_features() -> None:
    data = features(N)
    figures = measure(data.numpy())
    assert figures == {
        "eval/rankme": rankme(data),
        "eval/areq": areq(data),
        "eval/uniformity": uniformity(data),
    }
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())


def test_backbone_and_head_have_a_figure_each() -> None:
    settings = EvaluationConfig(knn_neighbours=7, knn_temperature=0.5)
    backbone, head = labelled(32), labelled(8, seed=5)
    figures = measure_labelled(backbone, head, ALL, settings)
    assert figures == {
        "eval/knn_top1": accuracy(backbone, neighbours=7, temperature=0.5),
        "eval/head/knn_top1": accuracy(head, neighbours=7, temperature=0.5),
        "eval/knn_top1_error": half_width(figures["eval/knn_top1"], 20),
        "eval/largest_class": np.bincount(backbone.query_labels_Q).max() / len(backbone.query_labels_Q),
    }
    assert figures["eval/knn_top1"] != figures["eval/head/knn_top1"]


def test_where_lines_are_of_fewer_queries_there_is_a_figure_of_these() -> None:
    backbone, some = labelled(32), np.array([1, 5, 6, 11])
    few = LabelledFeatures(
        backbone.bank_BD, backbone.bank_labels_B, backbone.queries_QD[some], backbone.query_labels_Q[some]
    )
    settings = EvaluationConfig(knn_neighbours=7)
    figures = measure_labelled(backbone, labelled(8), some, settings)
    assert figures["eval/sampled/knn_top1"] == accuracy(few, neighbours=7)
    unwanted = EvaluationConfig(knn_neighbours=7, reference_lines=False)
    assert "eval/sampled/knn_top1" not in measure_labelled(backbone, labelled(8), some, unwanted)


def test_reference_lines_are_of_pixels_and_of_the_untrained_encoder() -> None:
    pixels, untrained = labelled(64, seed=3), labelled(32, seed=7)
    figures = measure_references(pixels, untrained, EvaluationConfig(knn_neighbours=7))
    assert figures == {
        "eval/pixels/knn_top1": accuracy(pixels, neighbours=7),
        "eval/untrained/knn_top1": accuracy(untrained, neighbours=7),
    }


def test_clusters_are_compared_with_labels_where_there_are_both() -> None:
    of = labels(N)
    figures = measure_clusters(clusters(), of.numpy())
    for m, clustering in enumerate(clusters().clusterings):
        assert {
            name: figures[f"cluster/{m}/{name}"] for name in ("ami", "nmi", "ari", "purity")
        } == agreement(clustering.assignments, of)
    assert measure_clusters(None, of.numpy()) == {}
    assert measure_clusters(clusters(), None) == {}
    assert measure_clusters(clusters(), np.full(N, -1)) == {}


def test_figures_that_are_no_number_are_left_out() -> None:
    diverged = np.full((N, 8), np.nan, dtype=np.float32)
    assert measure(diverged) == {}
    # one image has no pairs
    assert set(measure(features(1).numpy())) == {"eval/rankme"}


@pytest.mark.parametrize("of_what", ["bank", "queries"])
def test_arrays_may_be_read_only(of_what: str, recwarn: pytest.WarningsRecorder) -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch says it once a process
    backbone = labelled(32)
    arrays = (backbone.bank_labels_B,) if of_what == "bank" else (backbone.query_labels_Q,)
    for array in arrays:
        array.setflags(write=False)
    figures = measure_labelled(backbone, labelled(8), ALL, EvaluationConfig())
    torch.set_warn_always(before)
    assert "eval/knn_top1" in figures
    assert [str(entry.message) for entry in recwarn if "writ" in str(entry.message)] == []
