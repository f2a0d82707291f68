"""CPU seconds until an encoder is as good as the reference setting ends up: ours against that setting.

    python benchmarks/time_to_accuracy.py                  # three repeats on 20,000 images: hours on one core
    python benchmarks/time_to_accuracy.py --images 5000    # a quarter of that
    python benchmarks/time_to_accuracy.py --device cuda    # seconds of the clock, ResNet-18

reference: the published choices in our code: views image by image by torchvision, contiguous memory, one
tensor after the other in the optimizer, cold E-steps of 20 iterations × 5 restarts, weight 1.
ours: study_settings.FAST.

Both are trained in one process in turns, an epoch at a time, so that they end together; after
each epoch kNN (k = 20) of the momentum encoder's backbone is measured, unpaid. What is compared is the time
to the first epoch in which the reference's last accuracy is reached.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded

import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import study_data
import study_settings
import study_training
import torch
from common import Report
from study_settings import QUICK, Knobs, Run

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.evaluation import knn_accuracy
from pcl_ray.model.weights import load_encoder
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import epochs
from pcl_ray.training.training_task import TrainingTask

_SLOW: Knobs = {"train.memory_format": "contiguous", "optimizer.fused": False}

Curve = list[tuple[float, float]]  # seconds of training so far, kNN accuracy, epoch by epoch


def main() -> int:
    options = common.parser(__doc__, repeats=3)
    options.add_argument("--images", type=int, help="train on so many of the 20,000 images")
    options.add_argument("--epochs", type=int, help="of the reference (default: 16); ours in proportion")
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--data", type=Path, help="folder of the data sets (default: PCL_RAY_HOME/data)")
    arguments = options.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here")
    torch.set_num_threads(1)
    task = "quick" if arguments.quick else "fashion_mnist"
    if arguments.quick:
        arguments.repeats = 1
    try:
        path = study_data.file_of(task, folder=arguments.data)
    except DataError as error:  # which says by itself what is missing
        print(error, file=sys.stderr)
        return 2
    report = Report("time_to_accuracy", arguments.quick)
    report.section("seconds of training and kNN of the backbone after each epoch")
    ratios = []
    for seed in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            knobs = {"data.path": str(path), "data.limit": arguments.images, "seed": seed}
            pipelines = [
                Pipeline(name, _config(name, knobs, arguments), path, Path(folder, name), arguments.device)
                for name in ("reference", "ours")
            ]
            in_turns(pipelines)
        reference, ours = (pipeline.curve for pipeline in pipelines)
        goal = reference[-1][1]
        seconds = time_to(ours, goal)
        for pipeline in pipelines:
            report.row(f"seed {seed}: {pipeline.name}", curve=_rounded(pipeline.curve))
        if seconds is None:
            report.row(f"seed {seed}: {goal:.4f} is not reached", best=max(value for _, value in ours))
            ratios.append(float("inf"))
            continue
        ratios.append(seconds / reference[-1][0])
        report.row(
            f"seed {seed}: until kNN {goal:.4f}", reference=reference[-1][0], ours=seconds, ratio=ratios[-1]
        )
    report.row("ours / reference", ratio=statistics.median(ratios), least=min(ratios), most=max(ratios))
    report.claim(
        "time to the reference's last kNN accuracy, as a share of the reference's time (the worst repeat)",
        max(ratios),
        at_most=1 / 3,
        full_size=True,
    )
    return report.end(arguments.json)


def _config(name: str, knobs: Knobs, arguments: Any) -> RunConfig:
    """The configuration of one of the two, `reference` or `ours`."""
    run = Run("fashion_mnist", "reference" if name == "reference" else "pcl", 0, arguments.device)
    base = study_settings.base_knobs(run)
    if name == "ours" and arguments.device == "cpu":
        base = study_settings.FAST
    if name == "reference":
        base = base | _SLOW
    if arguments.quick:
        sizes = ("encoder.width", "loss.queue_size", "e_step.num_clusters", "e_step.warmup_epochs")
        base = base | {size: QUICK.knobs[size] for size in (*sizes, "train.epochs")}
    if arguments.epochs and name == "reference":
        base = base | {"train.epochs": arguments.epochs}
    elif arguments.epochs:
        whole = study_settings.base_knobs(Run("fashion_mnist", "reference", 0))["train.epochs"]
        base = base | {"train.epochs": max(round(base["train.epochs"] * arguments.epochs / whole), 2)}
    return configs.with_overrides(RunConfig(), base | study_training.machinery() | knobs)


@dataclass
class Pipeline:
    """One of the two trainings, an epoch at a time."""

    name: str
    config: RunConfig
    data: Path
    folder: Path
    device: str
    curve: Curve = field(default_factory=list)

    def __post_init__(self) -> None:
        self._splits = datasets.load(self.config.data, cache_dir=self.data.parent)
        self._plan = plans.make(self.config, len(self._splits.train), self._splits.num_holdout)
        self._task = TrainingTask(self.config, self._plan, str(self.folder))
        device = torch.device(self.device)
        self._clock = study_training.TrainingClock(device, self._plan.epochs)
        self._epochs: Iterator[int] = epochs(
            self._task,
            self._splits,
            device=device,
            e_step=LocalEStep(self.config, self._splits),
            broadcast=lambda value: value,
            post=self._clock.see,
        )

    @property
    def done(self) -> float:
        """The share of the epochs that are done."""
        return len(self.curve) / self._plan.epochs

    def advance(self) -> None:
        """Trains one epoch and measures the encoder."""
        self._clock.start()
        done = next(self._epochs)
        before = self.curve[-1][0] if self.curve else 0.0
        seconds = before + self._clock.seconds(done)
        checkpoint = epoch_files.latest(self._task.checkpoints)
        assert checkpoint is not None
        self.curve.append((seconds, _knn(checkpoint, self.config, self._splits, torch.device(self.device))))


def in_turns(pipelines: list[Pipeline]) -> None:
    """Trains them to their ends, always the one that is least far."""
    while (least := min(pipelines, key=lambda pipeline: pipeline.done)).done < 1:
        least.advance()
        seconds, accuracy = least.curve[-1]
        print(f"  {least.name:10s} {least.done:5.0%}  {seconds:8.1f} s  kNN {accuracy:.4f}", file=sys.stderr)


def time_to(curve: Curve, goal: float) -> float | None:
    """The seconds to the first epoch that is as good as the goal; None where there is none."""
    return next((seconds for seconds, accuracy in curve if accuracy >= goal), None)


def _knn(checkpoint: Path, config: RunConfig, splits: DataSplits, device: torch.device) -> float:
    """kNN accuracy (k = 20) of the momentum encoder's backbone on the test images."""
    import study_evaluation  # scikit-learn takes seconds

    encoder = load_encoder(checkpoint, encoder="momentum")
    backbone, _ = study_evaluation.encoder_features(encoder, config, splits, device)
    assert splits.holdout is not None
    train, test = (
        torch.from_numpy(study_evaluation.labels_of(part)) for part in (splits.train, splits.holdout)
    )
    return knn_accuracy(backbone["train"], train, backbone["test"], test, neighbours=20)


def _rounded(curve: Curve) -> list[list[float]]:
    return [[round(seconds, 2), round(accuracy, 4)] for seconds, accuracy in curve]


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
