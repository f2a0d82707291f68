"""What a sweep would cost: a few steps of the recipe timed on this machine, times all that trials do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pcl_ray import plan as plans
from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.data.images import ArrayImages
from pcl_ray.data.loaders import EvaluationLoader, TrainingLoader
from pcl_ray.e_step import extract_features
from pcl_ray.m_step import run_epoch
from pcl_ray.model.learner import build_learner, precision, views_for
from pcl_ray.plan import RunPlan
from pcl_ray.support import machine

_STEPS = 3


@dataclass(frozen=True)
class Cost:
    """Seconds on one device for one image; k-means and reading files are not in it."""

    trained: float
    passed: float  # in a feature pass

    def of_run(self, plan: RunPlan, epochs: int) -> float:
        """Device seconds of so many epochs, with the feature passes that E-steps and evaluations make."""
        passes = sum(
            plan.clusters_before(epoch + 1) or plan.evaluates_after(epoch)
            for epoch in range(plan.epochs - epochs, plan.epochs)
        )
        return (
            epochs * plan.steps_per_epoch * plan.global_batch * self.trained
            + passes * (plan.num_images + plan.num_holdout) * self.passed
        )


def measure(config: RunConfig) -> Cost | None:
    """A few steps on made-up images; None where the trials are to have GPUs and this machine has none."""
    wants_gpu = config.resources.gpus_per_worker > 0
    if wants_gpu and not torch.cuda.is_available():
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.threads(int(config.resources.cpus_per_worker)))  # as a trial has
    try:
        return _measured(config, torch.device("cuda" if wants_gpu else "cpu"))
    finally:
        torch.set_num_threads(threads)


def _measured(config: RunConfig, device: torch.device) -> Cost:
    batch = config.train.batch_size
    side, count = config.augment.image_size, batch * _STEPS
    pixels = np.random.default_rng(0).integers(
        0, 255, (count, side, side, config.data.channels), dtype=np.uint8
    )
    alone = {
        "resources.workers": 0,
        "train.epochs": 2,
        "optimizer.warmup_epochs": 0,
        "loss.queue_size": min(config.loss.queue_size, count),
        "data.source": "arrays",
        "e_step.num_clusters": 2,
        "loss.negative_prototypes": "all",
        "e_step.mode": "auto",
        "e_step.shards": 0,
        "e_step.overlap": False,
        "e_step.switch_step": None,
    }
    config = with_overrides(config, alone)
    images, plan = ArrayImages(pixels), plans.make(config, count, 0)
    learner = build_learner(config, device)
    loader = TrainingLoader(images, config, device=device)
    seconds = []
    for epoch in range(2):  # the first warms up
        begun = time.perf_counter()
        run_epoch(learner, loader.epoch(epoch), None, config, plan, epoch)
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    with precision(config, device):
        extract_features(
            learner.pair.key,
            (
                (views_for(learner, views), ids)
                for views, ids in EvaluationLoader(images, config, device=device)
            ),
            device,
        )
    return Cost(min(seconds) / count, (time.perf_counter() - begun) / count)
