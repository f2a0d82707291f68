"""Time of an epoch with one and two workers at the same global batch, and what Ray adds to plain processes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --workers 1 2 4 8      # GPUs of one machine

Every figure is an epoch of `training.loop.train`: M-step, feature pass, E-step, evaluation, checkpoint. `ray`
runs it as `pcl-ray train` does: Ray Train workers, the E-step in an actor. `plain` runs it in processes of
torch.multiprocessing that exchange by torch.distributed alone; worker 0 clusters. The first epoch of a run
warms up and is left out. Where Ray is not installed only `plain` is measured.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import common  # before torch: it sets how OpenMP's threads wait
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import LIMIT_S, Report

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import ArrayImages
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.support.machine import cores
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.events import Event
from pcl_ray.training.loop import train
from pcl_ray.training.training_task import TrainingTask

_EPOCHS = 3  # of a run; the first warms up


def main() -> int:
    options = common.parser(__doc__, repeats=3)
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument(
        "--images",
        type=int,
        default=24_000,
        help="images of an epoch (default: %(default)s; on a 2-core CPU half a minute)",
    )
    arguments = options.parse_args()
    if arguments.device == "cuda" and torch.cuda.device_count() < max(arguments.workers):
        raise ConfigError(
            f"--workers {max(arguments.workers)}: torch finds {torch.cuda.device_count()} GPUs here"
        )
    report = Report("scaling", arguments.quick)
    images, repeats = (1024, 1) if arguments.quick else (arguments.images, arguments.repeats)
    with_ray = importlib.util.find_spec("ray") is not None
    report.section(
        f"seconds of an epoch of {images} images, 28 × 28, batch 256, K = 200, 400; {arguments.device}"
        + ("" if with_ray else "; Ray is not installed")
    )
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for workers in arguments.workers:
            config = config_of(images, workers, arguments.device)
            for kind in ("plain", "ray") if with_ray else ("plain",):
                history = (through_ray if kind == "ray" else through_processes)(
                    config, images, arguments.device
                )
                seconds.setdefault((kind, workers), []).append(
                    statistics.median(entry["metrics"]["perf/epoch_seconds"] for entry in history[1:])
                )
                report.row(
                    f"{kind}, {workers} workers", seconds=seconds[kind, workers][-1], **shares(history)
                )
    summarise(report, seconds, arguments.workers)
    return report.end(arguments.json)


def shares(history: list[dict[str, Any]]) -> dict[str, float]:
    last = history[-1]["metrics"]
    return {
        "images_per_second": last["perf/images_per_second"],
        "e_step_share": last["perf/e_step_share"],
        "data_share": last["perf/data_share"],
    }


def summarise(report: Report, seconds: dict[tuple[str, int], list[float]], workers: list[int]) -> None:
    for number in workers:
        if ("ray", number) in seconds:
            each = [
                ray / plain
                for ray, plain in zip(seconds["ray", number], seconds["plain", number], strict=True)
            ]
            report.row(
                f"{number} workers: ray / plain",
                ratio=statistics.median(each),
                least=min(each),
                most=max(each),
            )
            long_enough = statistics.median(seconds["plain", number]) >= 30
            text = (
                f"what Ray adds to an epoch{'' if long_enough else ' (which is shorter than 30 s)'}, {number}"
                " workers"
            )
            report.claim(text, statistics.median(each) - 1, at_most=0.03, full_size=True)
    first = workers[0]
    for number in workers[1:]:
        each = [
            one / more for one, more in zip(seconds["plain", first], seconds["plain", number], strict=True)
        ]
        report.row(
            f"plain: {first} workers / {number} workers",
            ratio=statistics.median(each),
            least=min(each),
            most=max(each),
        )


def config_of(images: int, workers: int, device: str) -> RunConfig:
    """The configuration of a run, with as many cores in all, whatever the number of workers."""
    gpu = device == "cuda"
    knobs: dict[str, Any] = {
        "data.source": "arrays",
        "data.channels": 1,
        "augment.image_size": 28,
        "augment.blur": 0.0,
        "augment.mean": [0.3],
        "augment.std": [0.35],
        "encoder.backbone": "small_resnet",
        "encoder.blocks": [2, 2, 2, 2],
        "loss.queue_size": 1024,
        "e_step.num_clusters": [200, 400] if images > 4000 else [20, 40],
        "e_step.warmup_epochs": 0,
        "e_step.restarts": 1,
        "e_step.backend": "auto" if importlib.util.find_spec("faiss") else "torch",
        "e_step.mode": "single",
        "train.epochs": _EPOCHS,
        "train.batch_size": 256,
        "train.log_every_steps": 20,
        "resources.workers": workers,
        "resources.cpus_per_worker": max(cores() // workers, 1),
        "resources.gpus_per_worker": 1.0 if gpu else 0.0,
        "tracking.enabled": False,
    }
    return configs.with_overrides(RunConfig(), knobs)


def splits_of(images: int) -> DataSplits:
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 256, (10, 28, 28, 1))
    labels = draw.integers(0, 10, images + 1000)
    pixels = (0.6 * kinds[labels] + 0.4 * draw.integers(0, 256, (len(labels), 28, 28, 1))).astype(np.uint8)
    return DataSplits(
        ArrayImages(pixels[:images], labels[:images]), ArrayImages(pixels[images:], labels[images:])
    )


def through_ray(config: RunConfig, images: int, device: str) -> list[dict[str, Any]]:
    from pcl_ray.on_ray import environment

    environment.set_defaults()
    from pcl_ray.on_ray.launch import train_on_ray

    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = plans.make(config, images, 1000)
        train_on_ray(TrainingTask(config, plan, folder), splits_of(images), events.append)
    return [{"metrics": event.metrics} for event in events if event.kind == "epoch"]


def through_processes(config: RunConfig, images: int, device: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        # A single one is spawned too: its memory and threads are then its own, as a Ray worker's are.
        context = mp.spawn(
            run_process,
            args=(config.to_yaml(), images, device, folder),
            nprocs=config.resources.workers,
            join=False,
        )
        while not context.join(timeout=LIMIT_S):
            pass
        return json.loads(Path(folder, "epochs.json").read_text())


def run_process(number: int, recipe: str, images: int, device: str, folder: str) -> None:
    """One worker: the process group, then the same loop."""
    path = Path(folder, f"config_{number}.yaml")
    path.write_text(recipe)
    config = configs.load(path)
    plan = plans.make(config, images, 1000)
    torch.set_num_threads(plan.threads)
    if config.resources.workers > 1:
        timeout = timedelta(seconds=LIMIT_S)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            init_method=f"file://{folder}/meeting",
            rank=number,
            world_size=config.resources.workers,
            timeout=timeout,
        )
    where = torch.device("cuda", number) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(where)
    events: list[Event] = []
    splits = splits_of(images)
    train(
        TrainingTask(config, plan, folder),
        splits,
        device=where,
        e_step=PlainEStep(config, splits),
        broadcast=from_first,
        post=events.append,
    )
    if number == 0:
        Path(folder, "epochs.json").write_text(
            json.dumps([{"metrics": event.metrics} for event in events if event.kind == "epoch"])
        )
    if dist.is_initialized():
        dist.destroy_process_group()


def from_first(value: Any) -> Any:
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class PlainEStep:
    """The actor's class in worker 0; features and answers travel by torch.distributed."""

    def __init__(self, config: RunConfig, splits: DataSplits):
        self._actor = EStepActor(config)
        self._labels = splits.train.labels
        self._holdout_labels = splits.holdout.labels if splits.holdout is not None else None

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> Done:
        everyone: list[Any] | None = [None] * world_size() if rank() == 0 else None
        if world_size() > 1:
            dist.gather_object(shards, everyone)
        else:
            everyone = [shards]
        answer = None
        if everyone is not None:
            for part, shard in ((part, shard) for one in everyone for part, shard in one.items()):
                self._actor.push(key, part, shard.indices, shard.features, request.total(part))
            answer = self._actor.run(key, request, previous, self._labels, self._holdout_labels)
        return Done(from_first(answer))


@dataclass(frozen=True)
class Done:
    answer: EStepAnswer

    def ready(self) -> bool:
        return True

    def wait(self) -> EStepAnswer:
        if self.answer.missing:
            raise RunFailed(f"the E-step lacks {self.answer.missing}")
        return self.answer


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
