"""Lloyd's algorithm against loops over Python numbers; its empty clusters, warm starts and last pass."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering.assign.nearest import BruteForce, Nearest
from pcl_ray.clustering.lloyd import (
    LloydRun,
    LloydSettings,
    distinct_rows,
    lloyd,
    random_start,
    rows_of,
    split_into_empty,
)
from pcl_ray.clustering.points import Moments, Points

BRUTE = BruteForce(Nearest("faiss", 1))


def some(n: int = 300, dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def run(
    points: Points, start: Tensor, *, passes: int, seed: int = 0, spherical: bool = False, **options: object
) -> LloydRun:
    return lloyd(points, start, BRUTE, LloydSettings(passes, seed, spherical), **options)


def brute(rows: Tensor, centroids: Tensor) -> Tensor:
    return (rows.double()[:, None] - centroids.double()).square().sum(dim=2).argmin(dim=1)


def check_belongs_together(points: Points, found: LloydRun) -> None:
    """Labels of the given centroids, moments of the labels, objective of both."""
    assert torch.equal(found.labels, brute(points.rows, found.centroids))
    fresh = Moments.of(points, found.labels, len(found.centroids))
    assert all(
        torch.equal(getattr(found.moments, name), getattr(fresh, name))
        for name in ("sizes", "sums", "squares")
    )
    distances = (points.rows.double() - found.centroids.double()[found.labels]).square().sum()
    assert found.objective == pytest.approx(float(distances), rel=1e-9, abs=1e-9)
    assert len(found.objectives) == len(found.changed)


def reference(
    rows: list[list[float]], centroids: list[list[float]], passes: int
) -> tuple[list[list[float]], list[int], list[float]]:
    """`passes` assignments, with the members' means in between; clusters without members do not move."""
    labels, objectives = [], []
    for number in range(passes):
        labels, objective = [], 0.0
        for row in rows:
            distances = [sum((a - b) ** 2 for a, b in zip(row, c, strict=True)) for c in centroids]
            labels.append(distances.index(min(distances)))
            objective += min(distances)
        objectives.append(objective)
        if number < passes - 1:
            for j in range(len(centroids)):
                members = [row for row, label in zip(rows, labels, strict=True) if label == j]
                if members:
                    centroids = [
                        *centroids[:j],
                        [sum(column) / len(members) for column in zip(*members, strict=True)],
                        *centroids[j + 1 :],
                    ]
    return centroids, labels, objectives


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_the_reference(k: int, passes: int) -> None:
    points = Points.of(some(80))
    found = run(points, points.rows[:k], passes=passes)
    centroids, labels, objectives = reference(points.rows.tolist(), points.rows[:k].tolist(), passes)
    assert found.labels.tolist() == labels
    assert torch.allclose(found.centroids.double(), torch.tensor(centroids, dtype=torch.float64), atol=1e-6)
    assert found.objectives == pytest.approx(objectives[: len(found.objectives)], rel=1e-6)
    assert len(found.objectives) == passes or found.changed[-1] == 0
    assert found.repaired == 0


@given(
    n=st.integers(1, 60),
    k=st.integers(1, 15),
    passes=st.integers(1, 6),
    seed=st.integers(0, 500),
    grid=st.booleans(),
    spherical=st.booleans(),
    warm=st.booleans(),
)
def test_what_the_last_pass_gives_belongs_together(
    n: int, k: int, passes: int, seed: int, grid: bool, spherical: bool, warm: bool
) -> None:
    # the grid: duplicates, ties, clusters that cannot be filled
    rows = some(n, 3, seed).round() if grid else some(n, 3, seed)
    points = Points.of(rows)
    if warm:
        labels = torch.randint(-1, k, (n,), generator=torch.Generator().manual_seed(seed))
        moments = Moments.of(points, labels, k)
        found = run(
            points, moments.means(), passes=passes, spherical=spherical, labels=labels, moments=moments
        )
    else:
        found = run(points, some(k, 3, seed + 1), passes=passes, spherical=spherical)
    check_belongs_together(points, found)
    assert found.objectives[-1] == found.objective
    assert len(found.objectives) <= passes


def test_one_pass_moves_nothing() -> None:
    points, start = Points.of(some()), some(6, seed=1)
    found = run(points, start, passes=1)
    assert torch.equal(found.centroids, start)
    assert found.changed == [300]


def test_a_start_from_labels_counts_the_changes_of_the_first_pass() -> None:
    points = Points.of(some())
    labels = torch.arange(300) % 6
    moments = Moments.of(points, labels, 6)
    start = moments.means()
    assert torch.allclose(start[2], points.rows[labels == 2].double().mean(dim=0), atol=1e-9)
    found = run(points, start, passes=1, labels=labels, moments=moments)
    assert torch.equal(found.centroids, start.float())
    assert found.changed == [int((found.labels != labels).sum())]
    check_belongs_together(points, found)


def test_stops_where_a_pass_changes_nothing() -> None:
    points = Points.of(some())
    found = run(points, points.rows[:6], passes=1000)
    assert 2 < len(found.objectives) < 100
    assert found.changed[-1] == 0
    assert all(changed > 0 for changed in found.changed[:-1])
    assert all(
        later <= earlier for earlier, later in zip(found.objectives[:-1], found.objectives[1:], strict=True)
    )
    again = run(points, found.centroids, passes=1000, labels=found.labels, moments=found.moments)
    assert again.changed == [0]  # a converged start needs one pass
    assert torch.equal(again.labels, found.labels)


def test_the_caller_may_stop_it_after_the_first_pass() -> None:
    points, start, asked = Points.of(some()), some(6, seed=1), []

    def go_on(so_far: LloydRun) -> bool:
        asked.append(so_far.objective)
        return False

    found = run(points, start, passes=10, go_on=go_on)
    assert asked == found.objectives
    assert torch.equal(found.centroids, start)
    check_belongs_together(points, found)

    answers = []
    went_on = run(points, start, passes=10, go_on=lambda so_far: answers.append(so_far.objective) or True)
    assert answers == went_on.objectives[:1]  # asked once
    assert len(went_on.objectives) == 10


@pytest.mark.parametrize("spherical", [False, True])
def test_empty_clusters_are_filled(spherical: bool) -> None:
    points = Points.of(F.normalize(some(), dim=1))
    start = points.rows[:3][torch.arange(12) % 3]  # each three times too many: 9 of 12 are empty
    found = run(points, start, passes=8, spherical=spherical)
    assert (found.moments.sizes > 0).all()
    assert found.repaired >= 3  # a pass splits each of the three donors once
    if spherical:
        # also of those just split
        assert torch.allclose(
            run(points, start, passes=2, spherical=True).centroids.norm(dim=1), torch.ones(12), atol=1e-6
        )
    check_belongs_together(points, found)


def test_the_last_pass_leaves_empty_clusters_empty() -> None:
    # Filled after it, labels and centroids would no longer belong together.
    points = Points.of(some())
    start = points.rows[:3][torch.arange(6) % 3]
    found = run(points, start, passes=1)
    assert (found.moments.sizes == 0).nonzero().flatten().tolist() == [3, 4, 5]
    assert found.repaired == 0
    assert torch.equal(found.centroids, start)


def test_empty_clusters_that_nothing_can_fill_stay_where_they_are() -> None:
    # Four points, four times each: four clusters hold one point's copies each, and none can be split.
    points = Points.of(some(4)[torch.arange(16) % 4])
    start = torch.cat([points.rows[:4], some(3, seed=5) + 100])
    found = run(points, start, passes=50)
    assert found.moments.sizes.tolist() == [4, 4, 4, 4, 0, 0, 0]
    assert torch.equal(found.centroids[4:], start[4:])
    assert (found.repaired, len(found.objectives)) == (0, 2)


def test_same_seed_same_repairs() -> None:
    points = Points.of(some())
    start = points.rows[:1].expand(10, -1)
    first, again, other = (run(points, start, passes=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_an_odd_cluster_far_away_is_split_before_those_with_more_points() -> None:
    rows = torch.cat([0.1 * some(200, 2), torch.tensor([[50.0, 0.0], [50.0, 9.0]])])
    found = run(Points.of(rows), torch.tensor([[0.0, 0.0], [50.0, 5.0], [0.0, 0.0]]), passes=2)
    assert found.labels[200] != found.labels[201]
    assert {int(found.labels[200]), int(found.labels[201])} == {1, 2}


def moments_of(sizes: list[int], scatter: list[float]) -> Moments:
    """Clusters at the points (j, 0) with these sizes and sums of squared distances."""
    counts = torch.tensor(sizes)
    sums = torch.tensor([[j * size, 0.0] for j, size in enumerate(sizes)], dtype=torch.float64)
    return Moments(
        counts,
        sums,
        torch.tensor(scatter, dtype=torch.float64) + sums.square().sum(dim=1) / counts.clamp(min=1),
        0.0,
    )


def test_donors_come_by_scatter_then_by_id_and_are_split_around_their_mean() -> None:
    moments = moments_of([4, 0, 9, 4, 0, 1, 7], [8.0, 0.0, 36.0, 36.0, 0.0, 0.0, 0.0])
    means = moments.means()
    before = means.clone()
    assert split_into_empty(means, moments, seed=3) == 2
    assert torch.equal(means[[0, 5, 6]], before[[0, 5, 6]])
    for empty, donor, reach in ((1, 2, 0.5 * math.sqrt(36 / 9)), (4, 3, 0.5 * math.sqrt(36 / 4))):
        assert torch.allclose((means[empty] + means[donor]) / 2, before[donor])
        assert float((means[empty] - means[donor]).norm()) == pytest.approx(2 * reach)


def test_no_donor_is_split_twice_and_singletons_and_copies_never() -> None:
    moments = moments_of([4, 0, 1, 5, 0, 0], [8.0, 0.0, 3.0, 0.0, 0.0, 0.0])
    means = moments.means()
    before = means.clone()
    assert split_into_empty(means, moments, seed=0) == 1
    assert not torch.equal(means[[0, 1]], before[[0, 1]])
    assert torch.equal(means[2:], before[2:])


def test_nothing_empty_nothing_split() -> None:
    moments = moments_of([4, 2], [8.0, 1.0])
    means = moments.means()
    assert split_into_empty(means, moments, seed=0) == 0
    assert torch.equal(means, moments.means())


@given(distinct=st.integers(1, 30), copies=st.integers(1, 8), k=st.integers(1, 40), seed=st.integers(0, 500))
def test_a_random_start_holds_no_point_twice_where_that_can_be_had(
    distinct: int, copies: int, k: int, seed: int
) -> None:
    rows = some(distinct, 3, seed)[torch.arange(distinct * copies) % distinct]
    points = Points.of(rows)
    k = min(k, len(rows))
    start, different = random_start(points, k, seed)
    assert start.shape == (k, 3)
    assert different == min(k, distinct) == len(start.unique(dim=0))
    assert {tuple(row) for row in start.tolist()} <= {tuple(row) for row in rows.tolist()}


def test_a_few_rare_points_among_very_many_copies_are_drawn() -> None:
    rows = torch.zeros(3000, 2)
    rows[[5, 77, 2999]] = torch.tensor([[1.0, 0], [2, 0], [3, 0]])
    start, different = random_start(Points.of(rows), 4, seed=0)
    assert different == 4
    assert sorted(start[:, 0].tolist()) == [0, 1, 2, 3]


def test_random_starts_follow_the_seed_and_not_the_order_of_the_rows() -> None:
    rows, order = some(500), torch.randperm(500, generator=torch.Generator().manual_seed(0))
    first, other = (random_start(Points.of(rows), 20, seed)[0] for seed in (1, 2))
    assert torch.equal(random_start(Points.of(rows[order], order), 20, 1)[0], first)
    assert not torch.equal(first, other)
    assert torch.equal(random_start(Points.of(rows.half()), 20, 1)[0], first.half().float())


def test_every_point_is_drawn_equally_often() -> None:
    points = Points.of(torch.arange(10.0)[:, None])
    times = torch.zeros(10)
    for seed in range(1000):
        times[random_start(points, 3, seed)[0][:, 0].long()] += 1
    assert (times - 300).abs().max() < 6 * math.sqrt(1000 * 0.3 * 0.7)


def test_points_that_no_process_holds_are_never_drawn() -> None:
    # Images whose features could not be used: a start of zeros in their place would draw most points to it.
    ids = torch.tensor([i for i in range(60) if i % 3])
    points = Points.of(some(40) + 10, ids, total=60)
    held = {tuple(row) for row in points.rows.tolist()}
    for seed in range(20):
        start, different = random_start(points, 20, seed)
        assert {tuple(row) for row in start.tolist()} <= held
        assert different == 20
    start, different = random_start(points, 50, 0)  # more than there are
    assert start.shape == (50, 4)
    assert different == 40
    assert {tuple(row) for row in start.tolist()} == held


def test_rows_by_id() -> None:
    points = Points.of(some(5), torch.tensor([7, 3, 9, 1, 4]), total=10)
    assert torch.equal(rows_of(points, torch.tensor([9, 7, 4])), points.rows[[2, 0, 4]])
    assert torch.equal(rows_of(points, torch.tensor([0, 9, 8])), points.rows[[2]])


@given(n=st.integers(1, 60), distinct=st.integers(1, 60), dim=st.integers(1, 20), half=st.booleans())
def test_points_that_differ_are_counted(n: int, distinct: int, dim: int, half: bool) -> None:
    rows = some(distinct, dim)[torch.arange(n) % distinct]
    rows = rows.half() if half else rows
    assert distinct_rows(Points.of(rows)) == len(rows.unique(dim=0))


def test_points_that_differ_in_the_last_place_of_one_number_differ() -> None:
    rows = some(1, 128).repeat(3, 1)
    rows[1, 77] = torch.nextafter(rows[1, 77], torch.tensor(9.0))
    assert distinct_rows(Points.of(rows)) == 2
