"""The shortlist: brute force within the candidates, a check of whether that is enough, and the way back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering.assign import shortlist as module
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.assign.shortlist import Shortlist, among, neighbours, sampled
from pcl_ray.clustering.points import Points

FAISS = Nearest("faiss", 1)


def some(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def some_labels(n: int, k: int, seed: int = 0, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, k, (n,), generator=torch.Generator().manual_seed(seed))


def some_candidates(k: int, count: int, seed: int = 0) -> Tensor:
    """[K, L] any candidates, rising: the own cluster need not be among them."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(k, generator=draw)[:count].sort().values for _ in range(k)])


def brute(rows: Tensor, centroids: Tensor, labels: Tensor, around: Tensor) -> list[int]:
    """The nearest of a cluster's candidates to each row, by subtraction in float64; the first of equals."""
    found = []
    for row, label in zip(rows.double(), labels.tolist(), strict=True):
        if label < 0:
            found.append(-1)
            continue
        distances = (centroids.double()[around[label]] - row).square().sum(dim=1).tolist()
        found.append(int(around[label][distances.index(min(distances))]))
    return found


@given(
    n=st.integers(0, 60),
    k=st.integers(1, 20),
    candidates=st.integers(1, 20),
    dim=st.integers(1, 4),
    seed=st.integers(0, 500),
    lowest=st.sampled_from([-1, 0]),
    kind=st.sampled_from(["grid", "random", "half"]),
    few=st.booleans(),
)
def test_is_brute_force_within_the_candidates(
    n: int, k: int, candidates: int, dim: int, seed: int, lowest: int, kind: str, few: bool
) -> None:
    rows, centroids = some(n, dim, seed), some(k, dim, seed + 1)
    if kind == "grid":  # ties and equal centroids
        rows, centroids = rows.round() + 5, centroids.round() + 5
    rows = rows.half() if kind == "half" else rows
    # `few`: most clusters are empty, two are large
    labels = some_labels(n, 2 if few and k > 1 else k, seed, lowest)
    around = some_candidates(k, min(candidates, k), seed)
    assert among(rows, centroids, labels, around).tolist() == brute(rows.float(), centroids, labels, around)


@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_near_ties_are_decided_as_float64_does(noise: float) -> None:
    offset = F.normalize(some(1, 24, seed=9), dim=1)
    rows, centroids = (F.normalize(offset + noise * some(m, 24, seed=m), dim=1) for m in (600, 40))
    labels, around = some_labels(600, 40), some_candidates(40, 12)
    expected = brute(rows, centroids, labels, around)
    assert among(rows, centroids, labels, around).tolist() == expected


def test_how_the_work_is_cut_makes_no_difference() -> None:
    rows, centroids = some(400, 8), some(30, 8, seed=1)
    labels = some_labels(400, 30).clamp(max=22)  # one large cluster among small ones, some empty
    around = some_candidates(30, 6)
    whole = among(rows, centroids, labels, around)
    alone = [among(rows[i : i + 1], centroids, labels[i : i + 1], around) for i in range(400)]
    assert torch.equal(torch.cat(alone), whole)
    # clusters of one size, too many for one batch of products
    rows, centroids, around = some(8000, 64), some(4000, 64, seed=1), some_candidates(4000, 12)
    labels = torch.arange(8000) % 4000
    parts = [labels % 50 == number for number in range(50)]
    whole = among(rows, centroids, labels, around)
    for part in parts:
        assert torch.equal(among(rows[part], centroids, labels[part], around), whole[part])


def test_neighbours_are_the_nearest_centroids_rising() -> None:
    centroids = some(50, 6)
    found = neighbours(Points.of(some(1, 6)), centroids, 8, 1)
    expected = torch.cdist(centroids.double(), centroids.double()).argsort(dim=1)[:, :8].sort(dim=1).values
    assert torch.equal(found, expected)
    # fewer centroids than candidates
    assert torch.equal(neighbours(Points.of(some(1, 6)), centroids, 80, 1), torch.arange(50).expand(50, -1))


def test_a_cluster_is_its_own_candidate_also_among_equal_centroids() -> None:
    centroids = torch.cat([some(1, 6).expand(20, -1), some(10, 6, seed=1)])
    found = neighbours(Points.of(some(1, 6)), centroids, 4, 1)
    assert (found == torch.arange(30)[:, None]).any(dim=1).all()
    assert (found.diff(dim=1) > 0).all()


def clustered(n: int, k: int, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points around k centroids in groups, and labels from when both were a little elsewhere."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(max(k // 10, 1), dim, generator=draw)
    centroids = F.normalize(
        coarse[torch.arange(k) % len(coarse)] + 0.5 * torch.randn(k, dim, generator=draw), dim=1
    )
    rows = F.normalize(
        centroids[torch.randint(k, (n,), generator=draw)] + 0.12 * torch.randn(n, dim, generator=draw), dim=1
    )
    before = FAISS(
        Points.of(F.normalize(rows + 0.06 * torch.randn(n, dim, generator=draw), dim=1)), centroids
    )
    return rows, centroids, before


def test_finds_nearly_all_on_clustered_data() -> None:
    rows, centroids, before = clustered(6000, 300)
    points, shortlist = Points.of(rows), Shortlist(FAISS, candidates=32)
    found = shortlist(points, centroids, labels=before, spread=1.0)
    right = FAISS(points, centroids)
    assert (before != right).float().mean() > 0.05  # there was something to find
    assert (found == right).float().mean() >= 0.995
    assert shortlist.fallbacks == 0
    assert len(shortlist.agreements) == 1
    assert 0.995 <= shortlist.agreements[0] <= 1


def test_candidates_that_are_wrong_are_noticed_and_the_labels_exact() -> None:
    # Labels that say nothing: the candidates of a point are anywhere.
    rows, centroids, before = clustered(6000, 300)
    wrong = before[torch.randperm(6000, generator=torch.Generator().manual_seed(1))]
    points, shortlist = Points.of(rows), Shortlist(FAISS, candidates=32)
    assert (
        among(rows, centroids, wrong, neighbours(points, centroids, 32, 1)) != FAISS(points, centroids)
    ).float().mean() > 0.3
    found = shortlist(points, centroids, labels=wrong, spread=1.0)
    assert torch.equal(found, FAISS(points, centroids))
    assert shortlist.fallbacks == 1
    assert shortlist.agreements[0] < 0.9


def test_few_points_of_which_none_is_checked_are_done_by_brute_force() -> None:
    rows, centroids, before = clustered(30, 10)
    points, shortlist = Points.of(rows), Shortlist(FAISS, candidates=2, sample=0.0)
    assert torch.equal(shortlist(points, centroids, labels=before, spread=1.0), FAISS(points, centroids))
    assert shortlist.fallbacks == 1


def test_without_labels_it_is_brute_force_and_no_fallback() -> None:
    rows, centroids, _ = clustered(500, 20)
    points, shortlist = Points.of(rows), Shortlist(FAISS, candidates=2)
    assert torch.equal(shortlist(points, centroids, labels=None, spread=1.0), FAISS(points, centroids))
    assert (shortlist.fallbacks, shortlist.agreements) == (0, [])


def test_points_without_a_label_are_done_by_brute_force() -> None:
    rows, centroids, before = clustered(3000, 100)
    before[::7] = -1
    points = Points.of(rows)
    shortlist = Shortlist(FAISS, candidates=32)
    found = shortlist(points, centroids, labels=before, spread=1.0)
    assert torch.equal(found[::7], FAISS(points, centroids)[::7])
    assert (found >= 0).all()
    assert shortlist.fallbacks == 0


def test_neighbours_are_found_anew_where_centroids_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Tensor] = []

    def counted(points: Points, centroids: Tensor, count: int, threads: int) -> Tensor:
        searched.append(centroids)
        return neighbours(points, centroids, count, threads)

    monkeypatch.setattr(module, "neighbours", counted)
    rows, centroids, before = clustered(4000, 100)
    points, shortlist = Points.of(rows), Shortlist(FAISS, candidates=16)
    shortlist(points, centroids, labels=before, spread=0.1)
    shortlist(points, centroids + 1e-4, labels=before, spread=0.1)
    assert len(searched) == 1
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    labels = FAISS(points, centroids[order])
    found = shortlist(points, centroids[order], labels=labels, spread=0.1)
    assert len(searched) == 2
    assert torch.equal(found, labels)
    assert shortlist.fallbacks == 0


@given(
    n=st.integers(1, 3000),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    salt=st.integers(0, 1000),
    cut=st.integers(0, 3000),
)
def test_which_points_are_checked_follows_from_their_ids_alone(
    n: int, share: float, salt: int, cut: int
) -> None:
    ids = torch.arange(n)
    whole = sampled(ids, share, salt)
    assert torch.equal(torch.cat([sampled(ids[:cut], share, salt), sampled(ids[cut:], share, salt)]), whole)
    assert abs(int(whole.sum()) - share * n) <= 2 + 0.05 * n
    if share in (0.0, 1.0):
        assert whole.float().mean() == share


def test_other_passes_check_other_points() -> None:
    ids = torch.arange(10000) + 2**31
    masks = [sampled(ids, 0.01, salt) for salt in range(30)]
    assert all(80 <= int(mask.sum()) <= 120 for mask in masks)
    assert int(torch.stack(masks).any(dim=0).sum()) > 2000  # not always the same hundred


@pytest.mark.parametrize("stride", [2, 3, 10, 256, 1000])
def test_checked_points_are_fair_to_images_that_come_in_a_pattern(stride: int) -> None:
    ids = torch.arange(0, 100_000 * stride, stride)
    assert int(sampled(ids, 0.01, 1).sum()) == pytest.approx(1000, rel=0.15)
