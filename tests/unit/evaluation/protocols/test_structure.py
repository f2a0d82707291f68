"""Clusters against classes, and criteria without labels; these have their slow references where they are
defined, in test_unlabelled.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from random_features import mixture
from sklearn import metrics

from pcl_ray.errors import DataError
from pcl_ray.evaluation import class_clusters
from pcl_ray.evaluation.partitions import cluster_stability, partition, unit_rows
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.protocols.structure import UnlabelledFeatures, clusters, unlabelled


def slow_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """The adjusted Rand index by counting pairs of images (Hubert & Arabie 1985, equation 5)."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    together = [(one[i] == one[j], other[i] == other[j]) for i, j in pairs]
    both = sum(a and b for a, b in together)
    first, second = sum(a for a, _ in together), sum(b for _, b in together)
    expected = first * second / len(pairs)
    return (both - expected) / ((first + second) / 2 - expected)


def test_stability_is_the_agreement_of_each_pair() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.integers(0, 3, 25) for _ in range(3)]
    measured = cluster_stability(parts)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert measured["ari"] == pytest.approx([slow_rand_index(parts[i], parts[j]) for i, j in pairs])
    assert measured["ami"] == pytest.approx(
        [metrics.adjusted_mutual_info_score(parts[j], parts[i]) for i, j in pairs]
    )
    assert cluster_stability([parts[0], 2 - parts[0]]) == {"ami": [pytest.approx(1)], "ari": [1.0]}


def test_structure_is_stable_and_noise_is_not() -> None:
    grouped, noise = unit_rows(mixture(600, 8, groups=4).numpy()), np.random.default_rng(0)
    settings = ProtocolSettings(runs=4)
    stable, notes = unlabelled(UnlabelledFeatures(grouped), 4, settings)
    unstable, _ = unlabelled(UnlabelledFeatures(noise.standard_normal((600, 8))), 4, settings)
    assert notes["starts"] == 4
    assert len(stable["stability_ari"]) == 6
    assert np.mean(stable["stability_ari"]) > np.mean(unstable["stability_ari"]) + 0.2


def test_many_clusters_are_found_as_few_are() -> None:
    """Beyond a thousand clusters the E-step's k-means takes over from scikit-learn's."""
    rows = unit_rows(np.random.default_rng(0).standard_normal((2600, 6)))
    assigned = partition(rows, 1100, seed=0)
    assert len(np.unique(assigned)) > 1000
    centroids = np.stack([rows[assigned == k].mean(axis=0) for k in np.unique(assigned)])
    spread = ((rows - centroids[np.unique(assigned, return_inverse=True)[1]]) ** 2).sum()
    assert spread < 0.1 * ((rows - rows.mean(axis=0)) ** 2).sum()
    with pytest.raises(ValueError, match="3 clusters need at least as many images, there are 2"):
        partition(rows[:2], 3, seed=0)


def test_clusters_at_the_number_of_classes_and_at_others() -> None:
    rows = mixture(500, 8, groups=5).numpy()
    of = np.where(np.arange(500) % 7 == 0, -1, np.arange(500) % 5)
    values, notes = clusters(rows, of, ProtocolSettings(runs=2, cluster_counts=(12, 900)))
    expected = class_clusters(torch.from_numpy(rows), torch.from_numpy(of))
    assert {name: values[f"classes/{name}"][0] for name in ("ami", "nmi", "ari", "accuracy")} == (
        pytest.approx({name: expected[name] for name in ("ami", "nmi", "ari", "accuracy")})
    )
    assert len(values["k12/ami"]) == 2
    assert not any(name.startswith("k900") for name in values)
    assert notes["left_out"] == f"K = 900: more than the {int((of >= 0).sum())} labelled images"
    with pytest.raises(DataError, match="of one class"):
        clusters(rows, np.zeros(500, int), ProtocolSettings())


def test_alignment_and_uniformity_are_of_unit_features() -> None:
    """Wang & Isola 2020: the mean of ‖x − y‖² over pairs of views, log mean exp(−2 ‖x − y‖²) over images."""
    draw = np.random.default_rng(0)
    rows, views = draw.standard_normal((40, 6)) * 5, draw.standard_normal((9, 4, 6)) * 3
    values, notes = unlabelled(UnlabelledFeatures(rows, views), 4, ProtocolSettings())
    unit = [row / np.linalg.norm(row) for row in rows]
    pairs = [math.exp(-2 * np.sum((x - y) ** 2)) for x, y in itertools.combinations(unit, 2)]
    assert values["uniformity"][0] == pytest.approx(math.log(np.mean(pairs)), abs=1e-5)
    apart = [
        np.sum((x[a] / np.linalg.norm(x[a]) - x[a + 1] / np.linalg.norm(x[a + 1])) ** 2)
        for x in views
        for a in (0, 2)
    ]
    assert values["alignment"][0] == pytest.approx(np.mean(apart), rel=1e-5)
    assert (notes["view_images"], notes["views"]) == (9, 4)
    with pytest.raises(DataError, match="not finite"):
        unlabelled(UnlabelledFeatures(np.full((4, 2), np.nan)), 2, ProtocolSettings())
