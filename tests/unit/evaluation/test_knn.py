from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_features import features, labels
from torch import Tensor

from pcl_ray.evaluation import knn_accuracy
from pcl_ray.evaluation.knn import knn_hits, share_of


def slow_knn(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    neighbours: int,
    temperature: float,
) -> float:
    """The definition (Wu et al., section 3.4), one query at a time in float64."""
    rows = [
        (row.double() / row.double().norm(), int(label))
        for row, label in zip(bank, bank_labels, strict=True)
        if label >= 0
    ]
    right = asked = 0
    for row, label in zip(query, query_labels, strict=True):
        if label < 0:
            continue
        near = sorted(
            ((float(row.double() / row.double().norm() @ other), of) for other, of in rows), reverse=True
        )[:neighbours]
        votes: dict[int, float] = {}
        for cosine, of in near:
            votes[of] = votes.get(of, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=lambda of: votes[of]) == int(label)
        asked += 1
    return right / asked


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 15),
    st.integers(1, 50),
    st.sampled_from([0.05, 0.07, 0.2, 1.0]),
)
def test_knn_is_the_definition(
    seed: int, bank_size: int, queries: int, neighbours: int, temperature: float
) -> None:
    """Some images without a label, features of any length, more neighbours than the bank has."""
    dice = torch.Generator().manual_seed(seed)
    bank, query = (torch.randn(n, 5, generator=dice) * 3 for n in (bank_size, queries))
    bank_labels, query_labels = labels(bank_size, 4, seed, -1), labels(queries, 5, seed + 1, -1)
    found = knn_accuracy(
        bank, bank_labels, query, query_labels, neighbours=neighbours, temperature=temperature
    )
    if (bank_labels < 0).all() or (query_labels < 0).all():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(
            slow_knn(bank, bank_labels, query, query_labels, neighbours, temperature)
        )


def test_knn_of_separate_groups_and_of_noise() -> None:
    of = labels(300)
    grouped = torch.eye(8)[of] + 0.05 * features(300)
    assert knn_accuracy(grouped[:200], of[:200], grouped[200:], of[200:], neighbours=20) == 1.0
    assert knn_accuracy(grouped[:200], of[:200], grouped[200:], (of[200:] + 1) % 4, neighbours=20) == 0.0
    noise = knn_accuracy(
        features(2000), labels(2000), features(500, seed=1), labels(500, seed=1), neighbours=20
    )
    assert 0.17 < noise < 0.33  # a quarter


def test_near_neighbours_count_more_than_many_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    of, query = torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.1]])
    assert knn_accuracy(bank, of, query, torch.tensor([0]), neighbours=4, temperature=0.07) == 1.0
    # nearly one vote each
    assert knn_accuracy(bank, of, query, torch.tensor([1]), neighbours=4, temperature=10.0) == 1.0


@pytest.mark.parametrize("temperature", [1e-4, 1e-30])
def test_tiny_temperatures_do_not_overflow(temperature: float) -> None:
    """exp(1/1e-4) is no float; what is left is the nearest neighbour's class."""
    bank, of = features(50), labels(50)
    nearest = of[(features(20, seed=1) @ bank.T).argmax(dim=1)]
    assert (
        knn_accuracy(bank, of, features(20, seed=1), nearest, neighbours=50, temperature=temperature) == 1.0
    )


def test_images_without_a_label_take_no_part_in_knn() -> None:
    bank, of = features(60), labels(60)
    half = torch.arange(60) % 2 == 0
    wrong = torch.where(half, of, torch.tensor(-1))
    expected = knn_accuracy(bank[half], of[half], bank, of, neighbours=5)
    assert knn_accuracy(bank, wrong, bank, of, neighbours=5) == expected
    assert knn_accuracy(bank, of, bank, wrong, neighbours=1) == 1.0  # each its own neighbour


def test_a_class_that_the_bank_does_not_have_is_never_right() -> None:
    assert knn_accuracy(features(20), labels(20, 2), features(10), torch.full((10,), 7), neighbours=5) == 0.0


@pytest.mark.parametrize(("bank", "query"), [(0, 5), (5, 0), (0, 0)])
def test_no_labelled_images_give_nan(bank: int, query: int) -> None:
    bank_labels, query_labels = (labels(10).where(torch.arange(10) < known, -1) for known in (bank, query))
    assert math.isnan(knn_accuracy(features(10), bank_labels, features(10), query_labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_a_bank_of_long_rows_is_taken_in_blocks(dtype: torch.dtype) -> None:
    """150 rows of a quarter of a million numbers are three blocks; all but eight numbers are 0."""
    bank, query = (200 * features(n, seed=seed).abs() for n, seed in ((150, 0), (12, 1)))
    bank, query = bank.to(dtype), query.to(dtype)
    bank_of, query_of = labels(150), labels(12, seed=1)
    wide = [torch.cat([rows, rows.new_zeros(len(rows), 2**18 - 8)], dim=1) for rows in (bank, query)]
    for neighbours in (1, 20, 100):
        expected = slow_knn(bank, bank_of, query, query_of, neighbours, 0.07)
        measured = knn_accuracy(wide[0], bank_of, wide[1], query_of, neighbours=neighbours)
        assert measured == pytest.approx(expected)


def test_hits_are_those_of_each_query() -> None:
    bank, of, query, query_of = features(60), labels(60), features(20, seed=1), labels(20, seed=1)
    hits = knn_hits(bank, of, query, query_of, neighbours=7, temperature=0.1)
    single = [
        knn_accuracy(bank, of, query[n : n + 1], query_of[n : n + 1], neighbours=7, temperature=0.1)
        for n in range(20)
    ]
    assert hits.float().tolist() == single
    assert 0 < share_of(hits) < 1
