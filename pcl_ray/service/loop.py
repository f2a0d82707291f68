"""The EM loop as one worker runs it; the same code in Ray Train workers and, with `resources.workers: 0`, in one process.

latest checkpoint or fresh learner
  └→ for each epoch:  M-step ─→ features of all images (momentum encoder, evaluation view) ─→ E-step: clusters for the next epoch, figures
                        └─────────── checkpoint (rank 0, atomic) ←──────────────────────────────┘   → epoch event
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pcl_ray import checkpoint
from pcl_ray.checkpoint import RunState
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import Batch, EvaluationLoader, TrainingLoader
from pcl_ray.e_step import extract_features
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import EpochMetrics, Learner, build_learner, run_epoch
from pcl_ray.model.gather import all_gather, average_buffers, rank, world_size
from pcl_ray.plan import RunPlan
from pcl_ray.service.actor import EStepActor, EStepAnswer, EStepRequest
from pcl_ray.service.events import Event, Post

_ALIVE_EVERY_S = 0.5


class Share(Protocol):
    """Gives every worker rank 0's value."""

    def __call__(self, value: Any, /) -> Any: ...


@dataclass(frozen=True)
class Job:
    config: RunConfig
    plan: RunPlan
    run_dir: str

    @property
    def checkpoints(self) -> Path:
        return Path(self.run_dir, "checkpoints")


class EStep(Protocol):
    """Hands this worker's shards over and gives every worker the same answer. Raises RunFailed, on all workers, where there is none."""

    def __call__(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None) -> EStepAnswer: ...


@dataclass
class _Progress:
    """Where the run is: between two epochs, exactly what a checkpoint keeps beside the learner."""

    epoch: int  # the next to train
    clusters: ClusterSet | None
    history: list[dict[str, Any]]


def train(job: Job, splits: DataSplits, *, device: torch.device, e_step: EStep, share: Share, post: Post) -> None:
    """Trains what is left of the run. `post` is called on rank 0 only.

    Raises RunFailed on all workers alike: loss not finite, features that cannot be clustered, checkpoint that cannot be written or read.
    """
    config, plan = job.config, job.plan
    tell: Post = post if rank() == 0 else lambda event: None
    attempt = share(uuid.uuid4().hex)
    learner = build_learner(config, device)
    progress = _restore(job, learner, share)
    batches = TrainingLoader(splits.train, config, rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda")
    features = _FeaturePass(splits, config, device)
    tell(Event("start", progress.epoch, progress.epoch * plan.steps_per_epoch))

    def between(epoch: int, evaluate: bool) -> dict[str, float]:
        return _between_epochs(f"{attempt}/{epoch}", epoch, evaluate, learner, features, progress, plan, e_step, tell)

    # Without warm-up, or where a run that ended in its warm-up is made longer, the first epoch's clusters are still to be made.
    initial: dict[str, float] = {}
    if progress.epoch < plan.epochs and plan.clusters_before(progress.epoch) and not _fresh(progress.clusters, progress.epoch):
        initial = between(progress.epoch, evaluate=False)
    for epoch in range(progress.epoch, plan.epochs):
        start = time.perf_counter()
        current = progress.clusters if epoch >= plan.warmup_epochs else None
        trained = run_epoch(
            learner, _telling(batches.epoch(epoch), epoch, plan, tell), current, config, plan, epoch, on_progress=_step_events(epoch, plan, tell)
        )
        average_buffers(learner.pair)
        metrics = _training_metrics(trained, epoch, plan) | between(epoch + 1, plan.evaluates_after(epoch))
        metrics["perf/epoch_seconds"] = time.perf_counter() - start
        for name in ("perf/e_step_seconds", "perf/feature_seconds") if initial else ():
            metrics[name] = metrics.get(name, 0.0) + initial[name]
        initial = {}
        progress.epoch = epoch + 1
        progress.history.append({"epoch": epoch, "step": trained.last_step, "metrics": metrics})
        if progress.epoch == plan.epochs or progress.epoch % config.train.checkpoint_every_epochs == 0:
            _save(job, learner, progress, share)
        tell(Event("epoch", epoch, trained.last_step, metrics))


def _fresh(clusters: ClusterSet | None, epoch: int) -> bool:
    return clusters is not None and clusters.epoch == epoch


class LocalEStep:
    """The E-step in this process: the actor's class without the actor."""

    def __init__(self, config: RunConfig, splits: DataSplits):
        self._actor = EStepActor(config)
        self._labels = splits.train.labels
        self._holdout_labels = splits.holdout.labels if splits.holdout is not None else None

    def __call__(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None) -> EStepAnswer:
        for part, shard in shards.items():
            self._actor.push(key, part, shard.indices, shard.features)
        return self._actor.run(key, request, previous, self._labels, self._holdout_labels)


class _FeaturePass:
    """Momentum features of this worker's part of the images. Loaders are made once: their processes stay for all epochs."""

    def __init__(self, splits: DataSplits, config: RunConfig, device: torch.device):
        place = {"rank": rank(), "world_size": world_size(), "pin_memory": device.type == "cuda"}
        self.num_images, self.num_holdout, self._device = len(splits.train), splits.num_holdout, device
        self._train = EvaluationLoader(splits.train, config, **place)
        self._holdout = EvaluationLoader(splits.holdout, config, **place) if splits.holdout is not None else None

    def __call__(self, learner: Learner, *, holdout: bool) -> dict[str, FeatureShard]:
        shards = {"train": extract_features(learner.pair.key, self._train, self._device)}
        if holdout and self._holdout is not None:
            shards["holdout"] = extract_features(learner.pair.key, self._holdout, self._device)
        return shards


def _between_epochs(
    key: str,
    epoch: int,
    evaluate: bool,
    learner: Learner,
    features: _FeaturePass,
    progress: _Progress,
    plan: RunPlan,
    e_step: EStep,
    tell: Post,
) -> dict[str, float]:
    """New clusters for `epoch` and figures of the epoch before, where the plan asks for either. Sets `progress.clusters`."""
    clustering = plan.clusters_before(epoch)
    if not clustering and not evaluate:
        return {}
    tell(Event("phase", epoch, text="features"))
    start = time.perf_counter()
    shards = features(learner, holdout=evaluate)
    seconds = time.perf_counter() - start
    tell(Event("phase", epoch, text="clustering" if clustering else "evaluation"))
    request = EStepRequest(epoch, clustering, evaluate, world_size(), features.num_images, features.num_holdout)
    answer = e_step(key, request, shards, progress.clusters)
    if answer.refused or answer.missing:
        raise RunFailed(f"the E-step {answer.refused}" if answer.refused else f"the E-step lacks {answer.missing}")
    if answer.clusters is not None:
        progress.clusters = answer.clusters
    whole = time.perf_counter() - start - answer.metrics.get("perf/evaluation_seconds", 0.0)
    timings = {"perf/feature_seconds": seconds} | ({"perf/e_step_seconds": whole} if clustering else {})
    return answer.metrics | timings


def _training_metrics(trained: EpochMetrics, epoch: int, plan: RunPlan) -> dict[str, float]:
    return trained.values | {
        "epoch": float(epoch),
        "train/lr": plan.lr_at(trained.last_step),
        "perf/images_per_second": trained.images / trained.seconds,
        "perf/m_step_seconds": trained.seconds,
        "perf/data_seconds": trained.data_seconds,
    }


def _step_events(epoch: int, plan: RunPlan, tell: Post) -> Callable[[int, dict[str, float]], None]:
    start, first = time.perf_counter(), epoch * plan.steps_per_epoch

    def on_progress(step: int, means: dict[str, float]) -> None:
        if (step + 1) % plan.steps_per_epoch == 0:
            return  # a step has one point: that of the last is the mean of the epoch, which follows
        rate = (step + 1 - first) * plan.global_batch / (time.perf_counter() - start)
        tell(Event("step", epoch, step, means | {"perf/images_per_second": rate, "train/lr": plan.lr_at(step)}))

    return on_progress


def _telling(batches: Iterator[Batch], epoch: int, plan: RunPlan, tell: Post) -> Iterator[Batch]:
    """The batches, with a sign of life now and then."""
    told = 0.0
    for step, batch in enumerate(batches, start=epoch * plan.steps_per_epoch):
        if time.monotonic() - told > _ALIVE_EVERY_S:
            tell(Event("alive", epoch, step))
            told = time.monotonic()
        yield batch


def _restore(job: Job, learner: Learner, share: Share) -> _Progress:
    """The newest checkpoint's state, or that of a fresh run. Rank 0 chooses the file for all."""
    torch.manual_seed(job.config.seed + 7919 * (rank() + 1))  # dropout and the like: another stream on each worker
    newest = checkpoint.latest(job.checkpoints)
    name = share(newest.name if newest else None)
    if name is None:
        return _Progress(0, None, [])
    path = job.checkpoints / name
    if not path.is_file():
        raise RunFailed(f"worker {rank()} does not see {path}: PCL_RAY_HOME must lie on storage that all nodes share")
    state = checkpoint.load(path)
    learner.load_state_dict(state.learner)
    if len(state.random_states) == world_size():
        _set_random_state(state.random_states[rank()], learner.device)
    return _Progress(state.epoch, state.clusters, state.history)


def _save(job: Job, learner: Learner, progress: _Progress, share: Share) -> None:
    """Rank 0 writes, all learn whether it worked."""
    states = list(all_gather(_random_state(learner.device)[None].to(learner.device)).cpu())
    problem = None
    if rank() == 0:
        encoder, channels = job.config.encoder, job.config.data.channels
        state = RunState(progress.epoch, learner.state_dict(), progress.clusters, states, progress.history, encoder, channels)
        try:
            checkpoint.save(state, job.checkpoints, job.config.train.keep_checkpoints)
        except RunFailed as error:
            problem = str(error)
    if problem := share(problem):
        raise RunFailed(problem)


def _random_state(device: torch.device) -> Tensor:
    """Torch's generators of this process as bytes: the CPU's, followed by the device's where it is a GPU."""
    parts = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(parts)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
