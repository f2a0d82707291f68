"""What the benchmarks share: timing, claims, tables and JSON, made-up features, a Ray, memory figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as runs have it; read when torch is loaded

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.e_step import EStepRefused
from pcl_ray.errors import ConfigError, DataError, RunFailed

LIMIT_S = 600.0  # no answer from an actor takes so long
DIM = 128
_EVERY_S = 0.005

Row = dict[str, Any]


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="small sizes: shows in a minute that everything runs, claims no speed",
    )
    made.add_argument("--json", type=Path, help="writes claims and figures there")
    made.add_argument(
        "--repeats", type=int, default=repeats, help="interleaved repeats (default: %(default)s)"
    )
    return made


def exit_code(main: Callable[[], int]) -> int:
    """The exit code of `main`: 2 for a wrong request, 1 for a failed run, with the reason in a sentence."""
    try:
        return main()
    except DataError as error:
        print(
            f"{error}; the benchmarks need Fashion-MNIST: install Debian's package dataset-fashion-mnist",
            file=sys.stderr,
        )
        return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (RunFailed, EStepRefused) as error:
        print(error, file=sys.stderr)
        return 1


@dataclass
class Timed:
    """The times of a call, and what it gave back each time."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(
    calls: dict[str, Callable[[int], Any]], repeats: int, *, warm_up: bool = True
) -> dict[str, Timed]:
    """Calls everything `repeats` times in turns, so that a machine that grows slow does so for all. Calls get
    the number of the round, −1 unmeasured.
    """
    timed = {name: Timed() for name in calls}
    for number in range(-1 if warm_up else 0, repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call(number)
            if number >= 0:
                timed[name].seconds.append(time.perf_counter() - start)
                timed[name].results.append(result)
    return timed


@dataclass
class Report:
    """Figures and claims of one benchmark, printed as they come."""

    benchmark: str
    quick: bool
    claims: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    machine: str = field(default_factory=lambda: machine())  # with its load before the benchmark adds to it

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def row(self, case: str, **figures: Any) -> None:
        self.rows.append({"case": case, **figures})
        print(
            f"  {case:58s} " + "  ".join(f"{name} {shown(value)}" for name, value in figures.items()),
            flush=True,
        )

    def table(self, rows: list[Row]) -> None:
        """Rows of the same columns, aligned."""
        self.rows += rows
        lines = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print(
                "  " + "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)),
                flush=True,
            )

    def timing(self, case: str, timed: Timed, **figures: Any) -> None:
        self.row(
            case, seconds=timed.median, fastest=min(timed.seconds), slowest=max(timed.seconds), **figures
        )

    def ratio(self, case: str, above: Timed, below: Timed) -> float:
        """The median over the rounds of one time divided by the other of the same round."""
        each = [one / other for one, other in zip(above.seconds, below.seconds, strict=True)]
        self.row(case, ratio=statistics.median(each), least=min(each), most=max(each))
        return statistics.median(each)

    def claim(
        self,
        text: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        full_size: bool = False,
    ) -> None:
        """`full_size`: says nothing at the sizes of --quick, and is left out there."""
        if full_size and self.quick:
            return
        bar = at_least if at_least is not None else at_most
        assert bar is not None
        holds = value >= bar if at_least is not None else value <= bar
        self.claims.append({"claim": text, "value": value, "bar": bar, "holds": holds})

    def end(self, file: Path | None) -> int:
        """Prints the claims, writes the file; the exit code."""
        print()
        for claim in self.claims:
            print(
                f"{'holds' if claim['holds'] else 'FAILS':5s}  {claim['claim']}: {claim['value']:.6g} (bar"
                f" {claim['bar']:g})"
            )
        self.write(file)
        return 0 if all(claim["holds"] for claim in self.claims) else 1

    def write(self, file: Path | None) -> None:
        """Writes what there is so far."""
        if file is not None:
            document = {
                "benchmark": self.benchmark,
                "machine": self.machine,
                "versions": versions(),
                "claims": self.claims,
                "rows": self.rows,
            }
            file.write_text(json.dumps(document, indent=1) + "\n")


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}"


def versions() -> dict[str, str]:
    numbers = {"python": platform.python_version()}
    for name in ("pcl_ray", "torch", "numpy", "faiss-gpu", "faiss-cpu", "ray"):
        with suppress(importlib.metadata.PackageNotFoundError):
            numbers[name] = importlib.metadata.version(name)
    return numbers


class Mixture:
    """Synthetic features: a hierarchical mixture on the sphere S¹²⁷.

    Modes lie around an eighth as many group directions (cosine of two modes of a group .25), with Zipf
    weights 1 / (rank + 10). A point is its mode plus noise, half of it in the eight directions of its mode's
    basis (there are 256 bases), half isotropic, normalised: the cosine of two points of a mode is about .6.
    """

    def __init__(self, modes: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        groups = F.normalize(torch.randn(max(1, modes // 8), DIM, generator=generator), dim=1)
        own = F.normalize(torch.randn(modes, DIM, generator=generator), dim=1)
        self.modes = F.normalize(
            0.5 * groups[torch.randint(len(groups), (modes,), generator=generator)] + 0.75**0.5 * own, dim=1
        )
        self._bases = torch.linalg.qr(torch.randn(256, DIM, 8, generator=generator)).Q.transpose(1, 2)
        self._weights = 1 / (torch.arange(modes) + 10.0)

    def which(self, count: int, seed: int) -> Tensor:
        """[count] int64, the modes of the points that `draw` gives."""
        return torch.multinomial(
            self._weights, count, replacement=True, generator=torch.Generator().manual_seed(seed)
        )

    def draw(self, count: int, seed: int) -> Tensor:
        """[count, DIM] float32."""
        generator = torch.Generator().manual_seed(seed + 1)
        parts = []
        for modes in self.which(count, seed).split(65536):
            low_rank = (
                torch.bmm(torch.randn(len(modes), 1, 8, generator=generator), self._bases[modes % 256])[:, 0]
                / (3 * 8) ** 0.5
            )
            isotropic = torch.randn(len(modes), DIM, generator=generator) / (3 * DIM) ** 0.5
            parts.append(F.normalize(self.modes[modes] + low_rank + isotropic, dim=1))
        return torch.cat(parts)

    def drifted(self, rows: Tensor, seed: int, *, epoch: int = 1, cosine: float = 0.95) -> Tensor:
        """The points of `draw(len(rows), seed)` an epoch later: each turned by arccos(cosine), half of it
        with its mode, half on its own.
        """
        generator = torch.Generator().manual_seed(seed + 7919 * epoch)
        together = F.normalize(torch.randn(len(self.modes), DIM, generator=generator), dim=1)
        parts = []
        for block, modes in zip(rows.split(65536), self.which(len(rows), seed).split(65536), strict=True):
            towards = together[modes] + F.normalize(torch.randn(len(block), DIM, generator=generator), dim=1)
            across = F.normalize(towards - (towards * block).sum(dim=1, keepdim=True) * block, dim=1)
            parts.append(cosine * block + (1 - cosine**2) ** 0.5 * across)
        return F.normalize(torch.cat(parts), dim=1)


def sum_of_squares(
    rows: np.ndarray | Tensor, centroids: np.ndarray | Tensor, labels: np.ndarray | Tensor
) -> float:
    """Sum of squared distances of the rows to their centroids, in float64."""
    rows, centroids, labels = (torch.as_tensor(part) for part in (rows, centroids, labels))
    return sum(
        float((block.double() - centroids[of].double()).square().sum())
        for block, of in zip(rows.split(8192), labels.long().split(8192), strict=True)
    )


@contextmanager
def own_ray(cpus: int) -> Iterator[Any]:
    """The ray module, connected to a Ray that ends with this process. Raises RunFailed if it cannot start."""
    os.environ.pop("RAY_ADDRESS", None)  # what is measured is this machine
    from pcl_ray.on_ray import environment

    environment.set_defaults()
    import logging

    import ray

    try:
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RunFailed(f"Ray could not be started: {str(error).strip().splitlines()[0]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def memory_of(process: int) -> dict[str, int]:
    """Resident bytes of a process: private (of its own), shared (the object store), whole."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    private, shared, whole = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "VmRSS"))
    return {"private": private, "shared": shared, "whole": whole}


class MemoryWatch:
    """A context in which `peak` follows the memory of another process, looked at every few milliseconds."""

    def __init__(self, process: int):
        self._process, self._done = process, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = memory_of(process)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(LIMIT_S)

    def _watch(self) -> None:
        with suppress(OSError, ValueError, KeyError):  # the process has ended
            while not self._done.wait(_EVERY_S):
                self.peak = {
                    name: max(value, self.peak[name]) for name, value in memory_of(self._process).items()
                }
