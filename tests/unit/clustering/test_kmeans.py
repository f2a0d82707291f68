"""k-means, the figures about a clustering, and how clusterings travel."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from pcl_ray.clustering import Clustering, ClusterSet, KMeansResult, kmeans, quality


def points(n: int = 300, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def same(a: KMeansResult, b: KMeansResult) -> bool:
    return (
        all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("centroids", "assignments", "distances")
        )
        and a.objective == b.objective
    )


def members_mean(data: Tensor, assignments: Tensor, cluster: int) -> Tensor:
    return data[assignments == cluster].double().mean(dim=0)


def check_belongs_together(data: Tensor, found: KMeansResult) -> None:
    """Nearest centroid, distance and objective against brute force in float64."""
    distances = torch.cdist(data.double(), found.centroids.double())
    own = distances[torch.arange(len(data)), found.assignments]
    # Two centroids may be equally near within rounding: then either is right.
    assert (own - distances.min(dim=1).values).max() < 1e-5
    assert torch.allclose(found.distances.double(), own, atol=1e-5)
    assert found.objective == pytest.approx(float((own**2).sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_result_other_seed_another(threads: int) -> None:
    first, again, other = (
        kmeans(points(), 10, seed=seed, iterations=5, threads=threads) for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert not torch.equal(first.centroids, other.centroids)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_converged_centroids_are_the_means_of_their_members(k: int) -> None:
    data = points()
    found = kmeans(data, k, seed=0, iterations=200)
    assert found.centroids.shape == (k, 3)
    assert found.assignments.dtype == torch.long
    assert found.assignments.unique().tolist() == list(range(k))
    for cluster in range(k):
        assert torch.allclose(
            found.centroids[cluster].double(), members_mean(data, found.assignments, cluster), atol=1e-4
        )
    check_belongs_together(data, found)


@pytest.mark.parametrize(
    "options", [{"iterations": 1}, {"iterations": 2, "restarts": 3}, {"iterations": 3, "spherical": True}]
)
def test_assignments_and_distances_belong_to_the_centroids_given_back(options: dict[str, object]) -> None:
    # Also before convergence, if the last iteration moved centroids, or if the best run was not the last.
    data = points()
    check_belongs_together(data, kmeans(data, 8, seed=0, **options))


def test_finds_separate_groups() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    label = torch.arange(90) % 3
    found = kmeans(centres[label] + 0.1 * points(90, 2), 3, seed=0, restarts=5)
    assert len({(a, b) for a, b in zip(label.tolist(), found.assignments.tolist(), strict=True)}) == 3


def test_more_iterations_lower_the_objective() -> None:
    data = points()
    assert (
        kmeans(data, 10, seed=0, iterations=50).objective < kmeans(data, 10, seed=0, iterations=1).objective
    )


def test_restarts_keep_the_best_run() -> None:
    data = points(200, 2)
    single = [kmeans(data, 12, seed=seed, iterations=100).objective for seed in range(6)]
    # the first of the six is the single run
    several = [kmeans(data, 12, seed=seed, iterations=100, restarts=6).objective for seed in range(6)]
    assert all(best <= one * (1 + 1e-5) for best, one in zip(several, single, strict=True))
    assert sum(several) < sum(single) * 0.999


def test_starts_from_the_centroids_given() -> None:
    data, start = points(), points(6, seed=1)
    before = start.clone()
    found = kmeans(data, 6, seed=0, iterations=1, start_KC=start)
    nearest = torch.cdist(data.double(), start.double()).argmin(dim=1)
    for cluster in range(6):  # one Lloyd iteration: means of the points nearest to the start
        assert torch.allclose(
            found.centroids[cluster].double(), members_mean(data, nearest, cluster), atol=1e-5
        )
    assert torch.equal(start, before)
    # seed and restarts play no part
    assert same(found, kmeans(data, 6, seed=99, iterations=1, restarts=4, start_KC=start.numpy()))


def test_uses_every_point() -> None:
    # faiss left to itself trains on 256 points a centroid: these means would be those of a sample.
    data = torch.cat([points(1500, 2), points(1500, 2, seed=1) + 50])
    found = kmeans(data, 2, seed=0, iterations=20)
    for cluster in range(2):
        assert torch.allclose(
            found.centroids[cluster].double(), members_mean(data, found.assignments, cluster), atol=1e-4
        )


def test_as_many_clusters_as_points_is_exact() -> None:
    data = points(20)
    found = kmeans(data, 20, seed=0)
    assert found.objective == pytest.approx(0.0, abs=1e-9)
    assert sorted(found.assignments.tolist()) == list(range(20))


def test_spherical_centroids_have_length_one() -> None:
    data = torch.nn.functional.normalize(points(), dim=1)
    assert torch.allclose(
        kmeans(data, 5, seed=0, spherical=True).centroids.norm(dim=1), torch.ones(5), atol=1e-5
    )
    assert (kmeans(data, 5, seed=0).centroids.norm(dim=1) < 0.99).all()


def test_numpy_torch_and_strided_input_agree() -> None:
    data = points(100, 6)
    expected = kmeans(data[:, ::2].contiguous(), 4, seed=0)
    assert same(expected, kmeans(data[:, ::2], 4, seed=0))
    assert same(expected, kmeans(data.numpy()[:, ::2].astype(np.float64), 4, seed=0))


@pytest.mark.parametrize(("k", "n"), [(11, 10), (0, 10)])
def test_a_count_that_does_not_fit_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{k} clusters.*{n}"):
        kmeans(points(n), k, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    # 1e30 is finite, but its square is not: faiss would end the process on it.
    data = points(10)
    data[3, 1] = value
    with pytest.raises(ValueError, match=r"1 of 10 features.*\[3\]"):
        kmeans(data, 2, seed=0)


def test_a_start_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(4, 3\)"):
        kmeans(points(10), 4, seed=0, start_KC=points(3))
    with pytest.raises(ValueError, match="2 of 2 starting centroids"):
        kmeans(points(10), 2, seed=0, start_KC=torch.full((2, 3), float("nan")))


def clustering(assignments: list[int], k: int, objective: float = 3.5) -> Clustering:
    phi = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6][:k])
    return Clustering(
        torch.nn.functional.normalize(points(k), dim=1), torch.tensor(assignments), phi, objective
    )


def test_quality_of_a_hand_made_clustering() -> None:
    figures = quality(clustering([0, 0, 0, 0, 1, 1, 2], 4))
    assert figures == pytest.approx(
        {
            "objective": 0.5,
            "empty": 1,
            "singletons": 1,
            "largest_share": 4 / 7,
            "size_p10": 0.3,  # sizes 0, 1, 2, 4
            "size_p50": 1.5,
            "size_p90": 3.4,
            "phi_min": 0.1,
            "phi_mean": 0.25,
            "phi_max": 0.4,
            "phi_p10": 0.13,
            "phi_p50": 0.25,
            "phi_p90": 0.37,
        }
    )


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1], 1.0),  # the same groups under other numbers
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),  # knows nothing of each other
    ],
)
def test_agreement_with_the_previous_clustering(now: list[int], before: list[int], expected: float) -> None:
    assert quality(clustering(now, 3), clustering(before, 4))["nmi_previous"] == pytest.approx(
        expected, abs=1e-9
    )


def test_no_agreement_with_a_clustering_of_other_images() -> None:
    assert "nmi_previous" not in quality(clustering([0, 1, 1], 2), clustering([0, 1], 2))


def equal_sets(a: ClusterSet, b: ClusterSet) -> bool:
    return a.epoch == b.epoch and all(
        torch.equal(getattr(x, name), getattr(y, name))
        and getattr(x, name).dtype == getattr(y, name).dtype
        and x.objective == y.objective
        for x, y in zip(a.clusterings, b.clusterings, strict=True)
        for name in ("prototypes", "assignments", "concentration")
    )


def a_set() -> ClusterSet:
    return ClusterSet(5, (clustering([0, 1, 2, 1, 0], 3), clustering([0, 1, 1, 1, 5], 6, 1.25)))


def test_pickle_reads_read_only_buffers_without_copying() -> None:
    original, buffers = a_set(), []
    stream = pickle.dumps(original, protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer.raw()) for buffer in buffers]  # bytes are read-only, as Ray's object store is
    assert len(frozen) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about tensors on memory that must not be written
        copy = pickle.loads(stream, buffers=frozen)
    assert equal_sets(copy, original)
    addresses = {np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0] for buffer in frozen}
    tensors = [tensor for c in copy.clusterings for tensor in (c.prototypes, c.assignments, c.concentration)]
    assert {tensor.data_ptr() for tensor in tensors} == addresses
    del frozen, addresses, buffers
    assert equal_sets(copy, original)  # the tensors keep the memory alive


@pytest.mark.parametrize("protocol", [4, 5])
def test_pickle_in_one_piece(protocol: int) -> None:
    assert equal_sets(pickle.loads(pickle.dumps(a_set(), protocol=protocol)), a_set())


def test_state_dict_roundtrip() -> None:
    state = a_set().state_dict()
    assert equal_sets(ClusterSet.from_state_dict(state), a_set())
    assert state["clusterings"][0]["assignments"].dtype == torch.int32  # half the size on disk


def test_sizes_count_empty_clusters() -> None:
    assert clustering([0, 0, 2], 5).sizes.tolist() == [2, 0, 1, 0, 0]
