"""The EM loop as one worker runs it; the same code in Ray Train workers and, with `resources.workers: 0`, in
one process.

latest checkpoint or fresh learner (a first look at it)
  └→ for each epoch:  M-step ─→ features of all images (a pass, or the bank) ─→ E-step: clusters for the
                        │                                                         │     next epoch, figures
                        └─────────── checkpoint (rank 0, atomic) ←────────────────┘     → epoch event

With `e_step.overlap` the E-step goes on while the next epoch trains with the earlier clusters; all workers
change over before the same step of that epoch, at its end at the latest. The checkpoint then holds the
earlier clusters, and going on from it begins with the same E-step again.

The warm-up can be left to other runs: the state before the first E-step, a checkpoint that owes the E-step
and the figures of its last epoch.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pcl_ray.checkpoints.run_state import EStepState
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import Batch, TrainingLoader
from pcl_ray.data.reading import Readers
from pcl_ray.m_step import EpochMetrics, build_learner, run_epoch
from pcl_ray.model.distributed import average_buffers, rank, world_size
from pcl_ray.plan import RunPlan
from pcl_ray.training import worker_checkpoints
from pcl_ray.training.e_step_schedule import Between, EStep, FeaturePass, Progress
from pcl_ray.training.events import Event, Post
from pcl_ray.training.first_look import first_exhibit, rows_of_views
from pcl_ray.training.input_stall import WaitingForData
from pcl_ray.training.training_task import Job as Job
from pcl_ray.training.worker_checkpoints import Share

_ALIVE_EVERY_S = 2.0


def train(
    job: Job, splits: DataSplits, *, device: torch.device, e_step: EStep, share: Share, post: Post
) -> None:
    """Trains what is left of the run. `post` is called on rank 0 only, but for a warning of whoever cannot
    read the checkpoint.

    Raises RunFailed on all workers alike: loss not finite, features that cannot be clustered, checkpoint that
    cannot be written or read.
    """
    for _ in epochs(job, splits, device=device, e_step=e_step, share=share, post=post):
        pass


def epochs(
    job: Job, splits: DataSplits, *, device: torch.device, e_step: EStep, share: Share, post: Post
) -> Iterator[int]:
    """`train`, epoch by epoch: gives back how many are done, after the checkpoint of each and its event."""
    config, plan = job.config, job.plan
    tell: Post = post if rank() == 0 else lambda event: None
    attempt = share(uuid.uuid4().hex)
    learner = build_learner(config, device, warn=lambda text: tell(Event("warning", 0, text=text)))
    progress = worker_checkpoints.restore(job, learner, splits, share, post)
    readers = Readers(config, device, plan.loader_workers)
    batches = TrainingLoader(
        splits.train, config, rank=rank(), world_size=world_size(), device=device, readers=readers
    )
    features = FeaturePass(splits, config, device, readers)
    between = Between(attempt, learner, features, progress, config, plan, e_step, tell)
    watch = WaitingForData(config, plan, device, plan.epochs - progress.epoch)
    tell(Event("start", progress.epoch, progress.epoch * plan.steps_per_epoch))

    if job.look and progress.epoch == 0 and rank() == 0:
        _show(
            tell,
            lambda: Event(
                "exhibit", exhibit=first_exhibit(features, learner, splits.train.labels, config, plan)
            ),
        )
        _show(tell, partial(_views_event, batches, -1, 0, splits, config))
    start = time.perf_counter()  # an E-step before the first epoch counts to it
    if progress.e_step.owed:
        _make_up(between, progress, plan, tell)
    elif progress.e_step.anew:
        between.begin(progress.epoch, evaluate=False, anew=True)
    # Without warm-up, where a run that ended in its warm-up is made longer, and with overlap, the first
    # epoch's clusters are still to be made.
    elif (
        progress.epoch < plan.epochs
        and plan.clusters_before(progress.epoch)
        and progress.e_step.concluded != progress.epoch
    ):
        between.begin(
            progress.epoch, evaluate=config.e_step.overlap and plan.evaluates_after(progress.epoch - 1)
        )
    first = progress.epoch
    for epoch in range(first, plan.epochs):
        current = progress.clusters if epoch >= plan.warmup_epochs and progress.e_step.usable else None
        steps = _telling(batches.epoch(epoch), epoch, plan, tell)
        trained = run_epoch(
            learner,
            steps,
            current,
            config,
            plan,
            epoch,
            on_progress=_step_events(epoch, plan, tell),
            switch=between.switch,
        )
        between.finish()
        average_buffers(learner.pair)
        metrics = _training_metrics(trained, epoch, plan)
        progress.epoch = epoch + 1
        progress.history.append({"epoch": epoch, "step": trained.last_step, "metrics": metrics})
        if job.leave_warmup is not None and progress.epoch == plan.warmup_epochs:
            metrics["perf/epoch_seconds"] = time.perf_counter() - start
            worker_checkpoints.save(
                job, learner, replace(progress, e_step=EStepState(owed=True)), share, Path(job.leave_warmup)
            )
        between.begin(epoch + 1, plan.evaluates_after(epoch))
        metrics |= between.figures()
        metrics["perf/epoch_seconds"] = time.perf_counter() - start
        spent = sum(entry["metrics"].get("perf/epoch_seconds", 0.0) for entry in progress.history)
        metrics["perf/device_minutes"] = plan.devices * spent / 60
        metrics["perf/e_step_share"] = metrics.get("perf/e_step_seconds", 0.0) / metrics["perf/epoch_seconds"]
        if said := watch.said_after(epoch - first, metrics["perf/data_share"]):
            tell(Event("warning", epoch, text=said))
        if progress.epoch == plan.epochs or progress.epoch % config.train.checkpoint_every_epochs == 0:
            worker_checkpoints.save(job, learner, progress, share, job.checkpoints)
        tell(Event("epoch", epoch, trained.last_step, metrics))
        if config.tracking.enabled and plan.shows_after(epoch) and rank() == 0:
            _show(tell, partial(_views_event, batches, epoch, trained.last_step, splits, config))
        yield progress.epoch
        start = time.perf_counter()


def _show(tell: Post, make: Callable[[], Event]) -> None:
    """A picture less is no reason to lose a run: other workers would wait for this one."""
    try:
        tell(make())
    except Exception as error:
        tell(
            Event(
                "warning",
                text=f"something could not be shown ({type(error).__name__}: {error}); training goes on",
            )
        )


def _views_event(
    batches: TrainingLoader, epoch: int, step: int, splits: DataSplits, config: RunConfig
) -> Event:
    """Both views of a few images in this epoch (−1: in the first, before it), as the network sees them but
    for the normalisation.
    """
    (batch,) = batches.views(max(epoch, 0), [rows_of_views(len(splits.train))])
    both = torch.stack([batch.query_views, batch.key_views], dim=1).float().cpu()
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.augment.mean, config.augment.std))
    pixels = ((both * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
    return Event("views", epoch + 1, step, views=pixels.numpy())


def _make_up(between: Between, progress: Progress, plan: RunPlan, tell: Post) -> None:
    """The E-step and the evaluation that the state of another run's warm-up still owes; the figures belong to
    its last epoch.
    """
    last = progress.history[-1]
    begun = time.perf_counter()
    between.begin(progress.epoch, plan.evaluates_after(progress.epoch - 1))
    last["metrics"] |= between.figures()
    last["metrics"]["perf/owed_seconds"] = time.perf_counter() - begun
    progress.e_step = replace(progress.e_step, owed=False)
    tell(Event("figures", last["epoch"], last["step"], last["metrics"]))


def _training_metrics(trained: EpochMetrics, epoch: int, plan: RunPlan) -> dict[str, float]:
    return trained.values | {
        "epoch": float(epoch),
        "train/lr": plan.lr_at(trained.last_step),
        "perf/images_per_second": trained.images / trained.seconds,
        "perf/m_step_seconds": trained.seconds,
        "perf/data_seconds": trained.data_seconds,
        "perf/data_share": trained.data_seconds / trained.seconds,
        "perf/step_seconds_median": trained.step_median,
        "perf/step_seconds_p95": trained.step_p95,
        "perf/memory_gb": trained.memory_gb,
    }


def _step_events(epoch: int, plan: RunPlan, tell: Post) -> Callable[[int, dict[str, float]], None]:
    start, first = time.perf_counter(), epoch * plan.steps_per_epoch

    def on_progress(step: int, means: dict[str, float]) -> None:
        if (step + 1) % plan.steps_per_epoch == 0:
            return  # a step has one point: that of the last is the mean of the epoch, which follows
        rate = (step + 1 - first) * plan.global_batch / (time.perf_counter() - start)
        tell(
            Event("step", epoch, step, means | {"perf/images_per_second": rate, "train/lr": plan.lr_at(step)})
        )

    return on_progress


def _telling(batches: Iterator[Batch], epoch: int, plan: RunPlan, tell: Post) -> Iterator[Batch]:
    """The batches, with a sign of life now and then."""
    told = 0.0
    for step, batch in enumerate(batches, start=epoch * plan.steps_per_epoch):
        if time.monotonic() - told > _ALIVE_EVERY_S:
            tell(Event("alive", epoch, step))
            told = time.monotonic()
        yield batch
