"""A training step on the CPU: with one thread or all cores, by how much each of them has to do.

    python benchmarks/cpu_step.py --json benchmarks/cpu_step.json
    python benchmarks/cpu_step.py --quick     # seconds; says nothing about speed

A thread's work is the values of a pass after the encoder's first layer; a pass is the part of a batch that
batch norm normalises at once. A run takes as many threads as have enough of it (`plan/sizes.threads`); the
claim is that it takes the faster number, or one that is as fast within the noise.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import common  # before torch: it sets how OpenMP's threads wait
import mstep
import numpy as np
import torch
from common import Report, interleaved

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.data.images import ArrayImages
from pcl_ray.support import machine

_STEPS = 6
_NOISE = 1.1  # a wrong number that costs less than a tenth


@dataclass(frozen=True)
class Case:
    """width of the encoder; pixels a side; stride of its first layer; batch, and parts of it."""

    width: int
    pixels: int
    stride: int
    batch: int
    parts: int

    @property
    def images(self) -> int:
        return self.batch * _STEPS

    def row(self) -> common.Row:
        values = self.batch / self.parts * (self.pixels / self.stride) ** 2 * self.width
        return {
            "width": self.width,
            "px": self.pixels,
            "stride": self.stride,
            "batch / parts": f"{self.batch} / {self.parts}",
            "values": f"{values / 1e3:,.0f} k",
        }


CASES = (
    Case(8, 8, 1, 64, 1),
    Case(32, 12, 1, 64, 4),
    Case(32, 12, 1, 64, 1),
    Case(32, 16, 1, 128, 4),
    Case(64, 28, 2, 128, 4),
    Case(32, 28, 1, 128, 4),
    Case(32, 16, 1, 128, 1),
    Case(64, 32, 1, 64, 4),
    Case(64, 28, 2, 128, 1),
)


def main() -> int:
    arguments = common.parser(__doc__, 5).parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    report = Report("cpu_step", arguments.quick)
    report.section(f"milliseconds of a step, one thread and {machine.cores()}")
    rows = [with_threads(case, repeats) for case in CASES]
    report.table(rows)
    worst = max(float(row["chosen / faster"]) for row in rows)
    report.claim("the number that a run takes, against the faster", worst, at_most=_NOISE, full_size=True)
    return report.end(arguments.json)


def with_threads(case: Case, repeats: int) -> common.Row:
    numbers, config = (1, machine.cores()), config_of(case, repeats)
    medians = milliseconds({str(number): (config, number) for number in numbers}, repeats)
    threads = plans.make(config, case.images).threads
    return case.row() | {
        **{f"{number} thread{'s' * (number > 1)}": medians[str(number)] for number in numbers},
        "one / all": medians[str(numbers[0])] / medians[str(numbers[1])],
        "chosen": threads,
        "chosen / faster": medians.get(str(threads), min(medians.values())) / min(medians.values()),
    }


def milliseconds(variants: dict[str, tuple[RunConfig, int]], repeats: int) -> dict[str, float]:
    """Medians of a step of each variant, a configuration and a number of threads, in turns."""

    def epochs_of(config: RunConfig, threads: int) -> Callable[[int], None]:
        epoch = mstep.ours(config, images_of(config), torch.device("cpu"))

        def run(number: int) -> None:
            torch.set_num_threads(threads)
            epoch(number)

        return run

    timed = interleaved({name: epochs_of(*variant) for name, variant in variants.items()}, repeats)
    return {name: statistics.median(each.seconds) / _STEPS * 1e3 for name, each in timed.items()}


def config_of(case: Case, repeats: int) -> RunConfig:
    return configs.load(
        "digits",
        {
            "augment.image_size": case.pixels,
            "encoder.width": case.width,
            "encoder.stem_stride": case.stride,
            "encoder.batch_norm_parts": case.parts,
            "encoder.dim": 128,
            "train.batch_size": case.batch,
            "train.epochs": repeats + 2,
            "e_step.num_clusters": [25, 50],
            "e_step.warmup_epochs": 0,
            "resources.workers": 0,
        },
    )


def images_of(config: RunConfig) -> ArrayImages:
    count, side = config.train.batch_size * _STEPS, config.augment.image_size
    pixels = np.random.default_rng(0).integers(0, 255, (count, side, side, 1), dtype=np.uint8)
    return ArrayImages(pixels, np.zeros(count, dtype=np.int64))


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
