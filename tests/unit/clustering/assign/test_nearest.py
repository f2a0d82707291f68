"""Nearest centroids against brute force in float64: equal labels, not close ones."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.clustering.assign.nearest import Backend, Nearest, tolerance
from pcl_ray.clustering.points import Points

both_backends = pytest.mark.parametrize("backend", ["faiss", "torch"])


def found(rows: Tensor, centroids: Tensor, backend: Backend = "faiss", threads: int = 1) -> list[int]:
    return Nearest(backend, threads)(Points.of(rows), centroids).tolist()


def brute(rows: Tensor, centroids: Tensor) -> list[int]:
    """By subtraction in float64; numpy's argmin takes the first of equal ones."""
    difference = rows.double().numpy()[:, None, :] - centroids.double().numpy()[None, :, :]
    return np.square(difference).sum(axis=2).argmin(axis=1).tolist()


def some(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@both_backends
@given(
    dim=st.integers(1, 3),
    k=st.integers(1, 12),
    n=st.integers(0, 40),
    size=st.integers(1, 3),
    offset=st.sampled_from([0, 7, 1000]),
    seed=st.integers(0, 1000),
    half=st.booleans(),
)
def test_ties_on_a_grid_go_to_the_lowest_id(
    backend: Backend, dim: int, k: int, n: int, size: int, offset: int, seed: int, half: bool
) -> None:
    # Whole numbers: exact distances; most points are equally near to several centroids, some of them equal.
    draw = torch.Generator().manual_seed(seed)
    rows, centroids = (
        torch.randint(-size, size + 1, (m, dim), generator=draw) + float(offset) for m in (n, k)
    )
    assert found(rows.half() if half else rows, centroids, backend) == brute(rows, centroids)


@both_backends
@pytest.mark.parametrize(("k", "dim"), [(2, 1), (2, 128), (3, 5), (100, 16), (300, 64)])
def test_labels_of_random_points_are_the_true_ones(backend: Backend, k: int, dim: int) -> None:
    rows, centroids = some(500, dim), some(k, dim, seed=1)
    assert found(rows, centroids, backend) == brute(rows, centroids)


@both_backends
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_labels_in_a_narrow_cone_are_the_true_ones(backend: Backend, noise: float) -> None:
    # ‖x‖² − 2x·c + ‖c‖² in float32 has lost the differences here long since.
    offset = F.normalize(some(1, 32, seed=9), dim=1)
    rows, centroids = (F.normalize(offset + noise * some(m, 32, seed=m), dim=1) for m in (500, 40))
    expected = brute(rows, centroids)
    assert found(rows, centroids, backend) == expected
    scores = centroids.square().sum(dim=1) / 2 - rows @ centroids.T
    if noise <= 1e-4:
        assert scores.argmin(dim=1).tolist() != expected  # a plain float32 product gets it wrong


@both_backends
def test_equal_centroids_leave_all_but_the_first_empty(backend: Backend) -> None:
    centroids = some(5, 8)[torch.tensor([3, 1, 3, 3, 0, 1, 4])]
    labels = found(some(2000, 8, seed=1), centroids, backend)
    assert set(labels) == {0, 1, 4, 6}
    assert labels == brute(some(2000, 8, seed=1), centroids)


@both_backends
def test_points_on_the_middle_between_two_centroids_take_the_first(backend: Backend) -> None:
    half_way = F.normalize(some(200, 6, seed=2), dim=1) * torch.tensor([0.0, 1, 1, 1, 1, 1])
    centroids = torch.zeros(3, 6)
    centroids[0, 0], centroids[1, 0], centroids[2, 0] = 4.0, -1.0, 1.0
    assert set(found(half_way, centroids, backend)) == {1}


@both_backends
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 50])
def test_no_points_and_one_point(backend: Backend, n: int, k: int) -> None:
    rows, centroids = some(n, 4), some(k, 4, seed=1)
    labels = Nearest(backend, 1)(Points.of(rows, total=5, largest=4.0), centroids)
    assert labels.dtype == torch.long
    assert labels.tolist() == brute(rows, centroids)


def cone(n: int, seed: int) -> Tensor:
    """Points that float32 orders differently in products of different shapes."""
    return F.normalize(torch.ones(1, 24) + 1e-3 * some(n, 24, seed), dim=1)


@both_backends
@pytest.mark.parametrize("threads", [1, 2])
def test_labels_do_not_depend_on_how_rows_are_cut(backend: Backend, threads: int) -> None:
    rows, centroids = cone(900, 1), cone(200, 2)
    whole = found(rows, centroids, backend)
    assert whole == brute(rows, centroids)
    cuts = [0, 1, 3, 40, 41, 500, 900]
    assert [
        label
        for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        for label in found(rows[a:b], centroids, backend, threads)
    ] == whole
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    assert found(rows[order], centroids, backend, threads) == [whole[i] for i in order.tolist()]
    # more than a backend is given at a time, and more scores than are held at a time
    assert found(rows.repeat(50, 1), centroids, backend, threads) == whole * 50


def test_both_backends_find_the_same() -> None:
    rows, centroids = cone(2000, 3), cone(150, 4)
    assert found(rows, centroids, "faiss") == found(rows, centroids, "torch") == brute(rows, centroids)


@given(dim=st.integers(1, 200), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1.0, 30.0]))
def test_float32_is_never_further_off_than_the_tolerance(dim: int, seed: int, offset: float) -> None:
    # Where the tolerance were too small, a wrong label would pass for clear.
    rows, centroids = some(20, dim, seed) + offset, some(30, dim, seed + 1) + offset
    wide = centroids.double()
    off = (centroids.square().sum(dim=1) / 2 - rows @ centroids.T) - (
        wide.square().sum(dim=1) / 2 - rows.double() @ wide.T
    )
    assert (2 * (off.amax(dim=1) - off.amin(dim=1)) <= tolerance(rows, centroids)).all()


def test_the_callers_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    found(some(10, 2), some(3, 2), "torch", threads=before + 1)
    assert torch.get_num_threads() == before


MEMORY = """
import re, torch
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.points import Points
def peak():
    status = open("/proc/self/status").read().replace("\\t", " ")
    return int(re.search("VmHWM: *(\\d+)", status).group(1)) // 1024
n, draw = 12000, torch.Generator().manual_seed(0)
points, centroids = Points.of(torch.randn(n, 4, generator=draw)), torch.randn(n, 4, generator=draw)
for backend in ("faiss", "torch"):
    Nearest(backend, 1)(points.take(torch.arange(100)), centroids[:100])
before = peak()
for backend in ("faiss", "torch"):
    Nearest(backend, 1)(points, centroids)
Nearest("torch", 1)(points, centroids[:1].expand(n, -1).contiguous())
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of this process alone is known on Linux only"
)
def test_all_distances_are_never_held_at_once(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    # 12000 × 12000 are 576 MB in float32 and twice that in float64, which decides the third call's ties.
    ended = run_python(MEMORY)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 400
