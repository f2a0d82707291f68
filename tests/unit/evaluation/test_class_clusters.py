from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from random_features import features, labels, mixture
from sklearn.cluster import KMeans

from pcl_ray.evaluation import agreement, class_clusters, hungarian_accuracy


def best_renaming(assignments: np.ndarray, of: np.ndarray, size: int) -> float:
    """The largest share of right images over all ways to give each cluster a class of its own."""
    return max(
        float((np.array(names)[assignments] == of).mean()) for names in permutations(range(size), size)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("clusters", "classes"), [(5, 5), (6, 3), (2, 6)])
def test_hungarian_accuracy_equals_the_best_of_all_renamings(clusters: int, classes: int, seed: int) -> None:
    assignments = labels(40, clusters, seed=seed)
    of = torch.where(torch.arange(40) % 2 == 0, assignments % classes, labels(40, classes, seed=seed + 50))
    expected = best_renaming(assignments.numpy(), of.numpy(), max(clusters, classes))
    assert hungarian_accuracy(assignments, of) == pytest.approx(expected)


def test_hungarian_accuracy_is_not_purity() -> None:
    """Two clusters of one class: the second stands for nothing."""
    assignments, of = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1])
    assert agreement(assignments, of)["purity"] == 1.0
    assert hungarian_accuracy(assignments, of) == pytest.approx(4 / 6)


def test_images_without_label_or_cluster_take_no_part() -> None:
    assignments, of = np.array([0, 1, 1, -1, 0]), np.array([5, 9, 9, 9, -1])
    assert hungarian_accuracy(assignments, of) == 1.0
    assert np.isnan(hungarian_accuracy(np.array([-1, 0]), np.array([1, -1])))


def test_classes_that_are_clusters_are_found() -> None:
    of = labels(400, 6, lowest=-1)
    rows = 5 * torch.eye(7, 10)[of + 1] + 0.1 * torch.randn(
        400, 10, generator=torch.Generator().manual_seed(0)
    )
    lengths = torch.linspace(0.1, 10, 400)[:, None]  # which say nothing: features are normalised
    assert class_clusters(rows * lengths, of) == pytest.approx(
        {"ami": 1.0, "nmi": 1.0, "ari": 1.0, "purity": 1.0, "accuracy": 1.0}
    )


def test_the_figures_are_those_of_the_best_restart() -> None:
    rows, of = mixture(600, groups=8), torch.arange(600) % 4
    runs = [KMeans(4, n_init=1, random_state=seed).fit(rows.numpy()) for seed in range(40)]
    best = min(runs, key=lambda run: run.inertia_)
    assert max(run.inertia_ for run in runs) > 1.001 * best.inertia_  # else restarts say nothing
    assert class_clusters(rows, of, restarts=40)["ami"] == pytest.approx(
        agreement(best.labels_, of)["ami"], abs=0.02
    )


def test_the_same_seed_gives_the_same_figures() -> None:
    rows, of = features(300), labels(300, 5)
    figures = class_clusters(rows, of, restarts=2, seed=3)
    assert figures == class_clusters(rows, of, restarts=2, seed=3)
    assert abs(figures["ami"]) < 0.05
    assert figures["accuracy"] >= 0.2


def test_what_cannot_be_clustered_is_nan() -> None:
    rows, of = features(20), labels(20, 4)
    broken = rows.clone()
    broken[0] = float("inf")
    for figures in (
        class_clusters(rows, torch.zeros(20, dtype=torch.long)),
        class_clusters(rows, torch.full((20,), -1)),
        class_clusters(rows[:0], of[:0]),
        class_clusters(broken, of),
    ):
        assert set(figures) == {"ami", "nmi", "ari", "purity", "accuracy"}
        assert all(np.isnan(value) for value in figures.values())


def test_constant_features_and_one_image_a_class_are_no_error() -> None:
    constant = class_clusters(torch.ones(20, 8), labels(20, 4))
    assert constant["ami"] == pytest.approx(0.0, abs=1e-9)
    each = class_clusters(features(4), torch.arange(4))
    assert each["accuracy"] == 1.0
