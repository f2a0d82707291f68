"""A Ray Train worker: the loop of `training.loop` with Ray's parts put in.

A failure that all workers share (a loss that is not finite, say) is *returned*: an exception would make Ray
start the workers again, only to fail the same way. A lost process does raise in the others, and Ray starts
all again; the loop then goes on from the newest checkpoint.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.train import get_context
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.torch import get_device

from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import TorchGroup
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.model.distributed import any_worker, rank, world_size
from pcl_ray.on_ray.connection import SharedData
from pcl_ray.support.machine import cores
from pcl_ray.training import loop
from pcl_ray.training.e_step_actor import EStepAnswer, evaluation_stride
from pcl_ray.training.e_step_shards import EStepRequest, attempt, range_of
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemWatch
from pcl_ray.training.training_task import Job

_TRIES = 3
_PIECE = 131072  # rows that are sent at a time
_AHEAD = 4  # pieces that are on their way at a time
_ACTOR_GONE = (ActorUnavailableError, ActorDiedError)


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is given."""

    job: Job
    data: SharedData
    actor: Any  # handle of an EStepActor
    board: Any  # handle of a Board
    shards: tuple[Any, ...] = ()  # handles of EStepShards, in mode sharded


def run_worker(config: dict[str, WorkerTask]) -> str:
    """Trains to the end. Gives back "" or, on every worker alike, why the run cannot go on."""
    task = config["task"]
    job = task.job
    torch.set_num_threads(_threads(job))
    splits = ray.get(task.data.splits, timeout=job.config.resources.start_timeout_s)
    interval = (
        job.config.tracking.system_metrics_s
        if job.config.tracking.enabled and get_context().get_local_rank() == 0
        else 0
    )
    watch = SystemWatch(interval, task.board.post.remote)
    try:
        device = get_device()
        loop.train(
            job,
            splits,
            device=device,
            e_step=ActorEStep(task, device),
            share=broadcast_from_rank_zero,
            post=task.board.post.remote,
        )
    except (RunFailed, ConfigError) as failure:
        return str(failure)
    finally:
        watch.stop()
    return ""


def _threads(job: Job) -> int:
    """As planned, and never more than this node's cores for all its workers: a laptop's Ray promises more
    CPUs than there are.
    """
    return max(1, min(job.plan.threads, cores() // get_context().get_local_world_size()))


class ActorEStep:
    """`between.EStep` through the actor: the workers push, rank 0 asks, all read the answer. What died is
    filled again, a few times.
    """

    def __init__(self, task: WorkerTask, device: torch.device):
        self.task, self.device = task, device
        self.limit_s = task.job.config.e_step.timeout_s
        self._joined = False

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> Asked:
        return Asked(self, key, request, shards, previous)

    def hand_over(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> None:
        """Sends what the actor needs of this worker: its features; where clustering is the workers' or the
        shards', their answers and a sample.
        """
        match self.task.job.plan.e_step_mode:
            case "single":
                self._push(key, request, shards)
            case "distributed":
                if request.cluster:
                    mine = shards["train"]
                    rows, ids = (
                        torch.from_numpy(mine.features).to(self.device),
                        torch.from_numpy(mine.indices),
                    )
                    group = TorchGroup(device=self.device) if world_size() > 1 else None
                    answer = attempt(rows, ids, request, self.task.job.config, previous, group)
                    self._get([self.task.actor.push_result.remote(key, answer)])
                self._push(key, request, _sample(shards, request))
            case "sharded":
                if request.cluster:
                    self._push_to_shards(key, shards["train"], request.num_images)
                self._push(key, request, _sample(shards, request))
        barrier()  # everything is there, or its worker has seen the actor go

    def ask(self, key: str, request: EStepRequest, previous: ClusterSet | None) -> ray.ObjectRef:
        """On rank 0: a reference to the answer, which may be long in coming."""
        task, mode = self.task, self.task.job.plan.e_step_mode
        shared = ray.put(previous)
        results = 0
        if request.cluster and mode == "sharded":
            self._join()
            answers = [shard.run.remote(key, request, shared) for shard in task.shards]
            return task.actor.run.remote(
                key, request, shared, task.data.labels, task.data.holdout_labels, len(answers), *answers
            )
        if request.cluster and mode == "distributed":
            results = world_size()
        return task.actor.run.remote(
            key, request, shared, task.data.labels, task.data.holdout_labels, results
        )

    def resolve(self, answer: ray.ObjectRef, request: EStepRequest) -> tuple[bool, str, bool]:
        """On rank 0, waiting: whether the answer is there; else why not, and whether another try is
        useless.
        """
        try:
            missing = ray.get(answer, timeout=self.limit_s).missing
        except GetTimeoutError:
            # The first clustering still runs; a second one beside it would only slow both down.
            return (
                False,
                (
                    f"no answer within e_step.timeout_s = {self.limit_s:g} s; raise it, or lower"
                    " e_step.num_clusters or e_step.restarts"
                ),
                True,
            )
        except _ACTOR_GONE as error:
            missing = f"the actor ({type(error).__name__})"
        except RayTaskError as error:
            if self.task.job.plan.e_step_mode != "sharded":
                raise
            missing = f"a shard ({str(error).strip().splitlines()[-1]})"
        if not missing:
            return True, "", False
        self.task.board.post.remote(
            Event(
                "warning",
                request.epoch,
                text=f"the E-step actor was restarted; sending the features again (lost: {missing})",
            )
        )
        self._joined = False
        for part in (self.task.actor, *self.task.shards):
            self._wait_for(part)
        return False, f"lost {missing}", False

    def _push(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard]) -> None:
        """In pieces, so that the store never holds a second copy of everything."""
        pushes = []
        for part, shard in shards.items():
            total = request.num_holdout if part == "holdout" else request.num_images
            if part == "train" and self.task.job.plan.e_step_mode != "single":
                total = -(-total // evaluation_stride(total))
            pieces = max(1, -(-len(shard.indices) // _PIECE))
            for number, (ids, rows) in enumerate(
                zip(
                    np.array_split(shard.indices, pieces), np.array_split(shard.features, pieces), strict=True
                )
            ):
                pushes.append(self.task.actor.push.remote(key, part, ids, rows, total, number == pieces - 1))
                if len(pushes) > _AHEAD:
                    self._get([pushes.pop(0)])
        self._get(pushes)

    def _push_to_shards(self, key: str, shard: FeatureShard, num_images: int) -> None:
        pushes = []
        for number, actor in enumerate(self.task.shards):
            first, last = range_of(number, len(self.task.shards), num_images)
            # a worker's images are neighbours, rising
            start, end = np.searchsorted(shard.indices, [first, last])
            for at in range(start, end, _PIECE):
                piece = slice(at, min(at + _PIECE, end))
                pushes.append(actor.push.remote(key, num_images, shard.indices[piece], shard.features[piece]))
                if len(pushes) > _AHEAD:
                    self._get([pushes.pop(0)])
        self._get(pushes)

    def _get(self, pushes: list[ray.ObjectRef]) -> None:
        try:
            ray.get(pushes, timeout=self.limit_s)
        except (*_ACTOR_GONE, GetTimeoutError):
            pass  # `run` finds the part missing, and all push again

    def _join(self) -> None:
        if self._joined or not self.task.shards:
            return
        # then their run fails, and all is tried again
        with suppress(*_ACTOR_GONE, GetTimeoutError, RayTaskError):
            address = ray.get(self.task.shards[0].address.remote(), timeout=60)
            ray.get(
                [shard.join.remote(address) for shard in self.task.shards],
                timeout=self.task.job.config.resources.start_timeout_s,
            )
            self._joined = True

    def _wait_for(self, part: Any) -> None:
        deadline = time.monotonic() + self.task.job.config.resources.start_timeout_s
        while time.monotonic() < deadline:
            try:
                ray.get(part.ping.remote(), timeout=30)
                return
            except (*_ACTOR_GONE, GetTimeoutError):
                time.sleep(0.5)


class Asked:
    """An E-step under way. The features are kept until the answer is there, for the case that an actor
    dies.
    """

    def __init__(
        self,
        e_step: ActorEStep,
        key: str,
        request: EStepRequest,
        shards: dict[str, FeatureShard],
        previous: ClusterSet | None,
    ):
        self._e_step, self._key, self._request, self._shards, self._previous = (
            e_step,
            key,
            request,
            shards,
            previous,
        )
        self._answer = self._ask(0)

    def _ask(self, attempt_number: int) -> ray.ObjectRef | None:
        key = f"{self._key}/{attempt_number}"
        self._e_step.hand_over(key, self._request, self._shards, self._previous)
        return self._e_step.ask(key, self._request, self._previous) if rank() == 0 else None

    def ready(self) -> bool:
        """Whether `wait` would not wait; the same on all workers, who all have to call it."""
        here = self._answer is not None and bool(ray.wait([self._answer], timeout=0)[0])
        return any_worker(here, self._e_step.device)

    def wait(self) -> EStepAnswer:
        """The answer, the same on all workers. Raises RunFailed, on all of them, where there is none."""
        reason = ""
        for number in range(_TRIES):
            if number:
                self._answer = self._ask(number)
            verdict = (
                (self._answer, *self._e_step.resolve(self._answer, self._request))
                if self._answer is not None
                else None
            )
            answer, there, reason, useless = broadcast_from_rank_zero(verdict)
            if there:
                return ray.get(answer, timeout=self._e_step.limit_s)
            if useless:
                raise RunFailed(f"the E-step before epoch {self._request.epoch + 1}: {reason}")
        raise RunFailed(
            f"the E-step before epoch {self._request.epoch + 1} failed {_TRIES} times; the last time:"
            f" {reason}"
        )


def _sample(shards: dict[str, FeatureShard], request: EStepRequest) -> dict[str, FeatureShard]:
    """What is evaluated where features stay with the workers: every so many training images, renumbered, and
    the held-out part.
    """
    if not request.evaluate:
        return {}
    stride = evaluation_stride(request.num_images)
    chosen = shards["train"].indices % stride == 0
    train = FeatureShard(shards["train"].indices[chosen] // stride, shards["train"].features[chosen])
    return shards | {"train": train}
