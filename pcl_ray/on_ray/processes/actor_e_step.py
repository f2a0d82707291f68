"""The E-step of workers whose clustering is an actor's: what they send it, and how its answer comes to all.

    every worker: push(…) ─→ actor
    rank 0:       run(…) ─→ actor ─→ EStepAnswer ── hand_out ─→ store, a reference on the board
    the others:   receive ─→ board ─→ store ─→ EStepAnswer

What is lost with an actor is sent again, a few times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.train.collective import barrier, broadcast_from_rank_zero

from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.e_step import ShardInput, ShardResult
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.model.distributed import any_worker, rank, world_size
from pcl_ray.on_ray.processes.worker_input import WorkerInput
from pcl_ray.training.e_step_actor import EStepAnswer, evaluation_stride
from pcl_ray.training.e_step_shards import TRAIN, EStepRequest, shard_range, shard_result
from pcl_ray.training.events import Event

_TRIES = 3
_BOARD_S = 60.0
_PIECE = 131072  # rows that are sent at a time
_PIECE_BYTES = 2**26  # and of long rows fewer
_AHEAD = 4  # pieces that are on their way at a time
_ACTOR_GONE = (ActorUnavailableError, ActorDiedError)


class RayCalls:
    """What `ActorEStep` asks of Ray, so that tests can do without it."""

    def get(self, references: Any, timeout_s: float) -> Any:
        return ray.get(references, timeout=timeout_s)

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def is_ready(self, reference: Any) -> bool:
        return bool(ray.wait([reference], timeout=0)[0])

    def barrier(self) -> None:
        """Waits until all workers have come here."""
        barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every worker: of types that any process knows, and no references. Ray Train
        pickles it to see how long it is, and what is referred to then stays in the store for ever.
        """
        return broadcast_from_rank_zero(value)


@dataclass(frozen=True)
class TryResult:
    """How one try of an E-step has ended: with its answer, or with a problem."""

    answer: EStepAnswer | None = None
    problem: str = ""
    final: bool = False  # another try would be useless


class ActorEStep:
    """An `e_step_schedule.EStep` through the actor: the workers push, rank 0 asks, all read the answer. An
    actor that died is filled again, a few times.
    """

    def __init__(self, worker_input: WorkerInput, device: torch.device, calls: RayCalls | None = None):
        task = worker_input.task
        self.device = device
        self.calls = calls or RayCalls()
        self.limit_s = task.config.e_step.timeout_s
        self._config = task.config
        self._mode = task.plan.e_step_mode
        self._data = worker_input.data
        self._actor = worker_input.e_step_actor
        self._shards = worker_input.e_step_shards
        self._board = worker_input.board
        self._joined = False

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> PendingActorEStep:
        return PendingActorEStep(self, key, request, shards, previous)

    def hand_over(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> None:
        """Sends what the actor needs of this worker: its features; where clustering is the workers' or the
        shards', their answers and a sample.
        """
        if self._mode == "single":
            self.push(key, request, shards)
        else:
            if request.cluster and self._mode == "distributed":
                result = self._own_result(request, shards[TRAIN], previous)
                self._await([self._actor.push_result.remote(key, result)])
            elif request.cluster:
                self._send(self._pieces_for_shards(key, shards[TRAIN], request.num_images))
            self.push(key, request, _sample(shards, request))
        self.calls.barrier()  # everything is there, or its worker has seen the actor go

    def ask(self, key: str, request: EStepRequest, previous: ClusterSet | None) -> Any:
        """A reference to the answer, which may be long in coming. Called on rank 0."""
        shared = self.calls.put(previous)
        answers: list[Any] = []
        results = 0
        if request.cluster and self._mode == "sharded":
            self._join()
            answers = [shard.run.remote(key, request, shared) for shard in self._shards]
            results = len(answers)
        elif request.cluster and self._mode == "distributed":
            results = world_size()
        labels, holdout_labels = self._data.labels, self._data.holdout_labels
        return self._actor.run.remote(key, request, shared, labels, holdout_labels, results, *answers)

    def resolve(self, answer: Any, request: EStepRequest) -> TryResult:
        """Waits for the answer; where an actor was lost, until it is there again. Called on rank 0."""
        try:
            answered: EStepAnswer = self.calls.get(answer, self.limit_s)
            missing = answered.missing
        except GetTimeoutError:
            # The first clustering still runs; a second one beside it would only slow both down.
            problem = (
                f"no answer within e_step.timeout_s = {self.limit_s:g} s; raise it, or lower"
                " e_step.num_clusters or e_step.restarts"
            )
            return TryResult(problem=problem, final=True)
        except _ACTOR_GONE as error:
            missing = f"the actor ({type(error).__name__})"
        except RayTaskError as error:
            if self._mode != "sharded":
                raise
            missing = f"a shard ({str(error).strip().splitlines()[-1]})"
        else:
            if not missing:
                return TryResult(answered)
        text = f"the E-step actor was restarted; sending the features again (lost: {missing})"
        self._board.post.remote(Event("warning", request.epoch, text=text))
        self._joined = False
        for actor in (self._actor, *self._shards):
            self._wait_until_up(actor)
        return TryResult(problem=f"lost {missing}")

    def hand_out(self, key: str, answer: EStepAnswer | None) -> None:
        """Puts the answer where the others find it, or nothing if that fails. Called on rank 0.

        A copy of it: the value of a short one, which came with the actor's reply, stays in this process for
        ever once a reference to it was passed on within a list.
        """
        if answer is not None and world_size() > 1:
            with suppress(*_ACTOR_GONE, GetTimeoutError):
                self.calls.get(self._board.hold.remote(key, [self.calls.put(answer)]), _BOARD_S)

    def receive(self, key: str) -> EStepAnswer | None:
        """What rank 0 has handed out; None where it is lost, with the board that held it. Called on the
        others.
        """
        with suppress(*_ACTOR_GONE, GetTimeoutError):
            for held in self.calls.get(self._board.held.remote(key), _BOARD_S):
                return self.calls.get(held, self.limit_s)
        return None

    def push(self, key: str, request: EStepRequest, shards: dict[str, FeatureShard]) -> None:
        """Sends features to the actor in pieces, so that the store never holds a second copy of all."""
        self._send(self._pieces_for_actor(key, request, shards))

    def _own_result(
        self, request: EStepRequest, shard: FeatureShard, previous: ClusterSet | None
    ) -> ShardResult:
        """This worker's part of a clustering that all workers make together."""
        rows = torch.from_numpy(shard.features).to(self.device)
        group = TorchGroup(device=self.device) if world_size() > 1 else Group()
        own = ShardInput(rows, request.num_images, torch.from_numpy(shard.indices), group)
        return shard_result(own, request, self._config, previous)

    def _pieces_for_actor(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard]
    ) -> Iterator[Any]:
        for part, shard in shards.items():
            total = request.total(part)
            if part == TRAIN and self._mode != "single":
                total = -(-total // evaluation_stride(total))
            pieces = max(1, -(-len(shard.indices) // _PIECE), -(-shard.features.nbytes // _PIECE_BYTES))
            ids, rows = np.array_split(shard.indices, pieces), np.array_split(shard.features, pieces)
            for number in range(pieces):
                last = number == pieces - 1
                yield self._actor.push.remote(key, part, ids[number], rows[number], total, last)

    def _pieces_for_shards(self, key: str, shard: FeatureShard, num_images: int) -> Iterator[Any]:
        for number, actor in enumerate(self._shards):
            first, last = shard_range(number, len(self._shards), num_images)
            # a worker's images are neighbours, rising
            start, end = np.searchsorted(shard.indices, [first, last])
            for at in range(start, end, _PIECE):
                piece = slice(at, min(at + _PIECE, end))
                yield actor.push.remote(key, num_images, shard.indices[piece], shard.features[piece])

    def _send(self, pieces: Iterator[Any]) -> None:
        """Lets a few pieces be on their way at a time."""
        under_way: list[Any] = []
        for reference in pieces:
            under_way.append(reference)
            if len(under_way) > _AHEAD:
                self._await([under_way.pop(0)])
        self._await(under_way)

    def _await(self, references: list[Any]) -> None:
        # Where an actor is gone, `run` finds the part missing, and all push again.
        with suppress(*_ACTOR_GONE, GetTimeoutError):
            self.calls.get(references, self.limit_s)

    def _join(self) -> None:
        """Lets the shards meet, unless they have. Where that fails the run fails too, and is tried again."""
        if self._joined or not self._shards:
            return
        with suppress(*_ACTOR_GONE, GetTimeoutError, RayTaskError):
            address = self.calls.get(self._shards[0].address.remote(), 60)
            joins = [shard.join.remote(address) for shard in self._shards]
            self.calls.get(joins, self._config.resources.start_timeout_s)
            self._joined = True

    def _wait_until_up(self, actor: Any) -> None:
        deadline = time.monotonic() + self._config.resources.start_timeout_s
        while time.monotonic() < deadline:
            try:
                self.calls.get(actor.ping.remote(), 30)
                return
            except (*_ACTOR_GONE, GetTimeoutError):
                time.sleep(0.5)


class PendingActorEStep:
    """An E-step under way. The features are kept until its answer is there, since the actor may die."""

    def __init__(
        self,
        e_step: ActorEStep,
        key: str,
        request: EStepRequest,
        shards: dict[str, FeatureShard],
        previous: ClusterSet | None,
    ):
        self._e_step = e_step
        self._key = key
        self._request = request
        self._shards = shards
        self._previous = previous
        self._answer = self._begin_try(0)

    def _begin_try(self, number: int) -> Any:
        """A reference to the answer on rank 0, None elsewhere."""
        key = f"{self._key}/{number}"
        self._e_step.hand_over(key, self._request, self._shards, self._previous)
        return self._e_step.ask(key, self._request, self._previous) if rank() == 0 else None

    def ready(self) -> bool:
        """Whether `wait` would not wait; the same on all workers, who all have to call it."""
        answered = self._answer is not None and self._e_step.calls.is_ready(self._answer)
        return any_worker(answered, self._e_step.device)

    def wait(self) -> EStepAnswer:
        """The answer, the same on all workers. Raises RunFailed, on all of them, where there is none."""
        epoch = self._request.epoch
        problem = ""
        for number in range(_TRIES):
            if number:
                self._answer = self._begin_try(number)
            result = TryResult()
            key = f"{self._key}/{number}"
            if rank() == 0:
                result = self._e_step.resolve(self._answer, self._request)
                self._e_step.hand_out(key, result.answer)
            problem, final = self._e_step.calls.broadcast((result.problem, result.final))
            if final:
                raise RunFailed(f"the E-step before epoch {epoch + 1}: {problem}")
            if problem:
                continue
            answer = result.answer if rank() == 0 else self._e_step.receive(key)
            if not any_worker(answer is None, self._e_step.device):
                assert answer is not None
                return answer
            problem = "lost its answer on the way to the workers"
        raise RunFailed(
            f"the E-step before epoch {epoch + 1} failed {_TRIES} times; the last time: {problem}"
        )


def _sample(shards: dict[str, FeatureShard], request: EStepRequest) -> dict[str, FeatureShard]:
    """What is evaluated where features stay with workers: some training images, and the labelled sample."""
    if request.references:
        return shards
    if not request.evaluate:
        return {}
    stride = evaluation_stride(request.num_images)
    sampled = shards[TRAIN].indices % stride == 0
    train = FeatureShard(shards[TRAIN].indices[sampled] // stride, shards[TRAIN].features[sampled])
    return shards | {TRAIN: train}
