"""The search behind kNN against sorting in float64, and against scikit-learn's brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_features import features, labels, mixture
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from pcl_ray.evaluation.knn import ranked_classes
from pcl_ray.evaluation.neighbours import nearest_neighbours, search


def slow(bank: Tensor, queries: Tensor, count: int, own: Tensor | None = None) -> tuple[list, list]:
    """One query at a time, in float64, by sorting."""
    cosines, rows = [], []
    for number, query in enumerate(queries.double()):
        near = [
            (float(query @ row / query.norm() / row.norm()), -position)
            for position, row in enumerate(bank.double())
            if own is None or position != int(own[number])
        ]
        best = sorted(near, reverse=True)[:count]
        cosines.append([cosine for cosine, _ in best])
        rows.append([-position for _, position in best])
    return cosines, rows


@pytest.mark.parametrize(("bank", "count"), [(5, 9), (40, 1), (40, 40), (333, 7), (900, 20)])
def test_they_are_those_of_sorting(bank: int, count: int) -> None:
    rows, queries = features(bank, 6, seed=bank) * 3, features(12, 6, seed=1)
    cosine, nearest = nearest_neighbours(rows, queries, count)
    expected, expected_rows = slow(rows, queries, count)
    assert nearest.tolist() == expected_rows
    assert cosine.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_long_rows_and_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of eight are looked at first where rows are long; a bank of several blocks is merged."""
    rows, queries = features(4003, 6), features(9, 6, seed=1)
    expected = slow(rows, queries, 50)[1]
    assert nearest_neighbours(rows, queries, 50)[1].tolist() == expected
    monkeypatch.setattr(search, "_FLOATS", 3000)  # blocks of 500 rows, queries 6 at a time
    assert nearest_neighbours(rows, queries, 50)[1].tolist() == expected


def test_an_image_is_no_neighbour_of_its_own() -> None:
    rows = features(60, 5)
    own = torch.arange(60)[::3]
    _, nearest = nearest_neighbours(rows, rows[own], 7, own_rows_Q=own)
    assert nearest.tolist() == slow(rows, rows[own], 7, own)[1]
    assert nearest_neighbours(rows, rows, 500, own_rows_Q=torch.arange(60))[1].shape == (60, 59)


def test_copies_of_an_image_are_its_neighbours_and_it_is_not() -> None:
    rows = torch.cat([features(1, 5).expand(4, 5), features(6, 5, seed=3)])
    cosine, nearest = nearest_neighbours(rows, rows, 3, own_rows_Q=torch.arange(10))
    assert not (nearest == torch.arange(10)[:, None]).any()
    assert cosine[:4].numpy() == pytest.approx(1.0)


def test_half_precision_features_are_compared_as_they_are() -> None:
    rows, queries = features(300, 8).half(), features(5, 8, seed=1).half()
    assert nearest_neighbours(rows, queries, 9)[1].tolist() == slow(rows, queries, 9)[1]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_scikit_learns_classifier_gives_the_same_classes(temperature: float) -> None:
    rows, of = mixture(3000, 16, groups=40), labels(3000, 12)
    queries = mixture(400, 16, groups=40, seed=5)
    reference = KNeighborsClassifier(
        25, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(rows.numpy().astype(np.float64), of.numpy())
    expected = reference.predict_proba(queries.numpy().astype(np.float64))
    cosine, nearest = nearest_neighbours(rows, queries, 25)
    ranked = ranked_classes(cosine, of[nearest], temperature=temperature, classes=5, num_classes=12)
    assert ranked[:, 0].tolist() == expected.argmax(axis=1).tolist()
    votes = np.sort(expected, axis=1)[:, ::-1][:, :5]
    assert np.take_along_axis(expected, ranked.numpy(), axis=1) == pytest.approx(votes, rel=1e-4)
    exact = NearestNeighbors(n_neighbors=25, algorithm="brute").fit(rows.numpy().astype(np.float64))
    assert np.array_equal(exact.kneighbors(queries.numpy().astype(np.float64))[1], nearest.numpy())


def test_no_query_has_no_classes() -> None:
    assert ranked_classes(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64), temperature=1.0).shape == (
        0,
        1,
    )
