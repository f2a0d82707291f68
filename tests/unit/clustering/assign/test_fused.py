"""The fused kernels, run by Triton's interpreter on CPU tensors, and the same in plain torch.

The interpreter has to be chosen before Triton is imported and would then be everybody's, so a process of its
own runs the kernels.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.clustering.points import on_grid

if TYPE_CHECKING:
    from triton.runtime.interpreter import TensorHandle

Run = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _use_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from triton.runtime import interpreter

    # The interpreter multiplies tiles by BLAS, of which some kernels round an entry by where it lies in the
    # tile. A GPU does not: there each entry of a product is summed in the same order.
    def product(
        _: object, a: TensorHandle, b: TensorHandle, d: TensorHandle, *options: object
    ) -> TensorHandle:
        exact = np.einsum("ij,jk->ik", a.data.astype(np.float64), b.data.astype(np.float64))
        return interpreter.TensorHandle(exact.astype(d.data.dtype) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = product


def _run(
    rows: np.ndarray,
    centroids: np.ndarray,
    total: int,
    largest: float,
    half: bool,
    backend: str,
    limits: dict[str, int],
) -> list[np.ndarray]:
    from pcl_ray.clustering.assign import fused

    assert fused.available()
    before = {name: getattr(fused, name) for name in limits}
    try:
        for name, value in limits.items():
            setattr(fused, name, value)
        x, c = torch.from_numpy(rows), torch.from_numpy(centroids)
        found = fused.nearest_and_sums(x, c, total=total, largest=largest, half=half, backend=backend)
        assert torch.equal(found[0], fused.nearest(x, c, half=half, largest=largest, backend=backend))
        return [tensor.numpy() for tensor in found]
    finally:
        for name, value in before.items():
            setattr(fused, name, value)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_use_interpreter) as pool:
        yield pool


@pytest.fixture
def run(process: ProcessPoolExecutor) -> Run:
    def call(
        rows: Tensor,
        centroids: Tensor,
        *,
        half: bool,
        backend: str = "triton",
        total: int | None = None,
        **limits: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        largest = float(rows.abs().max())
        task = process.submit(
            _run, rows.numpy(), centroids.numpy(), total or len(rows), largest, half, backend, limits
        )
        labels, sizes, sums = (torch.from_numpy(array) for array in task.result(timeout=250))
        return labels, sizes, sums

    return call


def sphere(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def check_nearest(rows: Tensor, centroids: Tensor, labels: Tensor, *, half: bool) -> None:
    """The label's distance against the least one in float64. Both points of a distance are wrong by a unit of
    rounding of their distance from the mean.
    """
    distances = torch.cdist(rows.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist")
    reach = max(
        (points.double() - centroids.double().mean(dim=0)).norm(dim=1).max() for points in (rows, centroids)
    )
    own = distances[torch.arange(len(rows)), labels]
    allowed = 4 * reach * (2.0**-11 if half else 2.0**-24)
    # Beside it, float32 sums of as many terms as there are dimensions.
    sums = 2 * rows.shape[1] * 2.0**-24 * reach**2
    assert (own**2 <= (distances.min(dim=1).values + allowed) ** 2 + sums).all()


def check_sums(rows: Tensor, labels: Tensor, sizes: Tensor, sums: Tensor, total: int) -> None:
    wanted = torch.zeros_like(sums).index_add_(0, labels, on_grid(rows, total, float(rows.abs().max())))
    assert torch.equal(sums, wanted)
    assert torch.equal(sizes, torch.bincount(labels, minlength=len(sizes)))
    assert (labels.dtype, sizes.dtype, sums.dtype) == (torch.int64, torch.int64, torch.float64)


SHAPES = [
    (1, 1, 3),
    (1, 7, 128),
    (130, 1, 100),
    (257, 300, 100),
    (129, 129, 3),
    (200, 515, 128),
    (70, 140, 200),
    (40, 150, 300),
    (3, 65, 1024),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("count", "clusters", "dim"), SHAPES)
def test_nearest_and_exact_sums(
    run: Run, count: int, clusters: int, dim: int, half: bool, dtype: torch.dtype
) -> None:
    rows, centroids = sphere(count, dim, 1).to(dtype), sphere(clusters, dim, 2)
    labels, sizes, sums = run(rows, centroids, half=half)
    check_nearest(rows, centroids, labels, half=half)
    check_sums(rows, labels, sizes, sums, count)
    for mine, torchs in zip(
        (labels, sizes, sums), run(rows, centroids, half=half, backend="torch"), strict=True
    ):
        assert torch.equal(mine, torchs)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("half", [True, False])
def test_of_equal_centroids_the_lowest_id(run: Run, half: bool, backend: str) -> None:
    different = sphere(40, 16, 3)
    which = torch.randint(40, (300,), generator=torch.Generator().manual_seed(4))
    nearest = torch.arange(200) % 40
    rows = different[nearest] + 0.01 * sphere(200, 16, 5)
    labels, _, _ = run(
        rows,
        different[which],
        half=half,
        backend=backend,
        **({"_SCORES_CPU": 2**12} if backend == "torch" else {}),
    )
    first = torch.stack([(which == number).nonzero()[0, 0] for number in range(40)])
    assert torch.equal(labels, first[nearest])


@pytest.mark.parametrize("half", [True, False])
def test_cut_into_pieces_gives_the_same(run: Run, half: bool) -> None:
    rows, centroids = sphere(300, 20, 6), sphere(200, 20, 7)
    whole = run(rows, centroids, half=half)
    for pieces in (
        run(rows, centroids, half=half, _SLAB=4096),
        run(rows, centroids, half=half, backend="torch", _SCORES_CPU=2**12),
    ):
        assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_a_row_has_its_label_wherever_it_is_held(run: Run) -> None:
    # Two far groups, and rounding that decides within them: a part of the rows has another mean than all.
    side = torch.tensor([1.0, -1.0]).repeat_interleave(150)[:, None]
    rows, centroids = side + 0.002 * sphere(300, 32, 8), side[::3] + 0.002 * sphere(100, 32, 9)
    whole, _, _ = run(rows, centroids, half=True)
    assert torch.equal(whole, torch.cat([run(part, centroids, half=True)[0] for part in rows.split(75)]))


def cone(count: int, seed: int) -> Tensor:
    return 0.99 + 0.01 * torch.randn(count, 128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_half_precision_holds_in_a_narrow_cone(run: Run, backend: str) -> None:
    rows, centroids = cone(600, 10), cone(100, 11)
    true = torch.cdist(rows.double(), centroids.double()).argmin(dim=1)
    labels, _, _ = run(rows, centroids, half=True, backend=backend)
    assert (labels == true).double().mean() >= 0.98
    # What rounding does to them where they are, with the norms of the centroids as given.
    raw = (
        centroids.double().square().sum(dim=1) / 2 - rows.half().double() @ centroids.half().double().T
    ).argmin(dim=1)
    assert (raw == true).double().mean() < 0.5


@pytest.mark.parametrize("exponent", [-40, -20, 20, 60])
def test_half_precision_knows_no_scale(run: Run, exponent: int) -> None:
    rows, centroids = sphere(150, 32, 12), sphere(70, 32, 13)
    expected, _, _ = run(rows, centroids, half=True)
    labels, sizes, sums = run(rows * 2.0**exponent, centroids * 2.0**exponent, half=True)
    assert torch.equal(labels, expected)
    check_sums(rows * 2.0**exponent, labels, sizes, sums, len(rows))


@pytest.mark.parametrize("total", [2, 1000, 2**40])
def test_sums_round_halves_to_even_on_the_grid_of_the_points(run: Run, total: int) -> None:
    # 2¹² units in one for the largest total: every second value lies half way between two.
    rows = (torch.arange(64 * 16).float().view(64, 16) - 500) / 2**13
    rows[0, 0] = 1.0
    labels, sizes, sums = run(rows, sphere(5, 16, 14), half=False, total=total)
    check_sums(rows, labels, sizes, sums, total)


def test_not_finite_is_refused_and_no_rows_are_no_labels() -> None:
    from pcl_ray.clustering.assign import fused

    with pytest.raises(ValueError, match="finite"):
        fused.nearest(torch.full((3, 4), float("nan")), sphere(2, 4, 15), half=True, backend="torch")
    labels, sizes, sums = fused.nearest_and_sums(
        torch.zeros(0, 4), sphere(2, 4, 15), total=9, largest=1.0, half=True
    )
    assert (labels.shape, sizes.tolist(), sums.shape, float(sums.sum())) == ((0,), [0, 0], (2, 4), 0.0)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pcl_ray.clustering.assign import fused

def compiled(kernel, capability, options, **arguments):
    kinds = {name: kind if isinstance(kind, str) else "constexpr" for name, kind in arguments.items()}
    constants = {name: kind for name, kind in arguments.items() if not isinstance(kind, str)}
    pointers = [place for place, kind in enumerate(kinds.values()) if kind.startswith("*")]
    aligned = {(place,): [["tt.divisibility", 16]] for place in pointers}
    source = ASTSource(kernel, kinds, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

for capability in (80, 90):
    for half, kind in ((True, "*fp16"), (False, "*fp32")):
        blocks = fused._blocks(128, half)
        sizes = {"TILE": blocks.centroids, "NEIGHBOURS": fused._NEIGHBOURS}
        given = {"x_ptr": kind, "c_ptr": kind, "half_squares_ptr": "*fp32", "groups_ptr": "*i32"}
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        found = compiled(fused._best_groups, capability, options, **given,
                         tiles="i32", WIDTH=128, DIMS=blocks.dims, ROWS=blocks.rows, **sizes)
        settled = compiled(fused._settle, capability, {},
                           **given, rows_ptr="*fp32", labels_ptr="*i64", sums_ptr="*i64", sizes_ptr="*i64",
                           units_ptr="*fp64", count="i32",
                           DIM=128, WIDTH=128, ACROSS=128, ROWS=32, **sizes)
        fits, hopper = found.metadata.shared <= 99 * 1024, "wgmma" in found.asm["ptx"]
        print(capability, half, fits, hopper, ".add.u64" in settled.asm["ptx"])
"""


def test_the_kernels_compile_for_gpus(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the interpreter does not show, and needs no GPU: they fit the shared memory, and an H100 multiplies
    # float16 in its tensor cores.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = run_python(COMPILE)
    wanted = [
        f"{capability} {half} True {half and capability == 90} True"
        for capability in (80, 90)
        for half in (True, False)
    ]
    assert done.stdout.splitlines() == wanted, done.stderr


def test_without_triton_torch_does_it_and_nothing_heavy_is_imported(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch\n"
        "from pcl_ray.clustering.assign import fused\n"
        "print(fused.available(), fused.nearest(torch.eye(3), torch.eye(3), half=True).tolist())\n"
        "print([name for name in ('ray', 'faiss', 'mlflow', 'pydantic', 'sklearn') if name in sys.modules])"
    )
    assert done.stdout.splitlines() == ["False [0, 1, 2]", "[]"], done.stderr
