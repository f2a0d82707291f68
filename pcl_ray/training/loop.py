"""The EM loop as one worker runs it: the same code in Ray Train workers and with `resources.workers: 0`.

latest checkpoint or fresh learner (a first look at it)
  └→ for each epoch:  M-step ─→ features of all images (a pass, or the bank) ─→ E-step: clusters for the
                        │                                                         │     next epoch, figures
                        └─────────── checkpoint (rank 0, atomic) ←────────────────┘     → epoch event

A checkpoint is copied, then written beside the next epoch; its epoch's event waits until it is safe.

With `e_step.overlap` the E-step goes on while the next epoch trains with the earlier clusters; all workers
change over before the same step of that epoch, at its end at the latest. The checkpoint then holds the
earlier clusters, and going on from it begins with the same E-step again.

The warm-up can be left to other runs: a checkpoint before the first E-step owes that and its epoch's figures.

A checkpoint within an epoch (`train.checkpoint_every_steps`, `_minutes`) has the part of it that is trained;
it waits for an E-step that overlaps. Where loss or weights are not finite, `train.on_divergence=roll_back`
starts all of this again from the newest checkpoint, with a smaller learning rate.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from pcl_ray.checkpoints.background import BackgroundWriter
from pcl_ray.checkpoints.run_state import EpochPart, EStepState
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import (
    DATA_SECONDS,
    DATA_SHARE,
    DEVICE_MINUTES,
    E_STEP_SECONDS,
    E_STEP_SHARE,
    EPOCH,
    EPOCH_SECONDS,
    IMAGES_PER_SECOND,
    LEARNING_RATE,
    M_STEP_SECONDS,
    MEMORY_GB,
    OWED_SECONDS,
    STEP_SECONDS_MEDIAN,
    STEP_SECONDS_P95,
)
from pcl_ray.config.final_figures import FINAL_SECONDS
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import Batch, TrainingLoader
from pcl_ray.data.reading import Readers
from pcl_ray.errors import NotFinite
from pcl_ray.m_step import EpochCourse, EpochMetrics, Learner, build_learner, run_epoch
from pcl_ray.meters import EpochTally
from pcl_ray.model.distributed import average_buffers, rank, world_size
from pcl_ray.model.divergence import Rollbacks, stop_if_weights_are_not_finite
from pcl_ray.plan import RunPlan
from pcl_ray.support.worker_positions import Mark, mark_nothing
from pcl_ray.training import worker_checkpoints
from pcl_ray.training.e_step_schedule import EStep, EStepOutput, EStepSchedule
from pcl_ray.training.events import Event, OnceSafe, Post, post_nothing, show, step_events
from pcl_ray.training.feature_pass import FeaturePass
from pcl_ray.training.first_look import reference_lines, references_in, untrained_snapshot, views_event
from pcl_ray.training.input_stall import InputStall
from pcl_ray.training.training_task import TrainingTask
from pcl_ray.training.worker_checkpoints import Broadcast, CheckpointCadence, EpochRecord, Progress

_ALIVE_EVERY_S = 2.0


def train(
    task: TrainingTask,
    splits: DataSplits,
    *,
    device: torch.device,
    e_step: EStep,
    broadcast: Broadcast,
    post: Post,
    mark: Mark = mark_nothing,
    pauses: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains what is left of the run, or until it `pauses`: which is asked on every worker after the epochs
    that end with a checkpoint. Gives back whether the run has ended. `post` is called on rank 0 only, but for
    a warning of whoever cannot read the checkpoint; `mark` on every worker, with what it does now.

    Raises RunFailed on all workers alike: loss not finite, features that cannot be clustered, checkpoint that
    cannot be written or read.
    """
    writer = BackgroundWriter()
    start = _Start(task, splits, device, e_step, broadcast, post, mark, writer=writer)
    every, last = task.config.train.checkpoint_every_epochs, task.plan.epochs
    try:
        for done in _from_newest_checkpoint(start):
            if done < last and done % every == 0 and pauses():
                worker_checkpoints.settle(writer, broadcast)
                start.post_once.release()
                return False
        return True
    finally:
        with suppress(Exception):  # what ends the training is told, else `settle` has told of it
            writer.wait()


def epochs(
    task: TrainingTask,
    splits: DataSplits,
    *,
    device: torch.device,
    e_step: EStep,
    broadcast: Broadcast,
    post: Post,
    mark: Mark = mark_nothing,
) -> Iterator[int]:
    """`train`, epoch by epoch: gives back how many are done, after the checkpoint of each and its event."""
    return _from_newest_checkpoint(_Start(task, splits, device, e_step, broadcast, post, mark))


@dataclass(frozen=True, eq=False)
class _Start:
    """What `epochs` is given, for a start from the newest checkpoint. writer: of checkpoints beside the
    training; None: each is written before anything follows.
    """

    task: TrainingTask
    splits: DataSplits
    device: torch.device
    e_step: EStep
    broadcast: Broadcast
    post: Post
    mark: Mark
    writer: BackgroundWriter | None = None

    @cached_property
    def post_once(self) -> OnceSafe:
        """`post` on rank 0, in order; nothing on the others."""
        post = self.post if rank() == 0 else post_nothing
        return OnceSafe(post, lambda: self.writer is None or self.writer.is_safe)


def _from_newest_checkpoint(start: _Start) -> Iterator[int]:
    """`_epochs`, and again after a roll-back."""
    writer, post_once = start.writer, start.post_once
    rollbacks = Rollbacks(start.task.config.train)
    while True:
        failure = None
        try:
            yield from _epochs(start, rollbacks)
        except NotFinite as error:
            failure = error
        if writer is not None:
            worker_checkpoints.settle(writer, start.broadcast)
        post_once.release()
        if failure is None:
            return
        post_once(Event("warning", text=rollbacks.after(failure)))


def _epochs(start: _Start, rollbacks: Rollbacks) -> Iterator[int]:
    """`epochs` until loss or weights are not finite. Raises NotFinite, on all workers alike."""
    task, splits, broadcast, mark = start.task, start.splits, start.broadcast, start.mark
    post_once = start.post_once
    config, plan, device = task.config, task.plan, start.device
    attempt = broadcast(uuid.uuid4().hex)
    learner = build_learner(config, device, warn=lambda text: post_once(Event("warning", 0, text=text)))
    progress = worker_checkpoints.restore(task, learner, splits, broadcast, start.post)
    progress.rollbacks = rollbacks.count = max(progress.rollbacks, rollbacks.count)
    readers = Readers(config, device, plan.loader_workers)
    batches = TrainingLoader(
        splits.train, config, rank=rank(), world_size=world_size(), device=device, readers=readers
    )
    features = FeaturePass(splits, config, device, readers)
    schedule = EStepSchedule(attempt, learner, features, progress, config, plan, start.e_step, post_once)
    stall = InputStall(config, plan, device, plan.epochs - progress.epoch)
    cadence = CheckpointCadence(config.train, device)
    cadence.restart(progress.steps)
    steps_done = progress.epoch * plan.steps_per_epoch + progress.steps
    if not rollbacks.of_this_start:
        post_once(Event("start", progress.epoch, steps_done))
    references = config.evaluation.reference_lines and features.reference_sizes[0]
    if not steps_done and (task.first_look or references):
        post_once(Event("phase", text="evaluation"))  # large images and encoders take minutes
    if task.first_look and not steps_done and rank() == 0:
        labels = splits.train.labels
        show(
            post_once,
            lambda: Event("snapshot", snapshot=untrained_snapshot(features, learner, labels, config, plan)),
        )
        show(post_once, partial(views_event, batches, -1, 0, splits, config))
    first_figures: dict[str, float] = {}
    if config.evaluation.reference_lines and not steps_done:
        first_figures = reference_lines(attempt, features, learner, start.e_step)
    began = time.perf_counter()  # an E-step before the first epoch counts to it
    first = progress.epoch
    first_figures |= _before_first_epoch(schedule, progress, config, plan, post_once)
    for epoch in range(first, plan.epochs):
        record = EpochRecord(epoch, metrics=first_figures if epoch == first else {})
        first_step, part = progress.steps, progress.part
        progress.part = None
        if part is not None:
            record.metrics = dict(part.metrics)
            began -= part.seconds
        conclude = partial(_conclude_overlap, progress, record, post_once)
        save_part = partial(
            _save_part, start, learner, progress, record, schedule=schedule, cadence=cadence, began=began
        )
        course = EpochCourse(
            on_progress=step_events(epoch, first_step, plan, rollbacks.rate_scale, post_once),
            switch=lambda step, conclude=conclude: conclude(schedule.switch(step)),
            on_reading=save_part,
            begun=part.tally if part else None,
            rate_scale=rollbacks.rate_scale,
        )
        trained = run_epoch(
            learner,
            _with_signs_of_life(batches.epoch(epoch, first_step), epoch, first_step, plan, post_once, mark),
            progress.clusters if epoch >= plan.warmup_epochs and progress.e_step.usable else None,
            config,
            plan,
            epoch,
            course,
        )
        stop_if_weights_are_not_finite(learner, epoch, trained.last_step)
        mark("the features and the E-step", epoch, trained.last_step)
        conclude(schedule.finish())
        average_buffers(learner.pair)
        record.step = trained.last_step
        record.add(_training_metrics(trained, epoch, plan, rollbacks))
        progress.epoch = epoch + 1
        progress.history.append(record)
        if task.warmup_copy is not None and progress.epoch == plan.warmup_epochs:
            record.metrics[EPOCH_SECONDS.name] = time.perf_counter() - began
            owing = replace(progress, e_step=EStepState(owed=True))
            worker_checkpoints.save(task, learner, owing, broadcast, Path(task.warmup_copy))
        evaluates = plan.evaluates_after(epoch)
        if evaluates:  # again with each evaluation: in a chart they are lines
            record.add(references_in(progress.history))
        output = schedule.begin(epoch + 1, evaluate=evaluates)
        record.add(output.encoder_figures | output.epoch_figures)
        record.add(_epoch_times(progress, time.perf_counter() - began, plan))
        if advice := stall.advice_after(epoch - first, record.metrics[DATA_SHARE.name]):
            post_once(Event("warning", epoch, text=advice))
        mark("the checkpoint", epoch, record.step)
        if progress.epoch == plan.epochs or progress.epoch % config.train.checkpoint_every_epochs == 0:
            _save(start, learner, progress)
            cadence.restart()
        else:
            cadence.next_epoch()
        post_once(Event("epoch", epoch, record.step, dict(record.metrics)))
        if config.tracking.enabled and plan.shows_after(epoch) and rank() == 0:
            show(post_once, partial(views_event, batches, epoch, record.step, splits, config))
        yield progress.epoch
        began = time.perf_counter()


def _save(start: _Start, learner: Learner, progress: Progress) -> None:
    """Writes a checkpoint of the run, beside what follows where there is a writer. The one before it is safe
    by then, and what waited for it is posted.
    """
    if start.writer is not None:
        worker_checkpoints.settle(start.writer, start.broadcast)
        start.post_once.release()
    folder = start.task.checkpoints
    worker_checkpoints.save(start.task, learner, progress, start.broadcast, folder, start.writer)


def _save_part(
    start: _Start,
    learner: Learner,
    progress: Progress,
    record: EpochRecord,
    tally: EpochTally,
    *,
    schedule: EStepSchedule,
    cadence: CheckpointCadence,
    began: float,
) -> None:
    """Writes a checkpoint within the epoch of `record`, where one is due. While an E-step overlaps none
    is: it is of the encoder that the epoch began with, which would be lost.
    """
    if schedule.is_pending or not cadence.is_due(tally.seen):
        return
    step = record.epoch * start.task.plan.steps_per_epoch + tally.seen - 1
    start.mark("the checkpoint", record.epoch, step)
    buffers = worker_checkpoints.buffers_of_workers(learner)
    seconds = time.perf_counter() - began
    part = EpochPart(dict(record.metrics), seconds, tally.state_dict(), buffers)
    _save(start, learner, replace(progress, part=part))
    cadence.restart(tally.seen)


def _before_first_epoch(
    schedule: EStepSchedule, progress: Progress, config: RunConfig, plan: RunPlan, post: Post
) -> dict[str, float]:
    """The E-step that is still to be made where the run begins or goes on, if any; gives back its figures
    that belong to the first epoch that is trained now.
    """
    epoch = progress.epoch
    if progress.e_step.owed:
        _make_up(schedule, progress, plan, post)
        return {}
    if progress.e_step.anew:
        output = schedule.begin(epoch, evaluate=False, anew=True)
    # Clusters may be missing at the start: without warm-up, with overlap, or in a run made longer.
    elif epoch < plan.epochs and plan.clusters_before(epoch) and progress.e_step.concluded != epoch:
        evaluate = config.e_step.overlap and plan.evaluates_after(epoch - 1)
        output = schedule.begin(epoch, evaluate=evaluate)
    else:
        return {}
    if output.encoder_figures:
        progress.history[-1].add(output.encoder_figures)
    return output.epoch_figures


def _make_up(schedule: EStepSchedule, progress: Progress, plan: RunPlan, post: Post) -> None:
    """The E-step and evaluation that another run's warm-up still owes; their figures are its last epoch's."""
    last = progress.history[-1]
    start = time.perf_counter()
    evaluates = plan.evaluates_after(last.epoch)
    if evaluates:
        last.add(references_in(progress.history))
    output = schedule.begin(progress.epoch, evaluate=evaluates)
    last.add(output.encoder_figures | output.epoch_figures)
    last.metrics[OWED_SECONDS.name] = time.perf_counter() - start
    progress.e_step = replace(progress.e_step, owed=False)
    post(Event("figures", last.epoch, last.step, dict(last.metrics)))


def _conclude_overlap(
    progress: Progress, record: EpochRecord, post: Post, output: EStepOutput | None
) -> ClusterSet | None:
    """Records what an E-step brought that went on while the epoch of `record` trained, and gives back its
    clusters. Its figures belong to the epoch before, whose encoder made the features.
    """
    if output is None:
        return None
    last = progress.history[-1]
    last.add(output.encoder_figures)
    record.add(output.epoch_figures)
    post(Event("figures", last.epoch, last.step, output.encoder_figures))
    return output.clusters


def _training_metrics(
    trained: EpochMetrics, epoch: int, plan: RunPlan, rollbacks: Rollbacks
) -> dict[str, float]:
    return (
        rollbacks.figures()
        | trained.values
        | {
            EPOCH.name: float(epoch),
            LEARNING_RATE.name: plan.lr_at(trained.last_step) * rollbacks.rate_scale,
            IMAGES_PER_SECOND.name: trained.images / trained.seconds,
            M_STEP_SECONDS.name: trained.seconds,
            DATA_SECONDS.name: trained.data_seconds,
            DATA_SHARE.name: trained.data_seconds / trained.seconds,
            STEP_SECONDS_MEDIAN.name: trained.step_median,
            STEP_SECONDS_P95.name: trained.step_p95,
            MEMORY_GB.name: trained.memory_gb,
        }
    )


def _epoch_times(progress: Progress, seconds: float, plan: RunPlan) -> dict[str, float]:
    """How long the newest epoch has taken with its E-step, and what the run has used up by now."""
    *earlier, newest = progress.history
    minutes = earlier[-1].metrics.get(DEVICE_MINUTES.name, 0.0) if earlier else 0.0
    # The evaluation at the end comes once: what it takes says nothing of how an epoch's time is divided.
    usual = seconds - newest.metrics.get(FINAL_SECONDS.name, 0.0)
    return {
        EPOCH_SECONDS.name: seconds,
        DEVICE_MINUTES.name: minutes + plan.devices * seconds / 60,
        E_STEP_SHARE.name: newest.metrics.get(E_STEP_SECONDS.name, 0.0) / usual,
    }


def _with_signs_of_life(
    batches: Iterator[Batch], epoch: int, first_step: int, plan: RunPlan, post: OnceSafe, mark: Mark
) -> Iterator[Batch]:
    """The batches, each of which is marked; now and then one is announced, so that the driver knows that
    training goes on. Before each, what waits for a checkpoint is posted once that is safe.
    """
    last_sign = 0.0
    for step, batch in enumerate(batches, start=epoch * plan.steps_per_epoch + first_step):
        post.release()
        if time.monotonic() - last_sign > _ALIVE_EVERY_S:
            post(Event("alive", epoch, step))
            last_sign = time.monotonic()
        mark("the M-step", epoch, step)
        yield batch
