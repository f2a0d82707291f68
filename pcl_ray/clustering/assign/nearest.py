"""The nearest centroid of every point, the costly step of k-means, never with the whole N × K matrix.

Which centroid is nearest must not depend on how the points are cut into blocks, threads or processes, while
float32 matrix products do. So each backend also looks at the second nearest: where the two are closer than
rounding can tell apart, the row is decided again in float64. The labels are then the true ones, ties go to
the lowest id, and every CPU backend gives the same. (GPUs: see `fused`.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering.points import Moments, Points

Backend = Literal["faiss", "torch"]
_ROWS = 32768  # rows that are handed to a backend at a time
_SCORES = 2**22  # scores [rows, centroids] that are held at a time on a CPU: 16 MiB
# mean squared distance to the centroid below which half precision orders neighbours wrongly
_HALF_NEEDS = 1e-2


@dataclass(frozen=True)
class Nearest:
    """How nearest centroids are found: backend, CPU threads (0: all cores), whether faiss may use a GPU."""

    backend: Backend = "faiss"
    threads: int = 0
    gpu: bool = False

    def __call__(self, points: Points, centroids_KC: Tensor, *, spread: float = 0.0) -> Tensor:
        """[n] int64 on the points' device, for float32 centroids [K, C] on any.

        spread: mean squared distance of the points to their centroids, where known; a GPU then computes in
        half precision where that is enough. There labels are exact up to the rounding that `fused` states.
        """
        if len(centroids_KC) == 1:
            return torch.zeros(len(points.rows), dtype=torch.long, device=points.device)
        with cpu_threads(self.threads):
            if points.device.type == "cuda":
                from pcl_ray.clustering.assign import fused  # brings Triton, which only GPUs need

                return fused.nearest(
                    points.rows,
                    centroids_KC.to(points.device),
                    half=spread >= _HALF_NEEDS,
                    largest=points.largest,
                )
            if self.backend == "faiss":
                find = _faiss_finder(centroids_KC, self.threads, self.gpu)
            else:
                find = _torch_finder(centroids_KC)
            parts = [_decided(block.float(), centroids_KC, find) for block in points.rows.split(_ROWS)]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class BruteForce:
    """An `lloyd.Assign` that looks at every centroid in every pass."""

    nearest: Nearest

    def __call__(
        self, points: Points, centroids_KC: Tensor, *, labels: Tensor | None, spread: float
    ) -> Tensor:
        return self.nearest(points, centroids_KC, spread=spread)

    def with_moments(self, points: Points, centroids_KC: Tensor, *, spread: float) -> tuple[Tensor, Moments]:
        """Labels and moments of all points, for the first pass; on a GPU one kernel makes both."""
        if points.device.type != "cuda":
            labels = self(points, centroids_KC, labels=None, spread=spread)
            return labels, Moments.of(points, labels, len(centroids_KC))
        from pcl_ray.clustering.assign import fused

        moments, half = Moments.zeros(points, len(centroids_KC)), spread >= _HALF_NEEDS
        labels, moments.sizes, moments.sums = fused.nearest_and_sums(
            points.rows, centroids_KC, total=points.total, largest=points.largest, half=half
        )
        moments.squares.index_add_(0, labels, points.squares)
        points.group.sum(moments.sizes, moments.sums, moments.squares)
        return labels, moments


# rows [b, C] → nearest [b], and how much farther the second nearest is, in squared distance [b]
_Finder = Callable[[Tensor], tuple[Tensor, Tensor]]


def _decided(rows: Tensor, centroids: Tensor, find: _Finder) -> Tensor:
    nearest, margin = find(rows)
    unclear = (margin <= tolerance(rows, centroids)).nonzero().flatten()
    if len(unclear):
        nearest[unclear] = exactly_nearest(rows[unclear], centroids)
    return nearest


def tolerance(rows: Tensor, centroids: Tensor) -> Tensor:
    """[b] how much two float32 squared distances ‖x‖² − 2x·c + ‖c‖² of a row may be wrong against each other:
    the bound of error analysis for inner products of C terms, 3(C + 2) units in the last place of the larger
    norm, for either (and one term more, for the norms taken here).
    """
    unit, terms = 2.0**-24, 3 * (rows.shape[-1] + 3)
    largest = torch.linalg.vector_norm(centroids, dim=1).max()
    return 2 * unit * terms * torch.linalg.vector_norm(rows, dim=-1).clamp(min=largest).square()


def exactly_nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """[b] the nearest centroid in float64; of equally near ones the lowest id."""
    wide = centroids.double()
    half_squares = wide.square().sum(dim=1) / 2
    ids = torch.arange(len(wide), device=rows.device)
    # One tensor for all: small ones kept between large freed ones would leave gaps that the heap cannot use.
    nearest = torch.empty(len(rows), dtype=torch.long, device=rows.device)
    size = max(1, _SCORES // len(wide))
    for block, out in zip(rows.double().split(size), nearest.split(size), strict=True):
        scores = half_squares - block @ wide.T
        scale = block.square().sum(dim=1, keepdim=True) + half_squares.max()
        out.copy_(lowest_of_equal(scores, ids, scale))
    return nearest


def lowest_of_equal(scores: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """[b] the id of the smallest of float64 scores ‖c‖²/2 − x·c [b, K], of equal ones the lowest; ids: [K] or
    [b, K]; scale: [b, 1], the size of the terms.

    Equal distances may differ in the last place of a float64: far below what float32 features can tell.
    """
    equal = scores <= scores.amin(dim=1, keepdim=True) + 1e-14 * scale
    return torch.where(equal, ids, torch.iinfo(torch.long).max).amin(dim=1)


def _faiss_finder(centroids: Tensor, threads: int, gpu: bool) -> _Finder:
    import faiss

    index = flat_index(centroids, threads)
    if gpu and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)

    def find(rows: Tensor) -> tuple[Tensor, Tensor]:
        distances, ids = index.search(np.ascontiguousarray(rows.numpy(), dtype=np.float32), 2)
        return torch.from_numpy(ids[:, 0].copy()), torch.from_numpy(distances[:, 1] - distances[:, 0])

    return find


def flat_index(centroids: Tensor, threads: int) -> Any:
    """faiss' index of the centroids; its searches use so many threads (0: all cores)."""
    import faiss

    faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids.numpy(), dtype=np.float32))
    return index


def _torch_finder(centroids: Tensor) -> _Finder:
    half_squares, turned = centroids.square().sum(dim=1) / 2, centroids.T.contiguous()

    def find(rows: Tensor) -> tuple[Tensor, Tensor]:
        nearest, margins = torch.empty(len(rows), dtype=torch.long), torch.empty(len(rows))
        size = max(64, _SCORES // len(centroids))
        scores = torch.empty(min(size, len(rows)), len(centroids))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            block = rows[part]
            nearest[part], margins[part] = two_best(
                torch.addmm(half_squares, block, turned, alpha=-1, out=scores[: len(block)])
            )
        return nearest, margins

    return find


def two_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The position of the smallest of scores ‖c‖²/2 − x·c [..., K] on a CPU, and how much larger the second
    is, in squared distance. Overwrites scores.
    """
    # numpy's is vectorised, torch's on CPUs is not
    best = torch.from_numpy(scores.numpy().argmin(axis=-1))[..., None]
    first = scores.gather(-1, best)
    second = scores.scatter_(-1, best, float("inf")).amin(dim=-1, keepdim=True)
    return best[..., 0], 2 * (second - first)[..., 0]


class cpu_threads:
    """A context in which torch's products on CPUs use so many threads (0: as many as they did)."""

    def __init__(self, count: int):
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._count:
            torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
