"""The EM loop as one worker runs it; the same code in Ray Train workers and, with `resources.workers: 0`, in one process.

latest checkpoint or fresh learner
  └→ for each epoch:  M-step ─→ features of all images (a pass, or the bank) ─→ E-step: clusters for the next epoch, figures
                        └─────────── checkpoint (rank 0, atomic) ←───────────────┘   → epoch event

With `e_step.overlap` the E-step goes on while the next epoch trains with the earlier clusters; all workers change over before the same step of that
epoch, at its end at the latest. The checkpoint then holds the earlier clusters, and going on from it begins with the same E-step again.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray import checkpoint
from pcl_ray.checkpoint import EStepState, RunState
from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import Batch, EvaluationLoader, TrainingLoader
from pcl_ray.e_step import extract_features
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import EpochMetrics, Learner, build_learner, run_epoch
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.gather import all_gather, average_buffers, rank, world_size
from pcl_ray.plan import RunPlan
from pcl_ray.service.actor import EStepActor, EStepAnswer
from pcl_ray.service.events import Event, Post
from pcl_ray.service.shards import EStepRequest

_ALIVE_EVERY_S = 0.5
_POLL_STEPS = 8  # with overlap: steps between two looks whether the E-step is done


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


class Pending(Protocol):
    """An E-step under way."""

    def ready(self) -> bool:
        """Whether it is done; the same on all workers, who all have to ask."""
        ...

    def wait(self) -> EStepAnswer:
        """The answer, the same for every worker. Raises RunFailed, on all workers, where there is none."""
        ...


class EStep(Protocol):
    """Where clusters come from: hands this worker's shards over, and does not wait."""

    def begin(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None) -> Pending: ...


@dataclass
class _Progress:
    """Where the run is: between two epochs, exactly what a checkpoint keeps beside the learner."""

    epoch: int  # the next to train
    clusters: ClusterSet | None
    history: list[dict[str, Any]]
    e_step: EStepState = EStepState()


def train(job: Job, splits: DataSplits, *, device: torch.device, e_step: EStep, share: Share, post: Post) -> None:
    """Trains what is left of the run. `post` is called on rank 0 only.

    Raises RunFailed on all workers alike: loss not finite, features that cannot be clustered, checkpoint that cannot be written or read.
    """
    config, plan = job.config, job.plan
    tell: Post = post if rank() == 0 else lambda event: None
    attempt = share(uuid.uuid4().hex)
    learner = build_learner(config, device)
    progress = _restore(job, learner, splits, share)
    batches = TrainingLoader(splits.train, config, rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda")
    between = _Between(attempt, learner, _FeaturePass(splits, config, device), progress, job, e_step, tell)
    tell(Event("start", progress.epoch, progress.epoch * plan.steps_per_epoch))

    # Without warm-up, where a run that ended in its warm-up is made longer, and with overlap, the first epoch's clusters are still to be made.
    if progress.epoch < plan.epochs and plan.clusters_before(progress.epoch) and progress.e_step.concluded != progress.epoch:
        between.begin(progress.epoch, evaluate=config.e_step.overlap and plan.evaluates_after(progress.epoch - 1))
    for epoch in range(progress.epoch, plan.epochs):
        start = time.perf_counter()
        current = progress.clusters if epoch >= plan.warmup_epochs and progress.e_step.usable else None
        steps = _telling(batches.epoch(epoch), epoch, plan, tell)
        trained = run_epoch(learner, steps, current, config, plan, epoch, on_progress=_step_events(epoch, plan, tell), switch=between.switch)
        between.finish()
        average_buffers(learner.pair)
        metrics = _training_metrics(trained, epoch, plan)
        progress.epoch = epoch + 1
        progress.history.append({"epoch": epoch, "step": trained.last_step, "metrics": metrics})
        between.begin(epoch + 1, plan.evaluates_after(epoch))
        metrics |= between.figures()
        metrics["perf/epoch_seconds"] = time.perf_counter() - start
        if progress.epoch == plan.epochs or progress.epoch % config.train.checkpoint_every_epochs == 0:
            _save(job, learner, progress, share)
        tell(Event("epoch", epoch, trained.last_step, metrics))


class LocalEStep:
    """The E-step in this process: the actor's class without the actor. With `e_step.overlap` in a thread, since clustering leaves Python's lock alone."""

    def __init__(self, config: RunConfig, splits: DataSplits):
        self._actor = EStepActor(config)
        self._overlap = config.e_step.overlap
        self._labels = splits.train.labels
        self._holdout_labels = splits.holdout.labels if splits.holdout is not None else None

    def begin(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None) -> Pending:
        for part, shard in shards.items():
            self._actor.push(key, part, shard.indices, shard.features, request.num_images if part == "train" else request.num_holdout)
        found: Future[EStepAnswer] = Future()

        def run() -> None:
            try:
                found.set_result(self._actor.run(key, request, previous, self._labels, self._holdout_labels))
            except BaseException as error:  # carried to whoever waits
                found.set_exception(error)

        if self._overlap:
            threading.Thread(target=run, name="e-step", daemon=True).start()
        else:
            run()
        return _InThread(found)


@dataclass(frozen=True)
class _InThread:
    found: Future[EStepAnswer]

    def ready(self) -> bool:
        return self.found.done()

    def wait(self) -> EStepAnswer:
        return self.found.result()


class _FeaturePass:
    """Momentum features of this worker's part of the images. Loaders are made once: their processes stay for all epochs."""

    def __init__(self, splits: DataSplits, config: RunConfig, device: torch.device):
        place = {"rank": rank(), "world_size": world_size(), "pin_memory": device.type == "cuda"}
        self.num_images, self.num_holdout, self._device = len(splits.train), splits.num_holdout, device
        self._dtype = np.dtype(config.e_step.feature_dtype)
        self._train = EvaluationLoader(splits.train, config, **place)
        self._holdout = EvaluationLoader(splits.holdout, config, **place) if splits.holdout is not None else None

    def train(self, learner: Learner) -> FeatureShard:
        return self._features(learner, self._train)

    def holdout(self, learner: Learner) -> FeatureShard | None:
        return self._features(learner, self._holdout) if self._holdout is not None else None

    def _features(self, learner: Learner, loader: EvaluationLoader) -> FeatureShard:
        shard = extract_features(learner.pair.key, loader, self._device)
        return FeatureShard(shard.indices, shard.features.astype(self._dtype, copy=False))


class _Between:
    """What happens between two epochs: new clusters for the next, figures of the last, where the plan asks for either.

    Without overlap all of it happens in `begin`. With it, `switch` and `finish` bring the answer in during the next epoch.
    """

    def __init__(self, attempt: str, learner: Learner, features: _FeaturePass, progress: _Progress, job: Job, e_step: EStep, tell: Post):
        self._attempt, self._learner, self._features, self._progress, self._job = attempt, learner, features, progress, job
        self._e_step, self._tell = e_step, tell
        self._pending: Pending | None = None
        self._epoch, self._clustering = 0, False
        self._noted: dict[str, float] = {}

    def begin(self, epoch: int, evaluate: bool) -> None:
        """Features of the encoder as it is now, and the E-step before `epoch`; waits for it unless it may overlap with that epoch."""
        plan, config, progress = self._job.plan, self._job.config.e_step, self._progress
        self._epoch, self._clustering = epoch, plan.clusters_before(epoch)
        if not self._clustering and not evaluate:
            return
        self._tell(Event("phase", epoch, text="features"))
        start = time.perf_counter()
        shards = self._shards(epoch, evaluate)
        self._note({"perf/feature_seconds": time.perf_counter() - start})
        self._tell(Event("phase", epoch, text="clustering" if self._clustering else "evaluation"))
        step = epoch * plan.steps_per_epoch - 1 if epoch else None
        request = EStepRequest(epoch, self._clustering, evaluate, world_size(), self._features.num_images, self._features.num_holdout, step)
        self._pending = self._e_step.begin(f"{self._attempt}/{epoch}", request, shards, progress.clusters)
        # With no clusters to train with meanwhile, and after the last epoch, there is nothing to overlap with.
        if not (config.overlap and progress.clusters is not None and progress.e_step.usable and epoch < plan.epochs):
            self._note(self._take(start))
        elif self._clustering:
            self._note({"perf/e_step_seconds": time.perf_counter() - start})

    def _shards(self, epoch: int, evaluate: bool) -> dict[str, FeatureShard]:
        learner, settings = self._learner, self._job.config.e_step
        banked = settings.features == "bank" and self._clustering
        if banked and learner.bank is not None and not self._job.plan.takes_fresh_features(epoch, settings.fresh_every):
            train = learner.bank.shard()
        else:
            train = self._features.train(learner)
            if banked:
                learner.bank = FeatureBank.of(train, settings.bank_momentum, learner.device)
        holdout = self._features.holdout(learner) if evaluate else None
        return {"train": train} | ({"holdout": holdout} if holdout is not None else {})

    def switch(self, step_in_epoch: int) -> ClusterSet | None:
        """With overlap: the new clusters, before the step at which all workers change over to them."""
        if self._pending is None:
            return None
        fixed = self._job.config.e_step.switch_step
        if step_in_epoch == fixed if fixed is not None else step_in_epoch % _POLL_STEPS == 0 and self._pending.ready():
            return self.finish()
        return None

    def finish(self) -> ClusterSet | None:
        """Waits for what is still under way; gives back new clusters, if it brings any. The figures belong to the epoch whose encoder made the features."""
        if self._pending is None:
            return None
        before, last = self._progress.clusters, self._progress.history[-1]
        start = time.perf_counter()
        figures = self._take(start)
        self._note({"perf/e_step_seconds": figures.pop("perf/e_step_seconds", 0.0)})  # waited for in this epoch
        last["metrics"] |= figures
        self._tell(Event("figures", last["epoch"], last["step"], figures))
        return self._progress.clusters if self._progress.clusters is not before else None

    def figures(self) -> dict[str, float]:
        """Of everything since the last call: what was measured, seconds in features, and in E-steps that training waited for."""
        taken, self._noted = self._noted, {}
        return taken

    def _take(self, start: float) -> dict[str, float]:
        """Waits for the answer, and makes it what the next epoch trains with."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        answer, progress = pending.wait(), self._progress
        if answer.outcome == "refused" or answer.missing:
            raise RunFailed(f"the E-step {answer.refused}" if answer.refused else f"the E-step lacks {answer.missing}")
        for text in answer.warnings:
            self._tell(Event("warning", self._epoch, text=f"the E-step {text}"))
        if answer.refused:
            self._keep(answer)
        elif answer.clusters is not None:
            progress.clusters, progress.e_step = answer.clusters, EStepState(concluded=self._epoch)
        waited = time.perf_counter() - start - answer.metrics.get("perf/evaluation_seconds", 0.0)
        of_clustering = {"perf/e_step_seconds": waited, "cluster/failures": float(progress.e_step.failures)}
        return answer.metrics | (of_clustering if self._clustering else {})

    def _keep(self, answer: EStepAnswer) -> None:
        progress, limit = self._progress, self._job.config.e_step.patience
        failures = progress.e_step.failures + 1
        usable = answer.outcome == "rejected" and progress.clusters is not None
        progress.e_step = EStepState(usable, failures, self._epoch)
        if failures >= limit and self._epoch < self._job.plan.epochs:
            raise RunFailed(f"the E-step {answer.refused}. That was the {_ordinal(failures)} time in a row (e_step.patience = {limit})")
        instead = "the last good clustering stays in force" if usable else "the next epoch trains on InfoNCE alone"
        self._tell(Event("warning", self._epoch, text=f"the E-step {answer.refused}. Meanwhile {instead} ({failures} of {limit} times in a row)"))

    def _note(self, figures: dict[str, float]) -> None:
        """Seconds add up: the first epoch of a run may have an E-step before it and one after."""
        summed = {
            name: self._noted[name] + value
            for name, value in figures.items()
            if name in ("perf/e_step_seconds", "perf/feature_seconds") and name in self._noted
        }
        self._noted |= figures | summed


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


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


def _restore(job: Job, learner: Learner, splits: DataSplits, share: Share) -> _Progress:
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
    if state.e_step.bank is not None:
        mine = np.array_split(np.arange(len(splits.train)), world_size())[rank()]
        rows = state.e_step.bank[torch.from_numpy(mine)].to(learner.device)
        learner.bank = FeatureBank(int(mine[0]) if len(mine) else 0, rows, job.config.e_step.bank_momentum)
    return _Progress(state.epoch, state.clusters, state.history, replace(state.e_step, bank=None))


def _save(job: Job, learner: Learner, progress: _Progress, share: Share) -> None:
    """Rank 0 writes, all learn whether it worked."""
    states = list(all_gather(_random_state(learner.device)[None].to(learner.device)).cpu())
    problem = None
    bank = _whole_bank(learner)
    if rank() == 0:
        encoder, channels = job.config.encoder, job.config.data.channels
        e_step = replace(progress.e_step, bank=bank)
        state = RunState(progress.epoch, learner.state_dict(), progress.clusters, states, progress.history, encoder, channels, e_step)
        try:
            checkpoint.save(state, job.checkpoints, job.config.train.keep_checkpoints)
        except RunFailed as error:
            problem = str(error)
    if problem := share(problem):
        raise RunFailed(problem)


def _whole_bank(learner: Learner) -> Tensor | None:
    """[N, C] on the CPU, from all workers' parts, which follow each other in rank order."""
    if learner.bank is None:
        return None
    group = TorchGroup(device=learner.device) if world_size() > 1 else Group()
    return group.gather(learner.bank.rows).cpu()


def _random_state(device: torch.device) -> Tensor:
    """Torch's generators of this process as bytes: the CPU's, followed by the device's where it is a GPU."""
    parts = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(parts)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
