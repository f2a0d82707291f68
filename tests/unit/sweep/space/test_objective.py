"""What trials can be compared by, and what speaks against one of them."""

from __future__ import annotations

import pytest

from pcl_ray.sweep.space import objective
from pcl_ray.sweep.space.settings import SweepConfig


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("train/loss", "grows and shrinks with τ and K"),
        ("train/loss_prototype", "grows and shrinks"),
        ("train/accuracy_prototype_0", "another task for every K"),
        ("cluster/0/objective", "inertia of k-means falls with every further cluster"),
        ("cluster/1/nmi", "adjusted for that"),
        ("cluster/0/purity", "rise with K by chance"),
        ("eval/uniformity", "trade off"),
        ("eval/knn", "did you mean 'eval/knn_top1'"),
    ],
)
def test_what_cannot_compare_trials_is_refused_with_the_reason(metric: str, why: str) -> None:
    (problem,) = objective.problems(metric, None, labelled=True)
    assert why in str(problem)


@pytest.mark.parametrize(
    "metric",
    [
        "eval/knn_top1",
        "eval/head/knn_top1",
        "eval/rankme",
        "eval/lidar",
        "eval/areq",
        "cluster/0/ami",
        "cluster/2/ari",
    ],
)
def test_what_can_compare_trials_is_taken(metric: str) -> None:
    assert not list(objective.problems(metric, None, labelled=True))


def test_labels_and_modes_must_fit_the_metric() -> None:
    assert "needs labels" in str(*objective.problems("cluster/0/ami", None, labelled=False))
    assert not list(objective.problems("eval/rankme", "max", labelled=False))
    assert "more is better" in str(*objective.problems("eval/knn_top1", "min", labelled=True))
    assert "near 1" in str(*objective.problems("eval/areq", "max", labelled=False))


def test_scores_are_always_better_when_higher() -> None:
    assert objective.of("eval/areq").score(0.9) == pytest.approx(-0.1)
    assert objective.of("eval/areq").score(1.3) < objective.of("eval/areq").score(0.9)
    assert objective.of("eval/knn_top1").score(0.9) == 0.9


GOOD = {"eval/rankme": 20.0, "cluster/0/k": 10.0, "cluster/0/empty": 0.0, "cluster/0/largest_share": 0.2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"eval/rankme": 4.9}, "effective rank 4.9"),
        ({"cluster/0/largest_share": 0.51}, "holds 51%"),
        ({"cluster/0/empty": 3.0}, "30% of the clusters are empty"),
        ({"cluster/1/k": 4.0, "cluster/1/empty": 2.0}, "50% of the clusters"),
    ],
)
def test_collapse_is_refused_where_no_labels_would_show_it(change: dict[str, float], reason: str) -> None:
    refusal = objective.of("eval/rankme").refusal(GOOD | change, SweepConfig())
    assert reason in refusal
    assert bool(refusal) == bool(reason)
    assert objective.of("eval/knn_top1").refusal(GOOD | change, SweepConfig()) == ""
