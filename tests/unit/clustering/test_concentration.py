"""φ against a slow reference: equation 12 with loops over Python numbers, percentiles, then the scale."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.clustering import concentration


def percentile(values: list[float], share: float) -> float:
    """Linear between the two neighbours in order."""
    ordered, place = sorted(values), (len(values) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def reference(
    distances: list[float],
    assignments: list[int],
    k: int,
    alpha: float = 10.0,
    temperature: float = 0.2,
    clip: tuple[float, float] = (10.0, 90.0),
    normalise: bool = True,
) -> list[float]:
    members: list[list[float]] = [[] for _ in range(k)]
    for distance, cluster in zip(distances, assignments, strict=True):
        members[cluster].append(distance)
    phi = [sum(d) / (len(d) * math.log(len(d) + alpha)) if len(d) > 1 else None for d in members]
    largest = max((value for value in phi if value is not None), default=0.0)
    phi = [largest if value is None else value for value in phi]
    low, high = percentile(phi, clip[0]), percentile(phi, clip[1])
    phi = [min(max(value, low), high) for value in phi]
    positive = [value for value in phi if value > 0]
    if not positive:
        return [temperature] * k
    phi = [value if value > 0 else min(positive) for value in phi]
    mean = sum(phi) / k
    return [value * temperature / mean for value in phi] if normalise else phi


def random_case(n: int, k: int, seed: int = 0) -> tuple[list[float], list[int]]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(n)], [draw.randrange(k) for _ in range(n)]


def found(distances: list[float], assignments: list[int], k: int, **options: object) -> list[float]:
    # float64 in: the reference does not round its distances either
    return concentration(
        torch.tensor(distances, dtype=torch.float64), torch.tensor(assignments), k, **options
    ).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"temperature": 0.07},
        {"clip": (0.0, 100.0)},
        {"clip": (25.0, 50.0)},
        {"normalise": False},
    ],
)
@pytest.mark.parametrize(("n", "k"), [(200, 7), (60, 25), (3, 2)])
def test_equals_the_reference(n: int, k: int, options: dict[str, object]) -> None:
    distances, assignments = random_case(n, k)
    assert found(distances, assignments, k, **options) == pytest.approx(
        reference(distances, assignments, k, **options), rel=1e-6
    )


@given(
    n=st.integers(1, 30),
    k=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    zeros=st.booleans(),
    normalise=st.booleans(),
    alpha=st.floats(0, 100),
)
def test_any_clustering_gives_the_reference_finite_and_positive(
    n: int, k: int, seed: int, zeros: bool, normalise: bool, alpha: float
) -> None:
    distances, assignments = random_case(n, k, seed)
    if zeros:  # some clusters lie on one point
        distances = [
            0.0 if cluster % 2 else distance for distance, cluster in zip(distances, assignments, strict=True)
        ]
    phi = found(distances, assignments, k, alpha=alpha, normalise=normalise)
    assert phi == pytest.approx(
        reference(distances, assignments, k, alpha=alpha, normalise=normalise), rel=1e-5
    )
    assert all(math.isfinite(value) and value > 0 for value in phi)


def test_a_hand_made_example() -> None:
    # Cluster 0: two images at distance 0.3 and 0.5; cluster 1: three at 0.6, the looser one.
    distances, assignments = [0.3, 0.5, 0.6, 0.6, 0.6], [0, 0, 1, 1, 1]
    phi = found(distances, assignments, 2, clip=(0.0, 100.0), normalise=False)
    assert phi == pytest.approx([0.8 / (2 * math.log(12)), 1.8 / (3 * math.log(13))], rel=1e-6)


@pytest.mark.parametrize("assignments", [[0, 0, 1, 1, 2], [0, 0, 1, 1, 1]], ids=["singleton", "empty"])
def test_clusters_with_one_image_or_none_take_the_largest(assignments: list[int]) -> None:
    distances = [0.1, 0.1, 0.9, 0.9, 0.0]
    phi = found(distances, assignments, 3, clip=(0.0, 100.0))
    assert phi[2] == max(phi) == pytest.approx(phi[1])
    assert phi[0] < phi[1]


def test_larger_clusters_at_the_same_distance_are_more_concentrated() -> None:
    phi = found([0.5] * 22, [0] * 2 + [1] * 20, 2, clip=(0.0, 100.0))
    assert phi[1] < phi[0]


def test_clip_bounds_the_spread() -> None:
    distances = [0.01, 0.01, *[0.5] * 18, 50.0, 50.0]
    assignments = [j for j in range(11) for _ in range(2)]
    clipped, free = found(distances, assignments, 11), found(distances, assignments, 11, clip=(0.0, 100.0))
    assert max(free) / min(free) > 1000
    # both ends are single clusters out of eleven: 10 % cuts them off
    assert max(clipped) / min(clipped) < 1.001


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_mean_is_the_temperature(temperature: float) -> None:
    phi = found(*random_case(500, 20), 20, temperature=temperature)
    assert sum(phi) / 20 == pytest.approx(temperature, rel=1e-6)
    assert max(phi) > min(phi)


def test_without_normalising_the_temperature_plays_no_part() -> None:
    case = random_case(100, 5)
    assert found(*case, 5, temperature=0.1, normalise=False) == found(
        *case, 5, temperature=0.9, normalise=False
    )


def test_all_images_on_their_centroids_gives_the_temperature_everywhere() -> None:
    assert found([0.0] * 6, [0, 0, 1, 1, 2, 2], 3, temperature=0.3) == pytest.approx([0.3] * 3)


def test_only_singletons_gives_the_temperature_everywhere() -> None:
    assert found([0.0, 0.0, 0.0], [0, 1, 2], 4, temperature=0.3) == pytest.approx([0.3] * 4)


def test_one_cluster_on_one_point_takes_the_smallest_positive() -> None:
    phi = found([0.0, 0.0, 0.2, 0.2, 0.6, 0.6], [0, 0, 1, 1, 2, 2], 3, clip=(0.0, 100.0))
    assert phi[0] == phi[1] < phi[2]


def test_is_float32_and_takes_the_kmeans_result_as_it_is() -> None:
    phi = concentration(torch.rand(10), torch.arange(10) % 3, 3)
    assert phi.dtype == torch.float32
    assert phi.shape == (3,)
