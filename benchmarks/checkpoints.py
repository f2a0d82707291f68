"""What a checkpoint costs the training: the seconds that it waits where the file is written before anything
follows and where it is written beside, and how long an epoch must be for that to be less than 2 % of it.

    python benchmarks/checkpoints.py --json benchmarks/checkpoints.json
    python benchmarks/checkpoints.py --quick     # seconds; says nothing about speed

The same learner is saved both ways in turn. Beside the training the wait is that for copying the state; the
write goes on meanwhile, which the last column has.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import exit_code, parser

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.checkpoints.background import BackgroundWriter
from pcl_ray.config import RunConfig
from pcl_ray.model.learner import build_learner
from pcl_ray.training import worker_checkpoints
from pcl_ray.training.training_task import TrainingTask
from pcl_ray.training.worker_checkpoints import Progress

_SHARE = 0.02  # of an epoch
CASES = {
    "the digits": (),
    "ResNet-50, queue 65,536": (
        "encoder.backbone=resnet50",
        "encoder.dim=128",
        "data.channels=3",
        "augment.mean=0.5,0.5,0.5",
        "augment.std=0.25,0.25,0.25",
        "loss.queue_size=65536",
        "augment.image_size=64",
    ),
}


def main() -> int:
    arguments = parser(__doc__, 7).parse_args()
    names = list(CASES)[:1] if arguments.quick else list(CASES)
    rows = [measured(name, 2 if arguments.quick else arguments.repeats) for name in names]
    for row in rows:
        print(
            f"{row['case']:<26} {row['megabytes']:7.1f} MB   waits {row['before_s']:.3f} s"
            f" (under 2 % from {row['before_epoch_s']:.1f} s an epoch), beside {row['beside_s']:.3f} s"
            f" ({row['beside_epoch_s']:.1f} s); the write {row['write_s']:.3f} s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"cases": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


def measured(name: str, repeats: int) -> dict[str, Any]:
    """Medians over so many saves of either kind, in turn."""
    config = configs.load("digits", ["resources.workers=0", "tracking.enabled=false", *CASES[name]])
    learner, writer = build_learner(config, torch.device("cpu")), BackgroundWriter()
    before, beside, writes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(config, Path(folder))
        progress = Progress(1, None, [])

        def save(with_writer: BackgroundWriter | None) -> None:
            worker_checkpoints.save(
                task, learner, progress, lambda value: value, task.checkpoints, with_writer
            )

        for _ in range(repeats):
            before.append(seconds_of(lambda: save(None)))
            beside.append(seconds_of(lambda: save(writer)))
            writes.append(seconds_of(writer.wait))
        size = max(path.stat().st_size for path in task.checkpoints.glob("*.pt"))
    result: dict[str, Any] = {"case": name, "megabytes": size / 1e6}
    for way, values in (("before", before), ("beside", beside)):
        result[f"{way}_s"] = statistics.median(values)
        result[f"{way}_spread_s"] = [min(values), max(values)]
        result[f"{way}_epoch_s"] = result[f"{way}_s"] / _SHARE
    return result | {"write_s": statistics.median(writes)}


def _alone(value: Any, /) -> Any:
    return value


def task_of(config: RunConfig, folder: Path) -> TrainingTask:
    return TrainingTask(config, plans.make(config, 1438, 359), str(folder))


def seconds_of(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(exit_code(main))
