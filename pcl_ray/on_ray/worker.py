"""A Ray Train worker: the loop of `training.loop` with Ray's parts put in.

A failure that all workers share (a loss that is not finite, say) is *returned*: an exception would make Ray
start the workers again, only to fail the same way. A lost process does raise in the others, and Ray starts
all again; the loop then goes on from the newest checkpoint.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.train import get_context
from ray.train.collective import broadcast_from_rank_zero

from pcl_ray import plan as plans
from pcl_ray.data import datasets
from pcl_ray.errors import ConfigError, OutOfMemory, RunFailed
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.on_ray.processes.actor_e_step import ActorEStep
from pcl_ray.on_ray.processes.worker_input import WorkerInput, WorkersEnd
from pcl_ray.support import machine, worker_positions
from pcl_ray.support.worker_positions import PositionRecorder
from pcl_ray.training import loop
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemWatch
from pcl_ray.training.training_task import TrainingTask


def run_worker(worker_input: WorkerInput) -> WorkersEnd:
    """Trains to the end, or to a pause. Gives back, on every worker alike, how that went."""
    asked_for = worker_input.task
    config, plan = plans.with_workers(asked_for.config, asked_for.plan, world_size())
    task = replace(asked_for, config=config, plan=plan)
    worker_input = replace(worker_input, task=task)
    settings = task.config
    torch.set_num_threads(_threads(task))
    splits = ray.get(worker_input.data.splits, timeout=settings.resources.start_timeout_s)
    interval_s = 0.0
    if settings.tracking.enabled and get_context().get_local_rank() == 0:
        interval_s = settings.tracking.system_metrics_s
    post = worker_input.board.post.remote
    begun = _broadcast(_begin_attempt(worker_input) if rank() == 0 else None)
    if begun.problem:
        return WorkersEnd(begun.problem)
    watch = SystemWatch(interval_s, post)
    try:
        with PositionRecorder(begun.folder, rank()) as recorder:
            datasets.fetch(splits)  # DataError: this node cannot have the images that others have
            device = _device(task)
            e_step = ActorEStep(worker_input, device)
            ended = loop.train(
                task,
                splits,
                device=device,
                e_step=e_step,
                broadcast=_broadcast,
                post=post,
                mark=recorder.mark,
                pauses=partial(_pauses, worker_input),
            )
    except OutOfMemory:
        raise  # of this worker alone: the others wait for it, until Ray ends them
    except (RunFailed, ConfigError) as failure:
        return WorkersEnd(str(failure))
    finally:
        watch.stop()
    return WorkersEnd(paused=not ended)


def _pauses(worker_input: WorkerInput) -> bool:
    """Whether more workers are to go on from here. Asked on every worker."""
    if world_size() == worker_input.task.config.resources.workers:
        return False
    pauses = False
    if rank() == 0:
        with suppress(RayError, GetTimeoutError):
            pauses = ray.get(worker_input.board.take_pause.remote(), timeout=30)
    return _broadcast(pauses)


def _device(task: TrainingTask) -> torch.device:
    if not task.config.resources.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def _broadcast(value: Any) -> Any:
    """Rank 0's value, on every worker. Ray's actor for it gets bytes: unpacked there, a value of ours had it
    import torch, which takes seconds of a core that the workers need.
    """
    return pickle.loads(broadcast_from_rank_zero(pickle.dumps(value)))


@dataclass(frozen=True)
class AttemptStart:
    """One start of all workers: where they record their positions, or why there is no sense in it."""

    folder: Path
    problem: str = ""


def _begin_attempt(worker_input: WorkerInput) -> AttemptStart:
    """The attempt that begins now; says what ended the one before. Called on rank 0."""
    start = worker_input.positions
    folder = worker_positions.next_attempt(start)
    if lost := worker_positions.hopeless(start):
        return AttemptStart(
            folder,
            f"{lost.sentence()}, as in the attempt before: another one would end there too. {lost.advice()}",
        )
    if earlier := worker_positions.attempts_of(start):
        lost = worker_positions.lost_worker(worker_positions.read_positions(earlier[-1]))
        if lost is not None:
            worker_input.board.post.remote(Event("warning", lost.epoch, lost.step, text=lost.sentence()))
    return AttemptStart(folder)


def _threads(task: TrainingTask) -> int:
    """CPU threads of this worker: as planned, and never more than this node's cores for all its workers,
    since a laptop's Ray promises more CPUs than there are.
    """
    return machine.threads(min(task.plan.threads, machine.cores() // get_context().get_local_world_size()))
