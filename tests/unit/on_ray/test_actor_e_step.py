"""The E-step through actors, with local objects as handles: what is sent, how often tried, how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from equal_clusters import same
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from small import DIGITS_RUN

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import ClusterSet
from pcl_ray.e_step import cluster
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.on_ray.connection import SharedData
from pcl_ray.on_ray.processes import actor_e_step
from pcl_ray.on_ray.processes.actor_e_step import ActorEStep, RayCalls
from pcl_ray.on_ray.processes.worker_input import WorkerInput
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_shards import EStepRequest, EStepShard
from pcl_ray.training.events import EventBoard
from pcl_ray.training.training_task import TrainingTask

N, Q = 300, 40
CPU = torch.device("cpu")


class Reference:
    def __init__(self, value: Any = None, error: Exception | None = None):
        self.value, self.error = value, error

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Handle:
    """An actor's handle: `handle.method.remote(…)` runs at once, or raises the method's next of `errors`."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self.instance = make()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: dict[str, list[Exception | None]] = {}

    def restart(self) -> None:
        self.instance = self._make()

    def called(self, method: str) -> list[tuple[Any, ...]]:
        return [given for name, given in self.calls if name == method]

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            @staticmethod
            def remote(*given: Any) -> Reference:
                handle.calls.append((method, given))
                errors = handle.errors.get(method, [])
                if errors and (error := errors.pop(0)) is not None:
                    if isinstance(error, ActorDiedError):
                        handle.restart()
                    return Reference(error=error)
                try:
                    values = [each.result() if isinstance(each, Reference) else each for each in given]
                    return Reference(getattr(handle.instance, method)(*values))
                except Exception as error:
                    return Reference(error=task_error(error))

        return Method


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("run", f"Traceback\n{type(cause).__name__}: {cause}", cause)


class LocalCalls(RayCalls):
    def __init__(self) -> None:
        self.barriers = 0
        self.answered = True

    def get(self, references: Any, timeout_s: float) -> Any:
        if isinstance(references, list):
            return [reference.result() for reference in references]
        return references.result()

    def put(self, value: Any) -> Any:
        return Reference(value)

    def is_ready(self, reference: Any) -> bool:
        return self.answered

    def barrier(self) -> None:
        self.barriers += 1

    def broadcast(self, value: Any) -> Any:
        assert not any(isinstance(each, Reference) for each in value)  # it would never be freed
        return value


class LocalShard(EStepShard):
    def address(self) -> str:
        return self.address_at("127.0.0.1")


def rows(n: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(12, 16))
    mixed = centres[np.arange(n) % 12] + 0.5 * draw.normal(size=(n, 16))
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


FEATURES = rows(N)
SHARDS = {
    "train": FeatureShard(np.arange(N), FEATURES),
    "bank": FeatureShard(np.arange(N), np.repeat(FEATURES, 2, axis=1).astype(np.float16)),
    "bank/head": FeatureShard(np.arange(N), FEATURES),
    "queries": FeatureShard(np.arange(Q), np.repeat(rows(Q, seed=1), 2, axis=1).astype(np.float16)),
    "queries/head": FeatureShard(np.arange(Q), rows(Q, seed=1)),
}


class Setting:
    """One worker and its actors."""

    def __init__(self, mode: str, *knobs: str, shards: int = 0):
        words = (*DIGITS_RUN, "resources.workers=1", "e_step.threads=1", f"e_step.mode={mode}", *knobs)
        config = configs.load("digits", words)
        self.config = config
        self.actor = Handle(lambda: EStepActor(config))
        self.shards = tuple(Handle(lambda m=m: LocalShard(config, m, shards)) for m in range(shards))
        self.board = Handle(EventBoard)
        labels = Reference(np.arange(N) % 12)
        data: Any = SharedData(Reference(), labels, Reference(np.arange(Q) % 12))  # type: ignore[arg-type]
        task = TrainingTask(config, plans.make(config, N, Q), "")
        worker_input = WorkerInput(task, data, self.actor, self.board, Path("/nowhere"), self.shards)
        self.calls = LocalCalls()
        self.e_step = ActorEStep(worker_input, CPU, self.calls)

    def expected(self) -> ClusterSet:
        config = self.config
        return cluster(
            FEATURES, config.e_step, epoch=2, temperature=config.loss.temperature, seed=config.seed
        )

    def warnings(self) -> list[str]:
        return [event.text for event in self.board.instance.take() if event.kind == "warning"]

    def answer(self, request: EStepRequest | None = None) -> EStepAnswer:
        return self.e_step.begin("run/2", request or REQUEST, SHARDS, None).wait()


REQUEST = EStepRequest(
    epoch=2, cluster=True, evaluate=True, shards=1, num_images=N, num_bank=N, num_queries=Q
)


@pytest.fixture(autouse=True)
def _no_group_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(("mode", "shards"), [("single", 0), ("distributed", 0), ("sharded", 1)])
def test_all_modes_give_the_same_clusters_and_figures(mode: str, shards: int) -> None:
    knobs = [f"e_step.shards={shards}"] if shards else []
    setting = Setting(mode, *knobs, shards=shards)
    answer = setting.answer()
    assert same(answer.clusters, setting.expected())
    assert {
        "eval/knn_top1",
        "eval/head/knn_top1",
        "eval/rankme",
        "cluster/0/phi_mean",
        "cluster/1/ami",
    } <= answer.metrics.keys()
    assert setting.warnings() == []
    assert setting.calls.barriers == 1
    again = Setting("single").answer()
    for name in ("eval/knn_top1", "eval/head/knn_top1", "eval/rankme", "cluster/0/phi_mean"):
        assert answer.metrics[name] == again.metrics[name]


@pytest.mark.parametrize("mode", ["single", "distributed", "sharded"])
def test_reference_lines_come_the_same_way_in_all_modes(mode: str) -> None:
    """Also where the actor dies on the way; nothing is clustered, and no feature of the head is sent."""
    knobs = ["e_step.shards=1"] if mode == "sharded" else []
    setting = Setting(mode, *knobs, shards=len(knobs))
    setting.actor.errors["run"] = [ActorDiedError()]
    shards = {part: shard for part, shard in SHARDS.items() if part in ("bank", "queries")}
    shards |= {
        f"{part}/pixels": FeatureShard(shard.indices, np.eye(12, dtype=np.uint8)[shard.indices % 12])
        for part, shard in shards.items()
    }
    request = EStepRequest(0, False, False, 1, N, N, Q, references=True)
    answer = setting.e_step.begin("run/references", request, shards, None).wait()
    assert answer.metrics.keys() == {"eval/pixels/knn_top1", "eval/untrained/knn_top1"}
    assert answer.metrics["eval/pixels/knn_top1"] == 1.0
    assert {part for _, part, *_ in setting.actor.called("push")} == shards.keys()
    assert [shard.called("push") for shard in setting.shards] == [[]] * len(knobs)


def test_long_rows_are_sent_in_pieces_of_few() -> None:
    """The backbone's features of a ResNet-50: no piece holds more than 64 MiB."""
    setting = Setting("single")
    shard = FeatureShard(np.arange(40_000), np.zeros((40_000, 2048), np.float16))
    request = EStepRequest(2, False, True, 1, N, 40_000, Q)
    setting.e_step.push("k", request, {"bank": shard})
    pieces = setting.actor.called("push")
    assert max(rows.nbytes for *_, rows, _, _ in pieces) <= 2**26
    assert sum(len(ids) for _, _, ids, *_ in pieces) == 40_000


@pytest.mark.parametrize("mode", ["distributed", "sharded"])
def test_without_an_evaluation_features_stay_where_they_are(mode: str) -> None:
    setting = Setting(
        mode, *(["e_step.shards=1"] if mode == "sharded" else []), shards=int(mode == "sharded")
    )
    request = EStepRequest(2, True, False, 1, N, N, Q)
    assert same(setting.answer(request).clusters, setting.expected())
    assert setting.actor.called("push") == []


def test_features_are_sent_in_pieces_of_which_the_last_says_that_it_is() -> None:
    setting = Setting("single")
    n = 700_000
    shard = FeatureShard(np.arange(n), np.zeros((n, 2), np.float32))
    under_way: list[int] = []
    sent, received = 0, 0
    get = setting.calls.get

    def counted(references: Any, timeout_s: float) -> Any:
        nonlocal received
        received += len(references)
        return get(references, timeout_s)

    setting.calls.get = counted  # type: ignore[method-assign]
    push = setting.actor.instance.push

    def noting(*given: Any) -> None:
        nonlocal sent
        sent += 1
        under_way.append(sent - received)
        push(*given)

    setting.actor.instance.push = noting
    setting.e_step.push("k", EStepRequest(2, True, False, 1, n), {"train": shard})
    pieces = setting.actor.called("push")
    assert len(pieces) > 4
    assert [last for *_, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert np.array_equal(np.concatenate([ids for _, _, ids, *_ in pieces]), np.arange(n))
    assert {total for *_, total, _ in pieces} == {n}
    assert max(under_way) < len(pieces)  # never all of them at once
    assert received == len(pieces)


def test_an_empty_part_is_sent_as_one_empty_piece() -> None:
    setting = Setting("single")
    shard = FeatureShard(np.empty(0, np.int64), np.empty((0, 16), np.float32))
    setting.e_step.push("k", REQUEST, {"train": shard})
    ((_, part, ids, _, total, last),) = setting.actor.called("push")
    assert (part, len(ids), total, last) == ("train", 0, N, True)


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("gone", b"1" * 16)])
def test_an_actor_that_is_gone_is_filled_again(error: Exception) -> None:
    setting = Setting("single")
    setting.actor.errors["run"] = [error]
    answer = setting.answer()
    assert same(answer.clusters, setting.expected())
    assert [given[0] for given in setting.actor.called("run")] == ["run/2/0", "run/2/1"]
    name = type(error).__name__
    assert setting.warnings() == [
        f"the E-step actor was restarted; sending the features again (lost: the actor ({name}))"
    ]


def test_what_a_restarted_actor_lacks_is_sent_again() -> None:
    setting = Setting("single")
    setting.actor.errors["push"] = [ActorDiedError()]  # the first part is lost
    assert same(setting.answer().clusters, setting.expected())
    (warning,) = setting.warnings()
    assert "(lost: 1 of 1 shards of train features)" in warning


def test_the_next_try_waits_until_the_actor_is_up() -> None:
    setting = Setting("single")
    setting.actor.errors = {"run": [ActorDiedError()], "ping": [ActorUnavailableError("not yet", b"1" * 16)]}
    assert setting.answer().clusters is not None
    assert len(setting.actor.called("ping")) == 2


def test_three_tries_are_made() -> None:
    setting = Setting("single")
    setting.actor.errors["run"] = [ActorDiedError() for _ in range(5)]
    with pytest.raises(RunFailed) as failure:
        setting.answer()
    assert str(failure.value) == (
        "the E-step before epoch 3 failed 3 times; the last time: lost the actor (ActorDiedError)"
    )
    assert len(setting.actor.called("run")) == 3


def test_an_answer_that_takes_too_long_is_not_asked_for_again() -> None:
    setting = Setting("single", "e_step.timeout_s=90")
    setting.actor.errors["run"] = [GetTimeoutError("late")]
    with pytest.raises(RunFailed, match="before epoch 3: no answer within e_step.timeout_s = 90 s; raise it"):
        setting.answer()
    assert len(setting.actor.called("run")) == 1


def test_a_bug_in_the_actor_is_raised() -> None:
    setting = Setting("single")
    setting.actor.errors["run"] = [task_error(KeyError("bug"))]
    with pytest.raises(RayTaskError, match="bug"):
        setting.answer()


def test_a_shard_that_was_restarted_is_joined_and_filled_again() -> None:
    setting = Setting("sharded", "e_step.shards=1", shards=1)
    setting.shards[0].errors["run"] = [task_error(ValueError("the actor was restarted"))]
    assert same(setting.answer().clusters, setting.expected())
    assert len(setting.shards[0].called("join")) == 2
    (warning,) = setting.warnings()
    assert "(lost: a shard (" in warning
    assert "the actor was restarted))" in warning


def test_shards_that_have_met_do_not_meet_again() -> None:
    setting = Setting("sharded", "e_step.shards=1", shards=1)
    for _ in range(2):
        assert setting.answer().clusters is not None
    assert len(setting.shards[0].called("join")) == 1


@pytest.mark.parametrize("board", ["up", "restarted before", "restarted after", "gone"])
def test_the_answer_comes_to_the_others_by_the_board(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("single")
    monkeypatch.setattr(actor_e_step, "world_size", lambda: 2)
    if board == "restarted before":
        setting.board.errors["hold"] = [ActorDiedError()]
    if board == "gone":
        setting.board.errors["held"] = [ActorUnavailableError("gone", b"1" * 16)]
    answer = EStepAnswer(metrics={"eval/rankme": 3.0})
    setting.e_step.hand_out("run/2/0", answer)
    if board == "restarted after":
        setting.board.restart()
    assert setting.e_step.receive("run/2/0") is (answer if board == "up" else None)
    assert setting.e_step.receive("run/2/1") is None  # that of another try


def test_an_answer_that_some_lack_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("single")
    lacking = iter([True, False])
    monkeypatch.setattr(actor_e_step, "any_worker", lambda own, device: own or next(lacking))
    assert same(setting.answer().clusters, setting.expected())
    assert [given[0] for given in setting.actor.called("run")] == ["run/2/0", "run/2/1"]


def test_whether_the_answer_is_there_can_be_asked() -> None:
    setting = Setting("single")
    pending = setting.e_step.begin("run/2", REQUEST, SHARDS, None)
    assert pending.ready()
    setting.calls.answered = False
    assert not pending.ready()
