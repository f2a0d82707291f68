"""A training so small that an epoch takes a fraction of a second, and a display that ends a run."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from small import DIGITS_RUN

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.reading import Readers
from pcl_ray.errors import Stopped
from pcl_ray.m_step import Learner, build_learner
from pcl_ray.plan import RunPlan
from pcl_ray.runs.console import Display
from pcl_ray.training.events import Event
from pcl_ray.training.feature_pass import FeaturePass
from pcl_ray.training.training_task import TrainingTask

CPU = torch.device("cpu")


def alone(value: Any, /) -> Any:
    """The broadcast of one process."""
    return value


@dataclass
class SmallTraining:
    config: RunConfig
    plan: RunPlan
    splits: DataSplits
    events: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, *words: str) -> SmallTraining:
        config = configs.load("digits", (*DIGITS_RUN, "resources.workers=0", "e_step.threads=1", *words))
        splits = datasets.load(config.data, cache_dir=Path("unused"))
        return cls(config, plans.make(config, len(splits.train), splits.num_holdout), splits)

    def learner(self) -> Learner:
        torch.manual_seed(0)
        return build_learner(self.config, CPU, warn=lambda text: None)

    def features(self) -> FeaturePass:
        return FeaturePass(self.splits, self.config, CPU, Readers(self.config, CPU, 0))

    def task(self, run_dir: Path, **options: Any) -> TrainingTask:
        return TrainingTask(self.config, self.plan, str(run_dir), **options)

    def post(self, event: Event) -> None:
        self.events.append(event)

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


class StopsIn(Display):
    """Ends the run in the middle of an epoch, as a signal would."""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = epoch

    def handle(self, event: Event) -> None:
        if event.kind == "step" and event.epoch == self.epoch:
            raise Stopped("cut", signal.SIGTERM)
