from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_features import features
from torch import Tensor

from pcl_ray.evaluation import alignment, areq, lidar, rankme, uniformity


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_rankme_counts_the_directions_that_are_used(dim: int) -> None:
    assert rankme(torch.eye(dim).repeat(5, 1)) == pytest.approx(dim, rel=1e-3)
    assert rankme(torch.ones(50, dim)) == pytest.approx(1.0, abs=0.01)
    assert rankme(torch.outer(features(1, 50)[0], features(1, dim)[0])) == pytest.approx(1.0, abs=0.01)
    half = torch.eye(dim).repeat(5, 1)
    half[:, dim // 2 :] = 0
    assert rankme(half) == pytest.approx(dim // 2, rel=1e-3)


def test_rankme_by_hand() -> None:
    """Singular values 3 and 1: shares 3/4 and 1/4."""
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_rankme_of_zeros_is_the_lowest_rank() -> None:
    assert rankme(torch.zeros(20, 8)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rankme_of_a_diverged_encoder_is_nan(value: float) -> None:
    data = features(20)
    data[3, 2] = value
    assert math.isnan(rankme(data))


def slow_areq(rows: Tensor) -> float:
    """Eigenvalues of the covariance, up to 99 % of variance; least squares with weights 1/j by numpy."""
    data = rows.double().numpy()
    mean = sum(data) / len(data)
    covariance = sum(np.outer(row - mean, row - mean) for row in data) / len(data)
    values = sorted(np.linalg.eigvalsh(covariance).tolist(), reverse=True)
    count = next(k for k in range(1, len(values) + 1) if sum(values[:k]) >= 0.99 * sum(values))
    if count < 5:
        return math.nan
    index = np.arange(1, count + 1)
    return -float(np.polyfit(np.log(index), np.log(values[:count]), 1, w=np.sqrt(1 / index))[0])


def spectrum(values: Tensor, n: int = 2000, seed: int = 0) -> Tensor:
    """[n, C] rows whose covariance has exactly these eigenvalues, in a random basis."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, len(values), generator=draw, dtype=torch.float64)
    flat, _ = torch.linalg.qr(rows - rows.mean(dim=0))
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64))
    return (flat * (n * values.double()).sqrt()) @ basis


def of_rank(rank: int, noise: float, dim: int = 128, n: int = 2000) -> Tensor:
    """Unit features [n, dim] that use `rank` dimensions, and noise in all: `noise` of their size in each."""
    draw = torch.Generator().manual_seed(rank)
    rows = torch.randn(n, rank, generator=draw) @ torch.randn(rank, dim, generator=draw) / rank**0.5
    return F.normalize(rows + noise * torch.randn(n, dim, generator=draw), dim=1)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(5, 20), st.floats(0, 3))
def test_areq_is_the_definition(seed: int, n: int, dim: int, steepness: float) -> None:
    rows = (
        torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
        * torch.arange(1, dim + 1) ** -steepness
        + 1
    )
    assert areq(rows) == pytest.approx(slow_areq(rows), rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dim", [8, 64, 200])
def test_areq_finds_the_exponent(alpha: float, dim: int) -> None:
    rows = spectrum(torch.arange(1, dim + 1).double() ** -alpha)
    assert areq(rows) == pytest.approx(alpha, abs=1e-6)
    assert areq(7 * rows + 3) == pytest.approx(alpha, abs=1e-6)  # neither the scale nor the mean matter


def test_areq_does_not_see_the_noise_floor() -> None:
    """Within eigenvalues 4 to 100, features of rank 3 show the floor alone, those of rank 40 the cliff down
    to it: then collapse would look best.
    """
    exact = areq(of_rank(40, 0.0))
    for noise in (1e-4, 1e-3, 1e-2):
        assert areq(of_rank(40, noise)) == pytest.approx(exact, abs=0.05)
        assert math.isnan(areq(of_rank(3, noise)))
    for power in (0.5, 1.0, 1.5):
        rows = spectrum(torch.arange(1, 65).double() ** -power)
        for dtype in (torch.float16, torch.bfloat16):
            assert areq(rows.to(dtype)) == pytest.approx(areq(rows), abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_areq_of_a_diverged_encoder_is_nan(value: float) -> None:
    data = features(20)
    data[3, 2] = value
    assert math.isnan(areq(data))


@pytest.mark.parametrize(
    "rows", [torch.zeros(20, 8), features(1), features(0), features(50, 4), features(50, 1), features(4, 8)]
)
def test_areq_without_five_eigenvalues_is_nan(rows: Tensor) -> None:
    assert math.isnan(areq(rows))


def slow_lidar(features_NQC: Tensor) -> float:
    """Thilak et al., equations 1 to 4, image by image and view by view, with the symmetric root of Σ_w."""
    data = features_NQC.double().numpy()
    images, views, dim = data.shape
    means = [sum(data[i]) / views for i in range(images)]
    mean = sum(means) / images
    between = sum(np.outer(m - mean, m - mean) for m in means) / images
    within = sum(
        np.outer(data[i, q] - means[i], data[i, q] - means[i]) for i in range(images) for q in range(views)
    ) / (images * views)
    values, vectors = np.linalg.eigh(within + 1e-4 * np.eye(dim))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root)
    shares = [value / sum(eigenvalues) for value in eigenvalues]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def views_of(images: Tensor, views: int, spread: Tensor | float, seed: int = 1) -> Tensor:
    """[N, Q, C]: the features of the images [N, C], and what views change about them."""
    noise = torch.randn(len(images), views, images.shape[1], generator=torch.Generator().manual_seed(seed))
    return images[:, None] + spread * noise


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 6), st.integers(2, 12), st.floats(0, 1))
def test_lidar_is_the_definition(seed: int, images: int, views: int, dim: int, spread: float) -> None:
    """Also with more dimensions than images, where Σ_b has no full rank."""
    made = views_of(
        features(images, dim, seed),
        views,
        spread * torch.rand(dim, generator=torch.Generator().manual_seed(seed)),
        seed + 1,
    )
    assert lidar(made) == pytest.approx(slow_lidar(made), rel=1e-6)


def test_lidar_by_hand() -> None:
    """Four images at a rectangle's corners, views ±1 along the first axis: eigenvalues 9/(1 + δ) and 4/δ."""
    corners = torch.tensor([[3.0, 2.0], [3.0, -2.0], [-3.0, 2.0], [-3.0, -2.0]])
    made = corners[:, None] + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    first, second = 9 / 1.0001, 4 / 0.0001
    shares = (first / (first + second), second / (first + second))
    assert lidar(made) == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_lidar_counts_the_directions_that_tell_images_apart(count: int) -> None:
    made = torch.eye(12)[:count].repeat(20, 1)
    assert lidar(views_of(made, 4, 0.0)) == pytest.approx(count - 1)  # their mean takes one away
    assert lidar(views_of(made, 50, 0.01)) == pytest.approx(count - 1, rel=0.02)


def test_directions_that_views_change_do_not_count() -> None:
    """What RankMe cannot see: here half of the dimensions are noise of the views."""
    spread = torch.tensor([0.01] * 8 + [1.0] * 8)
    made = views_of(torch.cat([features(500), torch.zeros(500, 8)], dim=1), 50, spread)
    assert rankme(made.flatten(0, 1)) > 12
    assert lidar(made) == pytest.approx(8, rel=0.05)


def test_lidar_of_one_point_is_the_lowest_rank() -> None:
    assert lidar(torch.ones(20, 4, 8)) == 1.0


def test_lidar_in_pieces_is_the_same() -> None:
    made = views_of(features(50), 4, 0.1)
    assert lidar(made, piece=100) == pytest.approx(lidar(made), rel=1e-9)


@pytest.mark.parametrize("shape", [(0, 4, 8), (1, 4, 8), (20, 0, 8), (20, 1, 8)])
def test_lidar_needs_two_images_and_two_views(shape: tuple[int, int, int]) -> None:
    assert math.isnan(lidar(torch.randn(shape, generator=torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lidar_of_a_diverged_encoder_is_nan(value: float) -> None:
    made = views_of(features(20), 4, 0.1)
    made[3, 2, 1] = value
    assert math.isnan(lidar(made))


def test_uniformity_by_hand() -> None:
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # squared distances 2, 4, 2
    assert uniformity(square) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3), rel=1e-5)
    assert uniformity(torch.ones(20, 4) / 2) == pytest.approx(0.0, abs=1e-6)


def test_uniformity_is_lower_for_spread_features() -> None:
    even = features(500)
    bunched = F.normalize(even + torch.tensor([2.0] + [0.0] * 7), dim=1)
    assert uniformity(even) < uniformity(bunched) < 0


def test_alignment_by_hand() -> None:
    query, key = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert alignment(query, key) == pytest.approx((0 + 4) / 2)
    assert alignment(query, query) == 0.0


def test_large_sets_are_judged_by_a_fixed_sample() -> None:
    data = features(30_000, 4)
    state = torch.get_rng_state()
    assert rankme(data) == rankme(data) == pytest.approx(rankme(data[:20_000]), rel=0.01)
    wide = features(30_000, 8)
    assert areq(wide) == areq(wide) == pytest.approx(areq(wide[:20_000]), abs=0.01)
    assert uniformity(data) == uniformity(data) == pytest.approx(uniformity(data[:4000]), rel=0.05)
    assert torch.equal(state, torch.get_rng_state())
