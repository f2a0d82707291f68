"""The fused kernels as compiled for a GPU; tests/unit/test_fused.py has the same under the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.clustering.points import on_grid

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from pcl_ray.clustering.assign import fused

if not fused.available():
    pytest.skip("needs Triton and compute capability 8 or more", allow_module_level=True)


def sphere(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1).cuda()


def check(rows: Tensor, centroids: Tensor, *, half: bool) -> Tensor:
    """Distances against float64 within rounding, sums exact, and the same bits a second time."""
    largest = float(rows.abs().max())
    labels, sizes, sums = fused.nearest_and_sums(
        rows, centroids, total=len(rows), largest=largest, half=half, backend="triton"
    )
    again = fused.nearest_and_sums(
        rows, centroids, total=len(rows), largest=largest, half=half, backend="triton"
    )
    assert all(torch.equal(one, other) for one, other in zip((labels, sizes, sums), again, strict=True))
    assert torch.equal(labels, fused.nearest(rows, centroids, half=half, largest=largest, backend="triton"))
    assert torch.equal(sums, torch.zeros_like(sums).index_add_(0, labels, on_grid(rows, len(rows), largest)))
    assert torch.equal(sizes, torch.bincount(labels, minlength=len(centroids)))
    wide, middle = centroids.double(), centroids.double().mean(dim=0)
    reach = max((points.double() - middle).norm(dim=1).max() for points in (rows, centroids))
    allowed = 4 * reach * (2.0**-11 if half else 2.0**-24)
    sums_round = 2 * rows.shape[1] * 2.0**-23 * reach**2  # tensor cores may cut off where others round
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000].double()
        own = (part - wide[labels[start : start + 1000]]).norm(dim=1)
        least = torch.cdist(part, wide).min(dim=1).values
        assert (own**2 <= (least + allowed) ** 2 + sums_round).all()
    return labels


SHAPES = [
    (1, 1, 3),
    (1, 7, 128),
    (130, 1, 100),
    (5000, 3000, 128),
    (5000, 777, 64),
    (3000, 500, 200),
    (3000, 500, 256),
    (2000, 515, 300),
    (1000, 650, 1024),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("count", "clusters", "dim"), SHAPES)
def test_nearest_and_exact_sums(count: int, clusters: int, dim: int, half: bool, dtype: torch.dtype) -> None:
    rows, centroids = sphere(count, dim, 1).to(dtype), sphere(clusters, dim, 2)
    labels = check(rows, centroids, half=half)
    plain = fused.nearest(rows, centroids, half=half, backend="torch")
    # The two add products in another order: they part where two centroids are equally near.
    assert (labels == plain).double().mean() > 0.998


def test_many_rows_and_many_centroids() -> None:
    check(sphere(200_000, 128, 3), sphere(10_000, 128, 4), half=True)
    check(sphere(3_000, 128, 5), sphere(300_000, 128, 6), half=True)


def test_slabs_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centroids = sphere(100_003, 128, 7), sphere(1000, 128, 8)
    whole = check(rows, centroids, half=True)
    monkeypatch.setattr(fused, "_SLAB", 2**20)
    assert torch.equal(check(rows, centroids, half=True), whole)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("half", [True, False])
def test_of_equal_centroids_the_lowest_id(half: bool, backend: str) -> None:
    different = sphere(400, 128, 9)
    which = torch.randint(400, (3000,), generator=torch.Generator().manual_seed(10)).cuda()
    nearest = torch.arange(20_000, device="cuda") % 400
    labels = fused.nearest(
        different[nearest] + 0.01 * sphere(20_000, 128, 11), different[which], half=half, backend=backend
    )
    first = torch.stack([(which == number).nonzero()[0, 0] for number in range(400)])
    assert torch.equal(labels, first[nearest])


def test_half_precision_holds_in_a_narrow_cone() -> None:
    draws = torch.Generator().manual_seed(12)
    rows, centroids = (
        0.99 + 0.01 * torch.randn(count, 128, generator=draws).cuda() for count in (10_000, 500)
    )
    true = torch.cdist(rows.double(), centroids.double()).argmin(dim=1)
    assert (check(rows, centroids, half=True) == true).double().mean() >= 0.98


def test_a_label_does_not_depend_on_the_rows_beside_it() -> None:
    rows, centroids = sphere(10_000, 128, 13), sphere(2000, 128, 14)
    largest = float(rows.abs().max())
    whole = fused.nearest(rows, centroids, half=True, largest=largest)
    parts = [fused.nearest(part, centroids, half=True, largest=largest) for part in rows.split(777)]
    assert torch.equal(whole, torch.cat(parts))


def test_rows_on_the_cpu_stay_there() -> None:
    assert fused.nearest(sphere(10, 8, 15).cpu(), sphere(4, 8, 16).cpu(), half=True).device.type == "cpu"
