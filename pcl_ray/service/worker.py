"""A Ray Train worker: the loop of `service.loop` with Ray's parts put in.

A failure that all workers share (a loss that is not finite, say) is *returned*: an exception would make Ray start the workers again, only to fail
the same way. A lost process does raise in the others, and Ray starts all again; the loop then goes on from the newest checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.torch import get_device

from pcl_ray.clustering import ClusterSet
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.model.gather import rank
from pcl_ray.service import loop
from pcl_ray.service.actor import EStepAnswer, EStepRequest
from pcl_ray.service.events import Event
from pcl_ray.service.loop import Job

_TRIES = 3
_ACTOR_GONE = (ActorUnavailableError, ActorDiedError)


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is given. The data lie in the object store: one copy a node, read by all its workers."""

    job: Job
    splits: ray.ObjectRef  # DataSplits
    labels: ray.ObjectRef  # [N] int64 or None
    holdout_labels: ray.ObjectRef
    actor: Any  # handle of an EStepActor
    board: Any  # handle of a Board


def run_worker(config: dict[str, WorkerTask]) -> str:
    """Trains to the end. Gives back "" or, on every worker alike, why the run cannot go on."""
    task = config["task"]
    job = task.job
    torch.set_num_threads(max(1, int(job.config.resources.cpus_per_worker)))
    splits = ray.get(task.splits, timeout=job.config.resources.start_timeout_s)
    try:
        loop.train(job, splits, device=get_device(), e_step=ActorEStep(task), share=broadcast_from_rank_zero, post=task.board.post.remote)
    except (RunFailed, ConfigError) as failure:
        return str(failure)
    return ""


class ActorEStep:
    """`loop.EStep` through the actor: every worker pushes, rank 0 asks, all read the answer. An actor that died is filled again, a few times."""

    def __init__(self, task: WorkerTask):
        self._task = task
        self._limit_s = task.job.config.e_step.timeout_s

    def __call__(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None) -> EStepAnswer:
        reason = ""
        for attempt in range(_TRIES):
            self._push(f"{key}/{attempt}", shards)
            barrier()  # all shards are there, or their worker has seen the actor go
            verdict = broadcast_from_rank_zero(self._ask(f"{key}/{attempt}", request, previous) if rank() == 0 else None)
            answer, reason, final = verdict
            if answer is not None:
                return ray.get(answer, timeout=self._limit_s)
            if final:
                raise RunFailed(f"the E-step before epoch {request.epoch + 1}: {reason}")
        raise RunFailed(f"the E-step before epoch {request.epoch + 1} failed {_TRIES} times; the last time: {reason}")

    def _push(self, key: str, shards: dict[str, FeatureShard]) -> None:
        pushes = [self._task.actor.push.remote(key, part, shard.indices, shard.features) for part, shard in shards.items()]
        try:
            ray.get(pushes, timeout=self._limit_s)
        except (*_ACTOR_GONE, GetTimeoutError):
            pass  # `run` finds the shard missing, and all push again

    def _ask(self, key: str, request: EStepRequest, previous: ClusterSet | None) -> tuple[ray.ObjectRef | None, str, bool]:
        """A reference to the answer; or None, why there is none, and whether another try is useless."""
        task = self._task
        answer = task.actor.run.remote(key, request, previous, task.labels, task.holdout_labels)
        try:
            missing = ray.get(answer, timeout=self._limit_s).missing
        except GetTimeoutError:
            # The first clustering still runs; a second one beside it would only slow both down.
            return None, f"no answer within e_step.timeout_s = {self._limit_s:g} s; raise it, or lower e_step.num_clusters or e_step.restarts", True
        except _ACTOR_GONE as error:
            missing = f"the actor ({type(error).__name__})"
        if not missing:
            return answer, "", False
        task.board.post.remote(Event("warning", request.epoch, text=f"the E-step actor was restarted; sending the features again (lost: {missing})"))
        self._wait_for_actor()
        return None, f"lost {missing}", False

    def _wait_for_actor(self) -> None:
        deadline = time.monotonic() + self._task.job.config.resources.start_timeout_s
        while time.monotonic() < deadline:
            try:
                ray.get(self._task.actor.ping.remote(), timeout=30)
                return
            except (*_ACTOR_GONE, GetTimeoutError):
                time.sleep(0.5)
