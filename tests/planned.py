"""A configuration that fits 1,000 images, and its plan."""

from __future__ import annotations

from typing import Any

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan, make

GOOD = {
    "data.channels": 1,
    "augment.mean": [0.5],
    "augment.std": [0.5],
    "encoder.dim": 16,
    "encoder.batch_norm": "plain",
    "loss.queue_size": 500,
    "e_step.num_clusters": [10, 0.05],
    "e_step.warmup_epochs": 2,
    "train.batch_size": 100,
    "train.epochs": 10,
    "optimizer.lr": 0.4,
    "evaluation.every_epochs": 1,
}
N = 1000  # ten steps an epoch


def config_of(**changed: Any) -> RunConfig:
    """`loss__temperature=0.1` for the knob loss.temperature."""
    return configs.with_overrides(
        RunConfig(), GOOD | {name.replace("__", "."): value for name, value in changed.items()}
    )


def plan_of(**changed: Any) -> RunPlan:
    return make(config_of(**changed), N, 200)


FILES = {"data__source": "folder", "data__path": "/pictures", "data__in_memory": False}
