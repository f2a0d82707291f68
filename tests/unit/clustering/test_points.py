"""Sums over points against rational numbers: exact in any order, for any split, at any size."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering.group import Group
from pcl_ray.clustering.points import Moments, Points, on_grid


def some(n: int, dim: int, *, seed: int = 0, scale: float = 1.0, half: bool = False) -> Tensor:
    rows = scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return rows.half() if half else rows


def some_labels(n: int, k: int, seed: int = 1, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, k, (n,), generator=torch.Generator().manual_seed(seed))


def equal(a: Moments, b: Moments) -> bool:
    """Bit by bit: torch.equal calls 0 and −0 equal, and no others."""
    return torch.equal(a.sizes, b.sizes) and torch.equal(a.sums, b.sums) and torch.equal(a.squares, b.squares)


def rational_sums(values: Tensor, labels: Tensor, k: int) -> list[list[Fraction]]:
    """[K][C] sums by cluster, without any rounding."""
    sums = [[Fraction(0)] * values.shape[1] for _ in range(k)]
    for row, cluster in zip(values.tolist(), labels.tolist(), strict=True):
        if cluster >= 0:
            sums[cluster] = [total + Fraction(value) for total, value in zip(sums[cluster], row, strict=True)]
    return sums


def as_fractions(table: Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in table.tolist()]


@pytest.mark.parametrize("total", [1, 10**5, 10**9])
@given(
    n=st.integers(1, 40),
    dim=st.integers(1, 4),
    k=st.integers(1, 5),
    seed=st.integers(0, 1000),
    exponent=st.integers(-100, 60),
    half=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_sums_have_no_rounding_in_any_order_and_split(
    n: int, dim: int, k: int, seed: int, exponent: int, half: bool, cuts: list[int], total: int
) -> None:
    scale = 2.0 ** max(-10, min(exponent, 10)) if half else 2.0**exponent
    rows, labels = some(n, dim, seed=seed, scale=scale, half=half), some_labels(n, k, seed, lowest=-1)
    points = Points.of(rows, total=max(n, total))
    squares = points.squares
    whole = Moments.of(points, labels, k)

    assert as_fractions(whole.sums) == rational_sums(on_grid(rows, points.total, points.largest), labels, k)
    assert as_fractions(whole.squares[:, None]) == rational_sums(squares[:, None], labels, k)
    assert whole.sizes.tolist() == [int((labels == j).sum()) for j in range(k)]

    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mixed = Points.of(rows[order], order, total=points.total)
    assert equal(Moments.of(mixed, labels[order], k), whole)

    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = Moments.zeros(points, k)
    for first, last in reversed(list(zip(edges[:-1], edges[1:], strict=True))):
        shard = Points.of(
            rows[first:last], torch.arange(first, last), total=points.total, largest=points.largest
        )
        part = Moments.of(shard, labels[first:last], k)
        parts = Moments(
            parts.sizes + part.sizes, parts.sums + part.sums, parts.squares + part.squares, parts.rounding
        )
    assert equal(parts, whole)


def test_more_rows_than_a_block_are_summed_all() -> None:
    count = 20_000
    rows, labels = some(count, 3), some_labels(count, 4, lowest=-1)
    points = Points.of(rows)
    assert points.block < count // 2
    whole, labelled = Moments.of(points, labels, 4), labels >= 0
    sums, squares = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    sums.index_add_(0, labels[labelled], on_grid(rows[labelled], count, points.largest))
    squares.index_add_(0, labels[labelled], points.squares[labelled])
    assert torch.equal(whole.sizes, torch.bincount(labels[labelled], minlength=4))
    assert torch.equal(whole.sums, sums)
    assert torch.equal(whole.squares, squares)


@pytest.mark.parametrize("total", [1, 2, 3, 1000, 2**16, 10**5])
@pytest.mark.parametrize("scale", [1e-30, 0.1, 1.0, 3.0, 1e15])
def test_the_grid_changes_nothing_that_can_be_seen(total: int, scale: float) -> None:
    values = some(2000, 1, scale=scale)[:, 0]
    largest = float(values.abs().max())
    assert (on_grid(values, total, largest) - values.double()).abs().max() <= 2.0**-30 * largest


def test_half_precision_lies_on_the_grid_already() -> None:
    values = some(2000, 1, scale=0.1, half=True)[:, 0]
    assert torch.equal(on_grid(values, 10**5, 1.0), values.double())


@pytest.mark.parametrize("largest", [0.0, 2.0**-149, 1.0, 1.0 + 2.0**-23, 3.4e38])
def test_the_grid_holds_its_promise_at_the_ends_of_float32(largest: float) -> None:
    # N of the largest add up without rounding: their sum is N times one of them.
    largest = torch.tensor(largest).item()
    one = on_grid(torch.tensor([largest, -largest]), 10**6, largest)
    assert Fraction(float(one[0] * 10**6)) == 10**6 * Fraction(float(one[0]))
    assert one[0] == -one[1] == pytest.approx(largest, rel=1e-9)


def test_no_grid_for_features_that_are_not_finite() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        on_grid(torch.ones(1), 10, math.inf)


def test_rows_without_a_cluster_take_no_part() -> None:
    points = Points.of(torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]))
    found = Moments.of(points, torch.tensor([1, -1, 1]), 3)
    assert found.sizes.tolist() == [0, 2, 0]
    assert found.sums.tolist() == [[0, 0], [101, 202], [0, 0]]
    assert found.squares.tolist() == [0, 5 + 50000, 0]
    assert found.means().tolist() == [[0, 0], [50.5, 101], [0, 0]]


def test_a_process_without_rows_adds_nothing() -> None:
    points = Points.of(torch.empty(0, 3), torch.empty(0, dtype=torch.long), total=5, largest=1.0)
    assert Points.of(torch.empty(0, 3), torch.empty(0, dtype=torch.long), total=5).largest == 0
    found = Moments.of(points, torch.empty(0, dtype=torch.long), 4)
    assert equal(found, Moments.zeros(points, 4))


@given(
    n=st.integers(1, 60),
    k=st.integers(1, 6),
    seed=st.integers(0, 1000),
    steps=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_moving_labels_equals_a_new_count_bit_by_bit(
    n: int, k: int, seed: int, steps: int, share: float
) -> None:
    points = Points.of(some(n, 3, seed=seed))
    labels = some_labels(n, k, seed, lowest=-1)
    kept = Moments.of(points, labels, k)
    for step in range(steps):
        draw = torch.Generator().manual_seed(100 * seed + step)
        after = torch.where(
            torch.rand(n, generator=draw) < share, torch.randint(k, (n,), generator=draw), labels
        )
        after = torch.where(after < 0, 0, after)
        assert kept.moved(points, labels, after) == int((labels != after).sum())
        labels = after
        assert equal(kept, Moments.of(points, labels, k))


class Alike(Group):
    """As many processes as wanted, all with the same rows."""

    def __init__(self, size: int):
        self.size = size

    def sum(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            for _ in range(self.size.bit_length() - 1):  # doubling, as a tree of processes adds
                tensor += tensor.clone()


def test_a_cluster_of_more_points_than_float32_can_count_keeps_its_mean() -> None:
    # float32 sums and counts stop at 2²⁴: the mean of 2²⁵ times 0.3 would be 0.5.
    processes, rows = 128, 2**18
    points = Points.of(torch.full((rows, 1), 0.3), total=processes * rows, group=Alike(processes))
    found = Moments.of(points, torch.zeros(rows, dtype=torch.long), 2)
    assert found.sizes.dtype == torch.long
    assert found.sizes.tolist() == [2**25, 0]
    assert found.means()[0].float().item() == torch.tensor(0.3).item()
    assert Fraction(found.sums[0].item()) == 2**25 * Fraction(
        float(on_grid(torch.tensor(0.3), 2**25, points.largest))
    )
    assert found.scatter().tolist() == [0, 0]
    assert found.objective(torch.tensor([[0.3], [0.0]])) == pytest.approx(0, abs=2**25 * 1e-9)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("centre", [0.0, 1.0, 100.0])
def test_scatter_and_objective_equal_brute_force(centre: float, half: bool) -> None:
    rows = some(400, 5, half=half) + centre
    labels, k = some_labels(400, 7), 8
    points = Points.of(rows)
    found = Moments.of(points, labels, k)
    wide, means = rows.double(), found.means()
    for j in range(7):
        members = wide[labels == j]
        assert torch.allclose(means[j], members.mean(dim=0), rtol=1e-9)
        assert found.scatter()[j].item() == pytest.approx(
            float((members - members.mean(dim=0)).square().sum()), rel=1e-6
        )
    assert found.scatter()[7] == 0
    centroids = some(k, 5, seed=5) + centre
    brute = float((wide - centroids.double()[labels]).square().sum())
    assert found.objective(centroids) == pytest.approx(brute, rel=1e-6)


@pytest.mark.parametrize("total", [100, 4000, 10**5, 10**6, 10**9])
@pytest.mark.parametrize("dim", [2, 16, 128])
def test_copies_of_one_point_have_no_scatter_at_any_size(dim: int, total: int) -> None:
    # Else a cluster of duplicates would look as if it could be split, and as if it held different images.
    for seed in range(5):
        one = torch.nn.functional.normalize(some(1, dim, seed=seed), dim=1)
        points = Points.of(
            torch.cat([one.expand(50, -1), some(50, dim, seed=seed + 100).clamp(-1, 1)]), total=total
        )
        found = Moments.of(points, torch.arange(100) // 50, 2)
        assert found.scatter()[0] == 0
        assert found.scatter()[1] > 1


@pytest.mark.parametrize(("total", "radius"), [(100, 1e-5), (10**5, 1e-3), (10**6, 1e-3)])
def test_a_tight_cluster_keeps_its_scatter(total: int, radius: float) -> None:
    rows = torch.nn.functional.normalize(some(1, 16), dim=1) + radius * some(100, 16, seed=1)
    points = Points.of(rows, total=total)
    found = Moments.of(points, torch.zeros(100, dtype=torch.long), 1)
    brute = float((rows.double() - rows.double().mean(dim=0)).square().sum())
    assert found.scatter()[0].item() == pytest.approx(brute, rel=0.02)


@given(n=st.integers(0, 50), k=st.integers(1, 5), seed=st.integers(0, 1000))
def test_sums_of_numbers_by_cluster_have_no_rounding(n: int, k: int, seed: int) -> None:
    values, labels = some(n, 1, seed=seed)[:, 0].abs(), some_labels(n, k, seed, lowest=-1)
    points = Points.of(torch.zeros(n, 2), total=max(n, 1000))
    found = points.sums(labels, values, 8.0, k)
    assert as_fractions(found[:, None]) == rational_sums(
        on_grid(values, points.total, 8.0)[:, None], labels, k
    )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(points.sums(labels[order], values[order], 8.0, k), found)


def test_some_of_the_points_keep_their_ids() -> None:
    points = Points.of(some(10, 2), torch.arange(10) + 40, total=99)
    part = points.take(torch.tensor([7, 2]))
    assert part.ids.tolist() == [47, 42]
    assert torch.equal(part.rows, points.rows[[7, 2]])
    assert (part.total, part.largest) == (99, points.largest)
