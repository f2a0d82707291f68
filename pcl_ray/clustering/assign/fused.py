"""The nearest centroid of every row and exact sums by centroid, on a GPU, in one pass without N × K scores.

score = ‖c‖²/2 − x·c orders the centroids of a row as their distances do. Before it is computed, rows and
centroids are moved together so that the mean of the centroids is the origin: distances stay, while features
that all lie in one narrow cone no longer lose their differences to rounding. The mean is that of the
centroids, not of the rows, because all processes of a group share them: the label of a row does not depend on
where it is held.

In half precision they are then scaled by a power of two so that nothing can overflow, and rounded to float16:
eight times finer than bfloat16 at the same speed. The norms are those of the rounded centroids. Then only the
distance to a centroid is wrong by the rounding, not the length of a row.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pcl_ray.clustering.points import grid_bits, on_grid


def _import_triton() -> tuple[Any, Any]:
    try:
        import triton
        import triton.language
    except ImportError:  # there are no wheels of it for macOS and Windows
        return None, None
    return triton, triton.language


triton, tl = _import_triton()
_jit: Any = triton.jit if triton else lambda **_: lambda kernel: kernel

_NEIGHBOURS = 8  # centroids of which the kernel's loop keeps only the best score; see `_best_groups`
_SLAB = 2**28  # numbers of the rounded copy of the rows at a time: 512 MiB in half precision
_SCORES = 2**28  # scores at a time where they have to be held: 1 GiB
_SCORES_CPU = 2**22


def available() -> bool:
    """Whether the Triton backend can run: on NVIDIA from capability 8, or interpreted, on CPU tensors."""
    if triton is None:
        return False
    on_gpu = (
        torch.cuda.is_available()
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability() >= (8, 0)
    )
    return on_gpu or triton.knobs.runtime.interpret


def nearest(
    rows_nC: Tensor,
    centroids_KC: Tensor,
    *,
    half: bool,
    largest: float | None = None,
    backend: Literal["triton", "torch"] | None = None,
) -> Tensor:
    """[n] int64: the nearest centroid of each row; of equal scores the lowest id.

    half: float16 products with float32 sums, else float32 throughout. With R the largest distance of a row or
    centroid from the mean of the centroids, a row's centroid is in half precision at most 2⁻⁹·R farther than
    its nearest one, and in float32 at most 2⁻²²·R, apart from what float32 sums round. The rounded rows are a
    copy, at most 512 MiB of it at a time (float32: 1 GiB). largest: no coordinate of a row is larger; looked
    up where it is not given. backend: None takes Triton where it is `available`.
    Raises ValueError for rows or centroids that are not finite, in half precision.
    """
    return _labels(rows_nC, centroids_KC, half, largest, backend, sums=None)


def nearest_and_sums(
    rows_nC: Tensor,
    centroids_KC: Tensor,
    *,
    total: int,
    largest: float,
    half: bool,
    backend: Literal["triton", "torch"] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [n] int64 as `nearest` gives them, sizes [K] int64, and sums [K, C] float64: of
    `points.on_grid(rows, total, largest)` by label, exact.

    The sums are of the rows as they are given, not of the rounded ones.
    """
    sums = _Sums(len(centroids_KC), rows_nC, total, largest)
    labels = _labels(rows_nC, centroids_KC, half, largest, backend, sums)
    return labels, sums.sizes, sums.in_units.double().mul_(sums.unit)


class _Sums:
    """Sums in int64 multiples of the grid's unit: exact, so the order in which a GPU adds does not matter."""

    def __init__(self, num_clusters: int, rows: Tensor, total: int, largest: float):
        bits = grid_bits(total, largest)
        self.unit = 2.0**-bits
        self.total, self.largest = total, largest
        self.units_in_one = torch.full((1,), 2.0**bits, dtype=torch.float64, device=rows.device)
        self.in_units = torch.zeros(num_clusters, rows.shape[1], dtype=torch.long, device=rows.device)
        self.sizes = torch.zeros(num_clusters, dtype=torch.long, device=rows.device)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        self.in_units.index_add_(0, labels, on_grid(rows, self.total, self.largest).div_(self.unit).long())
        self.sizes += torch.bincount(labels, minlength=len(self.sizes))


def _labels(
    rows: Tensor,
    centroids: Tensor,
    half: bool,
    largest: float | None,
    backend: str | None,
    sums: _Sums | None,
) -> Tensor:
    if not len(rows):
        return torch.zeros(0, dtype=torch.long, device=rows.device)
    if backend is None:
        backend = "triton" if available() and (rows.is_cuda or triton.knobs.runtime.interpret) else "torch"
    # Triton launches on the current device
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():
        frame = _Frame.of(rows, centroids, half, largest)
        return (_by_triton if backend == "triton" else _by_torch)(rows.contiguous(), centroids, frame, sums)


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where rows and centroids are compared: moved, scaled, rounded."""

    shift: Tensor  # [C] float32: minus the mean of the centroids, scaled
    scale: float  # a power of two: exact
    dtype: torch.dtype

    @classmethod
    def of(cls, rows: Tensor, centroids: Tensor, half: bool, largest: float | None) -> _Frame:
        centre = centroids.mean(dim=0, dtype=torch.float64).float()
        if not half:
            return cls(-centre, 1.0, torch.float32)
        reach = max(_largest(rows) if largest is None else largest, _largest(centroids)) + _largest(centre)
        if not math.isfinite(reach):
            raise ValueError("half precision needs finite rows and centroids")
        # No coordinate exceeds 2¹⁵ then; float16 ends at 65504, and keeps all digits down to 2⁻²⁹ of that.
        scale = 2.0 ** (15 - max(math.frexp(reach)[1], -100))
        return cls(centre * -scale, scale, torch.float16)

    def round_into(self, out: Tensor, rows: Tensor) -> None:
        """Writes scale·(row − centre) into out's first rows and columns; rounds to float32, then to out's."""
        torch.add(self.shift, rows, alpha=self.scale, out=out[: len(rows), : rows.shape[1]])

    def rounded(self, centroids: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Rounded centroids [count, width] and half their squared norms [count] float32; padding has inf."""
        placed = torch.zeros(count, width, dtype=self.dtype, device=centroids.device)
        self.round_into(placed, centroids)
        half_squares = torch.full((count,), math.inf, device=centroids.device)
        half_squares[: len(centroids)] = (
            torch.linalg.vector_norm(placed[: len(centroids)], dim=1, dtype=torch.float64).square() / 2
        )
        return placed, half_squares


def _largest(values: Tensor) -> float:
    return float(torch.stack(torch.aminmax(values)).abs().max())


def _by_torch(
    rows: Tensor, centroids: Tensor, frame: _Frame, sums: _Sums | None, *, scores: int | None = None
) -> Tensor:
    """`scores`: how many to hold at a time."""
    scores = scores or (_SCORES if rows.is_cuda else _SCORES_CPU)
    placed, half_squares = frame.rounded(centroids, *centroids.shape)
    wide = min(len(placed), max(64, math.isqrt(scores)))
    labels = []
    for block in rows.split(max(1, scores // wide)):
        x = torch.empty(block.shape, dtype=frame.dtype, device=rows.device)
        frame.round_into(x, block)
        best = torch.full((len(block),), math.inf, device=rows.device)
        label = torch.zeros(len(block), dtype=torch.long, device=rows.device)
        for start in range(0, len(placed), wide):
            product = _product(x, placed[start : start + wide])
            # the first of equal ones
            least, column = torch.sub(half_squares[start : start + wide], product, out=product).min(dim=1)
            better = least < best
            label = torch.where(better, column + start, label)
            best = torch.where(better, least, best)
        if sums is not None:
            sums.add(block, label)
        labels.append(label)
    return torch.cat(labels)


def _product(x: Tensor, c: Tensor) -> Tensor:
    """x·cᵀ with float32 sums."""
    if x.is_cuda and x.dtype == torch.float16:
        return torch.mm(x, c.T, out_dtype=torch.float32)
    return torch.mm(x.float(), c.float().T)


@dataclass(frozen=True)
class _Blocks:
    """How the kernel cuts its work."""

    rows: int
    centroids: int
    dims: int  # at a time
    warps: int
    stages: int


def _blocks(dim: int, half: bool) -> _Blocks:
    """Fixed, not tuned at run time: tuning takes seconds a shape, and labels should not depend on it.

    All fit the 99 KiB of shared memory that every GPU from compute capability 8 on has. Up to 128 dimensions
    in half precision, two blocks share a multiprocessor of an H100 (126 registers a thread, 96 KiB), so that
    one multiplies while the other looks for minima; a third stage would leave room for one. 128 rows a block,
    because every block reads all centroids from the L2 cache: at 300 TFLOP/s that is 2.3 TB/s, with 64 rows
    twice as much. Counted from the compiled code; `benchmarks/estep_gpu.py --sweep` measures others.
    """
    if not half:
        return _Blocks(128, 64, 32, 8, 3)
    if dim <= 128:
        return _Blocks(128, 128, max(16, _power_of_two(dim)), 8, 3 if dim <= 64 else 2)
    return _Blocks(64, 64, 256, 4, 2) if dim <= 256 else _Blocks(128, 128, 64, 8, 3)


def _by_triton(rows: Tensor, centroids: Tensor, frame: _Frame, sums: _Sums | None) -> Tensor:
    count, dim = rows.shape
    blocks = _blocks(dim, frame.dtype == torch.float16)
    tiles, width = triton.cdiv(len(centroids), blocks.centroids), triton.cdiv(dim, blocks.dims) * blocks.dims
    placed, half_squares = frame.rounded(centroids, tiles * blocks.centroids, width)
    # First the first neighbours of all groups in a tile, then the second: the minimum stays in a thread.
    groups_in_tile = blocks.centroids // _NEIGHBOURS
    placed = placed.view(tiles, groups_in_tile, _NEIGHBOURS, width).transpose(1, 2).contiguous()
    half_squares = half_squares.view(tiles, groups_in_tile, _NEIGHBOURS).transpose(1, 2).contiguous()

    labels = torch.empty(count, dtype=torch.long, device=rows.device)
    slab = triton.cdiv(min(count, max(1, _SLAB // width)), blocks.rows) * blocks.rows
    x = torch.zeros(slab, width, dtype=frame.dtype, device=rows.device)
    groups = torch.empty(slab, dtype=torch.int32, device=rows.device)
    across = _power_of_two(width)
    together = max(1, min(blocks.rows, 4096 // across))
    for part, label in zip(rows.split(slab), labels.split(slab), strict=True):
        frame.round_into(x, part)
        _best_groups[(triton.cdiv(len(part), blocks.rows),)](
            *(x, placed, half_squares, groups, tiles, width),
            *(blocks.dims, blocks.rows, blocks.centroids, _NEIGHBOURS),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        into = (sums.in_units, sums.sizes, sums.units_in_one) if sums is not None else (None, None, None)
        _settle[(triton.cdiv(len(part), together),)](
            *(x, placed, half_squares, groups, part, label, *into),
            *(len(part), dim, width, across, together, blocks.centroids, _NEIGHBOURS),
        )
    return labels


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@_jit(do_not_specialize=["tiles"])
def _best_groups(
    x_ptr, c_ptr, half_squares_ptr, groups_ptr, tiles,
    WIDTH: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """Finds for ROWS rows the group of NEIGHBOURS successive centroids with the nearest; lowest of equals.

    At 128 dimensions a full search for minima takes as long as the products. So it does little for each
    score: a subtraction and a minimum. Which tile a minimum comes from is kept for every position of a group
    in the tile, and nothing is exchanged between threads until the end.
    """
    GROUPS: tl.constexpr = TILE // NEIGHBOURS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    x_ptrs = x_ptr + row[:, None] * WIDTH + dim[None, :]
    best = tl.full((ROWS, GROUPS), float("inf"), tl.float32)
    tile = tl.zeros((ROWS, GROUPS), tl.int32)
    # All blocks walk the tiles in the same order, so a tile is in the L2 cache even if not all centroids are.
    for number in range(tiles):
        at = number * TILE + tl.arange(0, TILE)
        c_ptrs = c_ptr + at.to(tl.int64)[None, :] * WIDTH + dim[:, None]
        product = tl.zeros((ROWS, TILE), tl.float32)
        for start in range(0, WIDTH, DIMS):
            product = tl.dot(
                tl.load(x_ptrs + start), tl.load(c_ptrs + start), product, input_precision="ieee"
            )
        score = tl.load(half_squares_ptr + at)[None, :] - product
        least = tl.min(tl.reshape(score, (ROWS, NEIGHBOURS, GROUPS)), axis=1)
        better = least < best
        tile = tl.where(better, number, tile)
        best = tl.where(better, least, best)
    lowest = tl.min(best, axis=1)
    group = tile * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(groups_ptr + row, tl.min(tl.where(best == lowest[:, None], group, 2147483647), axis=1))


@_jit(do_not_specialize=["count"])
def _settle(
    x_ptr, c_ptr, half_squares_ptr, groups_ptr, rows_ptr, labels_ptr, sums_ptr, sizes_ptr, units_ptr, count,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ACROSS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """Finds the nearest centroid in the best group for ROWS rows, and adds the rows to their label's sums."""
    GROUPS: tl.constexpr = TILE // NEIGHBOURS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, ACROSS)
    inside = row < count
    within = (dim < WIDTH)[None, :]
    x = tl.load(x_ptr + row[:, None] * WIDTH + dim[None, :], mask=within, other=0.0).to(tl.float32)
    group = tl.load(groups_ptr + row, mask=inside, other=0)
    label = group * NEIGHBOURS
    best = tl.full((ROWS,), float("inf"), tl.float32)
    for number in range(NEIGHBOURS):
        at = group // GROUPS * TILE + number * GROUPS + group % GROUPS
        c = tl.load(c_ptr + at.to(tl.int64)[:, None] * WIDTH + dim[None, :], mask=within, other=0.0).to(
            tl.float32
        )
        score = tl.load(half_squares_ptr + at) - tl.sum(x * c, axis=1)
        label = tl.where(score < best, group * NEIGHBOURS + number, label)
        best = tl.minimum(score, best)
    tl.store(labels_ptr + row, label.to(tl.int64), mask=inside)
    if sums_ptr is not None:
        given = inside[:, None] & (dim < DIM)[None, :]
        value = tl.load(rows_ptr + row[:, None] * DIM + dim[None, :], mask=given, other=0.0).to(
            tl.float64
        ) * tl.load(units_ptr)
        # Adding 1.5·2⁵² rounds a float64 half to even, as torch.round does; values are at most 2⁵¹.
        whole = ((value + 6755399441055744.0) - 6755399441055744.0).to(tl.int64)
        tl.atomic_add(
            sums_ptr + label.to(tl.int64)[:, None] * DIM + dim[None, :], whole, mask=given, sem="relaxed"
        )
        tl.atomic_add(sizes_ptr + label, 1, mask=inside, sem="relaxed")
