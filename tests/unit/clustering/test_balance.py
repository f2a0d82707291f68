"""A cap on the size of clusters, against a slow reference in whole numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering.assign.nearest import BruteForce, Nearest
from pcl_ray.clustering.balance import capped
from pcl_ray.clustering.points import Points
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import cluster

FAISS = Nearest("faiss", 1)


def assigned(rows: Tensor, centroids: Tensor, limit: int, ids: Tensor | None = None) -> list[int]:
    points = Points.of(rows, ids, total=len(rows))
    return capped(BruteForce(FAISS), FAISS, limit)(points, centroids, labels=None, spread=1.0).tolist()


def reference(rows: list[list[int]], centroids: list[list[int]], limit: int) -> list[int]:
    """Full clusters close, keep their nearest (of equal ones the lowest id), and send the others to the
    nearest that is open (of equal ones the lowest id).
    """

    def distance(i: int, j: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(rows[i], centroids[j], strict=True))

    everywhere = range(len(centroids))
    labels = [min(everywhere, key=lambda j: (distance(i, j), j)) for i in range(len(rows))]
    is_open = set(everywhere)
    while any(labels.count(j) > limit for j in everywhere):
        is_open -= {j for j in everywhere if labels.count(j) >= limit}
        sent = []
        for j in everywhere:
            members = sorted(
                (i for i in range(len(rows)) if labels[i] == j), key=lambda i: (distance(i, j), i)
            )
            sent += members[limit:]
        for i in sent:
            labels[i] = min(is_open, key=lambda j: (distance(i, j), j))
    return labels


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 8),
    slack=st.integers(0, 4),
    size=st.integers(0, 3),
    dim=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference_and_never_exceeds_the_cap(
    n: int, k: int, slack: int, size: int, dim: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows, centroids = (torch.randint(-size, size + 1, (m, dim), generator=draw) for m in (n, k))
    limit = math.ceil(n / k) + slack
    labels = assigned(rows.float(), centroids.float(), limit)
    assert max(labels.count(j) for j in range(k)) <= limit
    assert labels == reference(rows.tolist(), centroids.tolist(), limit)


def test_the_nearest_stay_and_the_others_go_to_the_next() -> None:
    rows = torch.tensor([[0.0], [0.1], [0.2], [0.3], [3.0]])
    # 3.0 is nearer to 1.0, which 0.2 and 0.3 fill
    assert assigned(rows, torch.tensor([[0.0], [1.0], [9.0]]), 2) == [0, 0, 1, 1, 2]


def test_equally_near_points_stay_by_their_ids_and_not_by_their_order() -> None:
    rows = torch.zeros(4, 1)
    assert assigned(rows, torch.tensor([[0.0], [1.0]]), 2, torch.tensor([3, 0, 2, 1])) == [1, 0, 1, 0]


def test_a_full_cluster_takes_no_one_in_also_not_somebody_nearer() -> None:
    rows = torch.tensor([[0.0], [0.1], [0.2], [2.0], [2.1]])
    assert assigned(rows, torch.tensor([[0.0], [1.0], [-9.0]]), 2) == [0, 0, 2, 1, 1]


def test_nothing_changes_where_all_have_room() -> None:
    rows, centroids = (
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(5, 3, generator=torch.Generator().manual_seed(1)),
    )
    assert assigned(rows, centroids, 50) == FAISS(Points.of(rows), centroids).tolist()


@pytest.mark.parametrize(("n", "k", "limit"), [(12, 5, 3), (10, 5, 2), (40, 40, 1), (7, 1, 7)])
def test_copies_of_one_point_are_spread_and_it_ends(n: int, k: int, limit: int) -> None:
    labels = assigned(torch.ones(n, 4), torch.ones(k, 4), limit)
    assert sorted(labels) == sorted(i // limit for i in range(n))


def test_a_cap_that_cannot_hold_all_points_is_refused() -> None:
    with pytest.raises(ValueError, match="3 clusters of at most 3 points cannot hold 10"):
        assigned(torch.zeros(10, 2), torch.zeros(3, 2), 3)


def lopsided(n: int, seed: int = 0) -> Tensor:
    """Two thirds of the points around one place."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.where((torch.arange(n) % 3 > 0)[:, None], torch.eye(12)[0], torch.zeros(12))
    return F.normalize(centre + 0.25 * torch.randn(n, 12, generator=draw), dim=1)


@pytest.mark.parametrize("balance", [1.0, 1.3, 3.0])
@pytest.mark.parametrize("shortlist_from", [0, 2])
def test_no_cluster_of_an_e_step_exceeds_the_cap(balance: float, shortlist_from: int) -> None:
    data = lopsided(600)
    config = EStepConfig(
        num_clusters=(7, 20),
        restarts=1,
        threads=1,
        cold_iterations=8,
        balance=balance,
        shortlist_from=shortlist_from,
    )
    cold = cluster(data, config, epoch=3, temperature=0.2, seed=0)
    warm = cluster(
        F.normalize(data + 0.05 * lopsided(600, 1), dim=1),
        config,
        epoch=4,
        temperature=0.2,
        seed=0,
        previous=cold,
    )
    for found in (cold, warm):
        for k, clustering in zip((7, 20), found.clusterings, strict=True):
            assert clustering.sizes.max() <= math.ceil(balance * 600 / k)
            assert clustering.sizes.sum() == 600
            assert torch.isfinite(clustering.concentration).all()
    free = cluster(data, config.model_copy(update={"balance": None}), epoch=3, temperature=0.2, seed=0)
    if balance < 2:
        # there was something to hold back
        assert free.clusterings[1].sizes.max() > math.ceil(balance * 600 / 20)
