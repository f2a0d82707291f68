"""Threads of a training step on the CPU: one, or all cores, by how much each of them has to do.

    python benchmarks/threads.py --json benchmarks/threads.json
    python benchmarks/threads.py --quick     # seconds; says nothing about speed

A thread's work is the values of a pass after the encoder's first layer; a pass is the part of a batch that
batch norm normalises at once. A run takes as many threads as have enough of it (`plan/sizes.threads`); the
claim is that it takes the faster number, or one that is as fast within the noise.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import common  # before torch: it sets how OpenMP's threads wait
import mstep
import numpy as np
import torch
from common import Report, interleaved

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.data.images import ArrayImages
from pcl_ray.support import machine

_STEPS = 6
_NOISE = 1.1  # a wrong number that costs less than a tenth
# width of the encoder, pixels, stride of its first layer, batch, parts of it
CASES = (
    (8, 8, 1, 64, 1),
    (32, 12, 1, 64, 4),
    (32, 12, 1, 64, 1),
    (32, 16, 1, 128, 4),
    (64, 28, 2, 128, 4),
    (32, 28, 1, 128, 4),
    (32, 16, 1, 128, 1),
    (64, 32, 1, 64, 4),
    (64, 28, 2, 128, 1),
)


def main() -> int:
    arguments = common.parser(__doc__, 5).parse_args()
    report = Report("threads", arguments.quick)
    report.section(f"milliseconds of a step, one thread and {machine.cores()}")
    rows = [measured(case, 1 if arguments.quick else arguments.repeats) for case in CASES]
    report.table(rows)
    worst = max(float(row["chosen / faster"]) for row in rows)
    report.claim("the number that a run takes, against the faster", worst, at_most=_NOISE, full_size=True)
    return report.end(arguments.json)


def measured(case: tuple[int, int, int, int, int], repeats: int) -> common.Row:
    width, pixels, stride, batch, parts = case
    config = configs.load(
        "digits",
        {
            "augment.image_size": pixels,
            "encoder.width": width,
            "encoder.stem_stride": stride,
            "encoder.batch_norm_parts": parts,
            "encoder.dim": 128,
            "train.batch_size": batch,
            "train.epochs": repeats + 2,
            "e_step.num_clusters": [25, 50],
            "e_step.warmup_epochs": 0,
            "resources.workers": 0,
        },
    )
    count = batch * _STEPS
    pixels_of_all = np.random.default_rng(0).integers(0, 255, (count, pixels, pixels, 1), dtype=np.uint8)
    images = ArrayImages(pixels_of_all, np.zeros(count, dtype=np.int64))
    epoch = mstep.ours(config, images, torch.device("cpu"))

    def with_threads(threads: int) -> Callable[[int], None]:
        def run(number: int) -> None:
            torch.set_num_threads(threads)
            epoch(number)

        return run

    numbers = (1, machine.cores())
    timed = interleaved({str(threads): with_threads(threads) for threads in numbers}, repeats)
    medians = {number: statistics.median(timed[str(number)].seconds) / _STEPS * 1e3 for number in numbers}
    threads = plans.make(config, count).threads
    return {
        "width": width,
        "px": pixels,
        "stride": stride,
        "batch / parts": f"{batch} / {parts}",
        "values": f"{batch / parts * (pixels / stride) ** 2 * width / 1e3:,.0f} k",
        **{f"{number} thread{'s' * (number > 1)}": value for number, value in medians.items()},
        "one / all": medians[numbers[0]] / medians[numbers[1]],
        "chosen": threads,
        "chosen / faster": medians.get(threads, min(medians.values())) / min(medians.values()),
    }


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
