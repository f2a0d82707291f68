"""Candidates by bfloat16 products: proved to be all, or said not to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_features import features, mixture

from pcl_ray.evaluation.neighbours import nearest_neighbours, search
from pcl_ray.evaluation.neighbours.candidates import CandidateSearch, largest


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_the_largest_of_a_row_are_found_in_groups(width: int, count: int, seed: int, ties: bool) -> None:
    count = min(count, width)
    dice = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, width, generator=dice)
    if ties:
        rows = rows.round()
    values, columns = largest(rows, count)
    assert torch.equal(values.sort(1).values, rows.topk(count, dim=1).values.sort(1).values)
    assert torch.equal(rows.gather(1, columns), values)
    assert all(len(set(row)) == count for row in columns.tolist())


@pytest.mark.parametrize("dim", [4, 32, 300])
@pytest.mark.parametrize("count", [1, 30])
def test_what_is_proved_is_right(dim: int, count: int) -> None:
    bank, queries = mixture(4000, dim, groups=50), mixture(200, dim, groups=50, seed=3)
    values, rows, proved = CandidateSearch(bank).nearest(queries, count)
    exact = queries.double() @ bank.double().T
    expected = exact.topk(count, dim=1).values
    right = (values.double() - expected).abs().amax(dim=1) < 1e-6
    assert bool(right[proved].all())
    assert torch.allclose(exact.gather(1, rows).float(), values, atol=1e-6)
    if dim > 4:  # in four dimensions thousands of images have nearly the same cosine
        assert float(proved.float().mean()) > 0.5


def test_a_bank_of_images_that_are_nearly_alike_is_not_proved_and_still_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All cosines lie within bfloat16's rounding: candidates are given up, the neighbours are right."""
    dice = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.ones(3000, 16) + 0.01 * torch.randn(3000, 16, generator=dice), dim=1)
    queries = F.normalize(torch.ones(700, 16) + 0.01 * torch.randn(700, 16, generator=dice), dim=1)
    assert not bool(CandidateSearch(bank).nearest(queries[:50], 20)[2].any())
    monkeypatch.setattr(search, "has_fast_bfloat16", lambda: True)
    cosine, rows = nearest_neighbours(bank, queries, 20)
    exact = queries.double() @ bank.double().T
    assert torch.allclose(cosine.double(), exact.topk(20, dim=1).values, atol=1e-6)
    assert torch.allclose(exact.gather(1, rows), cosine.double(), atol=1e-6)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_with_and_without_bfloat16_and_on_any_number_of_threads_the_same(
    fast: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "has_fast_bfloat16", lambda: fast)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bank, queries = features(5000, 24) * 2, features(400, 24, seed=1) * 3
        cosine, rows = nearest_neighbours(bank, queries, 15)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    exact = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    assert torch.equal(rows, exact.topk(15, dim=1).indices)
    assert torch.allclose(cosine.double(), exact.topk(15, dim=1).values, atol=1e-6)
