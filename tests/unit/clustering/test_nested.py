"""Coarse clusterings of fine ones, against loops over Python numbers; and what an E-step makes of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.clustering.nested import coarse_of_fine, parents
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import cluster


def some(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def reference(fine: list[list[float]], sizes: list[int], coarse: list[list[float]]) -> list[int] | None:
    """k-means of fine centroids, weighted by points, until nothing changes; None if a cluster gets empty."""
    labels: list[int] = []
    while True:
        distances = [[sum((a - b) ** 2 for a, b in zip(row, c, strict=True)) for c in coarse] for row in fine]
        found = [row.index(min(row)) for row in distances]
        if found == labels:
            return labels
        labels = found
        for j in range(len(coarse)):
            copies = [
                row
                for row, size, label in zip(fine, sizes, labels, strict=True)
                if label == j
                for _ in range(size)
            ]
            if not copies:
                return None
            coarse[j] = [sum(column) / len(copies) for column in zip(*copies, strict=True)]


@given(fine=st.integers(1, 20), k=st.integers(1, 5), seed=st.integers(0, 2000), data=st.data())
def test_equals_the_reference(fine: int, k: int, seed: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=fine, max_size=fine))
    centroids, start = some(fine, 3, seed), some(fine, 3, seed)[:k] + 0.01
    if sum(size > 0 for size in sizes) < k:
        with pytest.raises(ValueError, match=f"{k} coarse clusters need"):
            coarse_of_fine(centroids, torch.tensor(sizes), k, seed=0, start_KC=start)
        return
    expected = reference(centroids.double().tolist(), sizes, start.double().tolist())
    found = coarse_of_fine(centroids, torch.tensor(sizes), k, seed=0, start_KC=start)
    assert found.shape == (fine,)
    assert expected is None or found.tolist() == expected


def test_weights_pull_the_coarse_centroids() -> None:
    # One dimension: the heavy cluster at 0 draws its coarse centroid so near that 4.4 goes to the other one.
    fine, start = torch.tensor([[0.0], [4.4], [8.0]]), torch.tensor([[1.0], [8.0]])
    assert coarse_of_fine(fine, torch.tensor([100, 1, 1]), 2, seed=0, start_KC=start).tolist() == [0, 1, 1]
    assert coarse_of_fine(fine, torch.tensor([1, 100, 1]), 2, seed=0, start_KC=start).tolist() == [0, 0, 1]


def test_fine_clusters_without_points_go_along_and_move_nothing() -> None:
    fine = torch.tensor([[0.0], [1.0], [9.0], [10.0], [2.0], [1000.0]])
    found = coarse_of_fine(fine, torch.tensor([3, 3, 3, 3, 0, 0]), 2, seed=0)
    assert found[0] == found[1] == found[4]
    assert found[2] == found[3] == found[5] != found[0]


@pytest.mark.parametrize("seed", range(5))
def test_every_coarse_cluster_gets_something(seed: int) -> None:
    # A start in which all but one coarse cluster are far away from everything.
    fine, sizes = some(40, 4, seed), torch.randint(1, 9, (40,), generator=torch.Generator().manual_seed(seed))
    start = some(6, 4, seed) + torch.tensor([0.0, 100, 200, 300, 400, 500])[:, None]
    assert coarse_of_fine(fine, sizes, 6, seed=0, start_KC=start).unique().tolist() == list(range(6))
    assert len(coarse_of_fine(fine, sizes, 6, seed=seed).unique()) == 6


def test_as_many_coarse_as_fine_ones_are_the_same() -> None:
    assert sorted(coarse_of_fine(some(7, 3), torch.ones(7, dtype=torch.long), 7, seed=0).tolist()) == list(
        range(7)
    )


def test_starts_follow_the_seed_and_the_weights() -> None:
    fine, sizes = some(60, 3), torch.ones(60, dtype=torch.long)
    first, again, other = (coarse_of_fine(fine, sizes, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Two far apart and heavy, three together and light: two drawn by weight nearly always are the heavy ones.
    fine, sizes = torch.tensor([[0.0], [1.0], [0.4], [0.5], [0.6]]), torch.tensor([1000, 1000, 1, 1, 1])
    apart = [coarse_of_fine(fine, sizes, 2, seed=seed) for seed in range(50)]
    assert all(found[0] != found[1] for found in apart)
    assert sum(found[0] == 0 for found in apart) > 40  # in the order of their ids


@given(n=st.integers(0, 60), fine=st.integers(1, 8), coarse=st.integers(1, 5), seed=st.integers(0, 1000))
def test_parents_hold_most_of_their_images(n: int, fine: int, coarse: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    fine_N, coarse_N = (
        torch.randint(-1, fine, (n,), generator=draw),
        torch.randint(-1, coarse, (n,), generator=draw),
    )
    expected = []
    for j in range(fine):
        counts = Counter(
            c for f, c in zip(fine_N.tolist(), coarse_N.tolist(), strict=True) if f == j and c >= 0
        )
        expected.append(min(counts, key=lambda c: (-counts[c], c)) if counts else -1)
    assert parents(fine_N, coarse_N, fine, coarse).tolist() == expected


def groups(n: int, *, seed: int = 0) -> Tensor:
    """Points around 60 places, which lie around 6."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(6, 16, generator=draw)
    fine = coarse[torch.arange(60) % 6] + 0.4 * torch.randn(60, 16, generator=draw)
    return F.normalize(fine[torch.arange(n) % 60] + 0.1 * torch.randn(n, 16, generator=draw), dim=1)


def run(
    data: Tensor, *num_clusters: int, previous: ClusterSet | None = None, **knobs: object
) -> tuple[Clustering, ...]:
    config = EStepConfig(
        num_clusters=num_clusters, restarts=1, threads=1, cold_iterations=8, **{"nested": True, **knobs}
    )
    return cluster(data, config, epoch=3, temperature=0.2, seed=0, previous=previous).clusterings


def lies_within(fine: Clustering, coarse: Clustering) -> bool:
    pairs = set(zip(fine.assignments.tolist(), coarse.assignments.tolist(), strict=True))
    return len(pairs) == len(fine.assignments.unique())


@pytest.mark.parametrize("num_clusters", [(60, 6), (6, 60), (20, 60, 6)])
@pytest.mark.parametrize("shortlist_from", [0, 2])
def test_without_passes_the_hierarchy_is_strict(num_clusters: tuple[int, ...], shortlist_from: int) -> None:
    data = groups(1200)
    found = sorted(
        run(data, *num_clusters, nested_passes=0, shortlist_from=shortlist_from),
        key=lambda c: -c.num_clusters,
    )
    assert [c.num_clusters for c in found] == sorted(num_clusters, reverse=True)
    for fine, coarse in zip(found[:-1], found[1:], strict=True):
        assert lies_within(fine, coarse)
        assert (coarse.sizes > 0).all()
        above = parents(fine.assignments, coarse.assignments, fine.num_clusters, coarse.num_clusters)
        assert torch.equal(above[fine.assignments], coarse.assignments)
        means = torch.stack(
            [data[coarse.assignments == j].double().mean(dim=0) for j in range(coarse.num_clusters)]
        )
        assert torch.allclose(coarse.prototypes, F.normalize(means, dim=1).float(), atol=1e-6)
        assert coarse.objective == pytest.approx(
            float((data.double() - means[coarse.assignments]).square().sum()), rel=1e-6
        )
        assert fine.objective < coarse.objective


def test_passes_over_the_points_lower_the_objective_and_loosen_the_hierarchy() -> None:
    data = F.normalize(groups(1200) + 0.25 * some(1200, 16), dim=1)
    (fine, strict), (also_fine, loose) = (run(data, 60, 6, nested_passes=passes) for passes in (0, 3))
    assert torch.equal(fine.assignments, also_fine.assignments)
    assert loose.objective < strict.objective
    assert lies_within(fine, strict)
    assert not lies_within(fine, loose)


def test_without_nesting_the_clusterings_know_nothing_of_each_other() -> None:
    data = F.normalize(groups(1200) + 0.25 * some(1200, 16), dim=1)
    fine, coarse = run(data, 60, 6, nested=False)
    assert not lies_within(fine, coarse)


def test_the_same_number_twice_is_clustered_twice() -> None:
    first, second = run(groups(600), 20, 20)
    assert not torch.equal(first.assignments, second.assignments)


def test_hardly_fewer_coarse_clusters_than_fine_ones_that_hold_something_are_made_of_the_points() -> None:
    # 198 points ten times each, and two that are all but equal to others: of 200 clusters two stay empty.
    data = F.normalize(some(198, 16), dim=1)[torch.arange(1980) % 198]
    at = data[:2].abs().argmin(dim=1)
    data[torch.arange(2), at] = torch.nextafter(data[torch.arange(2), at], torch.tensor(9.0))
    fine, coarse = run(data, 200, 199)
    assert [int((~c.valid).sum()) for c in (fine, coarse)] == [2, 1]


def test_from_one_e_step_to_the_next_the_coarse_clusters_keep_their_numbers() -> None:
    data = groups(1200)
    config = EStepConfig(num_clusters=(60, 6), restarts=1, threads=1, nested=True, nested_passes=0)
    first = cluster(data, config, epoch=3, temperature=0.2, seed=0)
    second = cluster(
        F.normalize(data + 0.02 * some(1200, 16), dim=1),
        config,
        epoch=4,
        temperature=0.2,
        seed=0,
        previous=first,
    )
    for before, after in zip(first.clusterings, second.clusterings, strict=True):
        assert (before.assignments == after.assignments).float().mean() > 0.95
    assert lies_within(*second.clusterings)
