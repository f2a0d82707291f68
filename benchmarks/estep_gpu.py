"""How fast one GPU finds nearest centroids, and how right they are: `pcl_ray.clustering.assign.fused` at the
size of ImageNet, C = 128.

    python benchmarks/estep_gpu.py --json estep_gpu.json      # a few minutes
    python benchmarks/estep_gpu.py --quick                    # seconds, small sizes
    python benchmarks/estep_gpu.py --sweep                    # other block sizes of the kernel too

Needs torch, Triton and a GPU, nothing else of what pcl_ray needs. TFLOP/s counts 2·N·K·C for a pass.
faiss-gpu is timed beside it where it is installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pcl_ray.clustering.assign import fused
from pcl_ray.clustering.points import on_grid

DEVICE = "cuda"
DIM = 128
MODES = 25_000  # of the mixture that the features are drawn from
SAMPLE = 10_000
PASSES = 5
# Rows, centroids, warps, stages of the kernel for --sweep.
BLOCKS = [
    (128, 128, 8, 2),
    (128, 128, 8, 3),
    (128, 128, 4, 2),
    (128, 64, 8, 3),
    (128, 64, 4, 4),
    (256, 64, 8, 3),
]
BLOCKS += [(256, 128, 8, 2), (64, 128, 4, 3), (128, 256, 8, 2)]

Row = dict[str, Any]


def features(count: int, modes: int) -> Tensor:
    """[count, DIM] on the sphere, around `modes` directions: mean squared distance to them about a third."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    centres = F.normalize(torch.randn(modes, DIM, generator=generator, device=DEVICE), dim=1)
    which = torch.randint(modes, (count,), generator=generator, device=DEVICE)
    return F.normalize(
        centres[which] + 0.6 / DIM**0.5 * torch.randn(count, DIM, generator=generator, device=DEVICE), dim=1
    )


def means(sizes: Tensor, sums: Tensor, instead: Tensor) -> Tensor:
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], instead.double()).float()


def label_means(rows: Tensor, labels: Tensor, largest: float, instead: Tensor) -> Tensor:
    """[K, C] float32, from old labels and new rows: no distances."""
    sums = torch.zeros(instead.shape, dtype=torch.float64, device=DEVICE)
    for start in range(0, len(rows), 2**18):
        part = slice(start, start + 2**18)
        sums.index_add_(0, labels[part], on_grid(rows[part], len(rows), largest))
    return means(torch.bincount(labels, minlength=len(instead)), sums, instead)


def seconds(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Every call once unmeasured, then all in turn, so that a GPU that grows warm or slow slows them all."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def timing(name: str, clusters: int, count: int, times: list[float]) -> Row:
    median = statistics.median(times)
    teraflops = 2 * count * clusters * DIM / median / 1e12
    row = {
        "case": name,
        "K": clusters,
        "N": count,
        "seconds": median,
        "fastest": min(times),
        "slowest": max(times),
        "teraflops": teraflops,
    }
    print(
        f"{name:32s} K {clusters:7d}  {median * 1000:9.2f} ms  ({min(times) * 1000:.2f} to"
        f" {max(times) * 1000:.2f})  {teraflops:6.1f} TFLOP/s",
        flush=True,
    )
    return row


def one_pass(rows: Tensor, centroids: Tensor, largest: float, repeats: int) -> list[Row]:
    total = {"total": len(rows), "largest": largest}
    calls: dict[str, Callable[[], Any]] = {}
    for precision, half in (("half", True), ("float32", False)):
        for backend in ("triton", "torch"):
            options: dict[str, Any] = {"half": half, "backend": backend}
            calls[f"{backend} {precision}"] = lambda options=options: fused.nearest(
                rows, centroids, largest=largest, **options
            )
            calls[f"{backend} {precision} with sums"] = lambda options=options: fused.nearest_and_sums(
                rows, centroids, **total, **options
            )
    calls |= faiss_calls(rows, centroids)
    return [
        timing(name, len(centroids), len(rows), times) for name, times in interleaved(calls, repeats).items()
    ]


def faiss_calls(rows: Tensor, centroids: Tensor) -> dict[str, Callable[[], Any]]:
    try:
        import faiss
        import faiss.contrib.torch_utils  # lets faiss read tensors on the GPU
    except ImportError:
        return {}
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return {}
    resources = faiss.StandardGpuResources()
    half_rows, half_centroids = rows.half(), centroids.half()
    return {
        "faiss float32": lambda: faiss.knn_gpu(resources, rows, centroids, 1),
        "faiss half": lambda: faiss.knn_gpu(resources, half_rows, half_centroids, 1),
    }


def exactness(rows: Tensor, centroids: Tensor, largest: float) -> list[Row]:
    """How exact each is against float64, on a sample: the share of right labels, and by how much the sum of
    squared distances exceeds the least one.
    """
    sample = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:SAMPLE].to(DEVICE)]
    wide = centroids.double()
    results = {
        f"{backend} {precision}": fused.nearest(
            sample, centroids, half=half, largest=largest, backend=backend
        )
        for precision, half in (("half", True), ("float32", False))
        for backend in ("triton", "torch")
    }
    right, excess, least = dict.fromkeys(results, 0), dict.fromkeys(results, 0.0), 0.0
    for start in range(0, len(sample), 500):
        distances = torch.cdist(sample[start : start + 500].double(), wide).square()
        best, true = distances.min(dim=1)
        least += float(best.sum())
        for name, labels in results.items():
            own = labels[start : start + 500]
            right[name] += int((own == true).sum())
            excess[name] += float((distances.gather(1, own[:, None])[:, 0] - best).sum())
    out = []
    for name in results:
        out.append(
            {
                "case": f"exactness of {name}",
                "K": len(centroids),
                "right": right[name] / len(sample),
                "excess": excess[name] / least,
            }
        )
        print(
            f"{out[-1]['case']:32s} K {len(centroids):7d}  {out[-1]['right']:.4%} right,"
            f" {out[-1]['excess']:.1e} more squared distance",
            flush=True,
        )
    out[0]["mean_squared_distance"] = least / len(sample)
    return out


def sums_are_exact(rows: Tensor, centroids: Tensor, largest: float) -> bool:
    """Twice the same bits, and those of one addition after the other."""
    runs = [
        fused.nearest_and_sums(rows, centroids, total=len(rows), largest=largest, half=True, backend="triton")
        for _ in range(2)
    ]
    labels, sizes, sums = runs[0]
    wanted = torch.zeros_like(sums)
    for start in range(0, len(rows), 2**18):
        part = slice(start, start + 2**18)
        wanted.index_add_(0, labels[part], on_grid(rows[part], len(rows), largest))
    same = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    return (
        same
        and torch.equal(sums, wanted)
        and torch.equal(sizes, torch.bincount(labels, minlength=len(sizes)))
    )


def e_step(rows: Tensor, starts: list[tuple[Tensor, Tensor]], largest: float) -> None:
    """Every K from the means of the last epoch's labels, then PASSES passes."""
    for labels, instead in starts:
        centroids = label_means(rows, labels, largest, instead)
        for _ in range(PASSES):
            _, sizes, sums = fused.nearest_and_sums(
                rows, centroids, total=len(rows), largest=largest, half=True
            )
            centroids = means(sizes, sums, centroids)


def sweep(rows: Tensor, centroids: Tensor, largest: float, repeats: int) -> list[Row]:
    """Block sizes beside those of the module, in half precision; without those that do not fit the GPU."""
    usual_blocks = fused._blocks
    out: list[Row] = []
    for tile_rows, tile_centroids, warps, stages in BLOCKS:
        blocks = fused._Blocks(tile_rows, tile_centroids, DIM, warps, stages)
        fused._blocks = lambda dim, half, blocks=blocks: blocks
        name = f"{tile_rows}x{tile_centroids}, {warps} warps, {stages} stages"
        try:
            times = interleaved(
                {name: lambda: fused.nearest(rows, centroids, half=True, largest=largest, backend="triton")},
                repeats,
            )
            out.append(timing(name, len(centroids), len(rows), times[name]))
        except Exception as error:  # out of shared memory or registers: an answer too
            print(f"{name}: {type(error).__name__}", flush=True)
        finally:
            fused._blocks = usual_blocks
    return out


def claims(rows: list[Row], exact: bool, e_step_seconds: float, *, speed: bool) -> list[Row]:
    def of(case: str, figure: str) -> list[float]:
        return [row[figure] for row in rows if row["case"] == case]

    def at_least(text: str, value: float, bar: float) -> Row:
        return {"claim": text, "value": value, "bar": bar, "holds": value >= bar}

    def at_most(text: str, value: float, bar: float) -> Row:
        return {"claim": text, "value": value, "bar": bar, "holds": value <= bar}

    made = [
        at_least(
            "half precision: share of labels that float64 gives, at the worst K",
            min(of("exactness of triton half", "right")),
            0.999,
        ),
        at_most(
            "half precision: squared distance above the least, at the worst K",
            max(of("exactness of triton half", "excess")),
            1e-5,
        ),
        at_least(
            "float32: share of labels that float64 gives, at the worst K",
            min(of("exactness of triton float32", "right")),
            0.9999,
        ),
        at_least("sums are the same bits twice and exact", float(exact), 1),
    ]
    if speed:
        alone = of("triton half", "seconds")
        beside_torch = [slow / fast for slow, fast in zip(of("torch half", "seconds"), alone, strict=True)]
        with_sums = [
            both / one for both, one in zip(of("triton half with sums", "seconds"), alone, strict=True)
        ]
        made += [
            at_least(
                "half precision, labels only: TFLOP/s, at the slowest K",
                min(of("triton half", "teraflops")),
                200,
            ),
            at_least(
                "half precision: times as fast as plain torch, at the K where it is least",
                min(beside_torch),
                2,
            ),
            at_most("labels with sums: times as long as labels only, at the worst K", max(with_sums), 1.15),
            at_most(f"label-warm E-step, three K, {PASSES} passes each: seconds", e_step_seconds, 2),
        ]
    return made


def versions() -> dict[str, str]:
    numbers = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    for name in ("triton", "faiss"):
        if name in sys.modules:
            numbers[name] = sys.modules[name].__version__
    return numbers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="writes the figures there")
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the size: shows that it runs, claims no speed"
    )
    parser.add_argument("--sweep", action="store_true", help="other block sizes of the kernel too")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not fused.available():
        print(
            "This benchmark needs an NVIDIA GPU of compute capability 8 or more, and Triton; there is none"
            " here.",
            file=sys.stderr,
        )
        return 2

    machine = (
        f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).multi_processor_count}"
        " multiprocessors"
    )
    print(machine)
    shrink = 20 if arguments.quick else 1
    rows = features(1_281_167 // shrink, MODES // shrink)
    largest = float(rows.abs().max())
    table: list[Row] = []
    starts = []
    for clusters in (25_000 // shrink, 50_000 // shrink, 100_000 // shrink):
        first = rows[
            torch.randperm(len(rows), generator=torch.Generator().manual_seed(clusters))[:clusters].to(DEVICE)
        ]
        labels, sizes, sums = fused.nearest_and_sums(rows, first, total=len(rows), largest=largest, half=True)
        centroids = means(sizes, sums, first)
        starts.append((labels, centroids))
        table += one_pass(rows, centroids, largest, arguments.repeats) + exactness(rows, centroids, largest)
        if arguments.sweep:
            table += sweep(rows, centroids, largest, arguments.repeats)
    exact = sums_are_exact(rows, starts[0][1], largest)
    times = interleaved({"e-step": lambda: e_step(rows, starts, largest)}, max(3, arguments.repeats))[
        "e-step"
    ]
    table.append(
        timing(
            f"label-warm E-step, {PASSES} passes",
            PASSES * sum(len(centroids) for _, centroids in starts),
            len(rows),
            times,
        )
    )

    made = claims(table, exact, statistics.median(times), speed=not arguments.quick)
    for claim in made:
        print(
            f"{'holds' if claim['holds'] else 'FAILS':5s}  {claim['claim']}: {claim['value']:.6g} (bar"
            f" {claim['bar']:g})"
        )
    if arguments.json:
        document = {
            "benchmark": "estep_gpu",
            "machine": machine,
            "versions": versions(),
            "claims": made,
            "rows": table,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(claim["holds"] for claim in made) else 1


if __name__ == "__main__":
    sys.exit(main())
