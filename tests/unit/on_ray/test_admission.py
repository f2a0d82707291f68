"""Taking turns, where Ray does not answer as it should; that it works on a real cluster is shown in
tests/ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RuntimeEnvSetupError

from pcl_ray.errors import RunFailed
from pcl_ray.on_ray import admission
from pcl_ray.on_ray.admission import Holder

OTHER = Holder("theirs", "ada", 0.0, "8 GPUs")


class FakeRay:
    """One name, which somebody may have; `answers` says what comes of each question to an actor."""

    def __init__(self, answers: list[Any], holder: Holder | None = None):
        self.answers, self.taken_by, self.killed = answers, holder, 0
        self.made = 0

    def remote(self, _: type) -> Any:
        outer = self

        class Remote:
            def options(self, **options: Any) -> Remote:
                assert options["num_cpus"] == 0
                return self

            def remote(self, mine: Holder) -> Any:
                if outer.taken_by is not None:
                    raise ValueError("the name is taken")
                outer.taken_by, outer.made = mine, outer.made + 1
                return FakeActor()

        return Remote()

    def get_actor(self, name: str, namespace: str) -> Any:
        if self.taken_by is None:
            raise ValueError("nobody")
        return FakeActor()

    def get(self, _: Any, timeout: float) -> Any:
        answer = self.answers.pop(0) if self.answers else self.taken_by
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _: Any) -> None:
        self.killed += 1
        self.taken_by = None


class FakeActor:
    class holder:
        @staticmethod
        def remote() -> str:
            return "reference"


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    monkeypatch.setattr(admission, "_POLL_S", 0.0)
    monkeypatch.setattr(admission, "_wait_for_room", lambda *_: None)

    def run(ray: FakeRay, timeout_s: float = 60.0) -> tuple[Any, list[str]]:
        monkeypatch.setattr(admission, "ray", ray)
        said: list[str] = []
        return admission.take("mine", [{"CPU": 1.0}], timeout_s, said.append), said

    return run


def test_a_slow_start_of_our_own_is_waited_for(take: Callable[..., tuple[Any, list[str]]]) -> None:
    ray = FakeRay([GetTimeoutError(), GetTimeoutError(), OTHER])
    turn, said = take(ray)
    assert ray.made == 1
    assert turn.actor is not None
    assert said == ["waiting for the cluster to start a process", ""]
    turn.release()
    turn.release()
    assert ray.killed == 1


def test_one_that_died_is_made_again(take: Callable[..., tuple[Any, list[str]]]) -> None:
    ray = FakeRay([ActorDiedError()])
    take(ray)
    assert (ray.made, ray.killed) == (2, 1)


def test_a_cluster_that_cannot_start_it_fails_the_run(take: Callable[..., tuple[Any, list[str]]]) -> None:
    ray = FakeRay([RuntimeEnvSetupError("no space left")])
    with pytest.raises(RunFailed, match="cannot start a process for the run: .*no space left"):
        take(ray)
    assert ray.killed == 1


@pytest.mark.parametrize(
    ("silent", "said"),
    [(False, "before us is run theirs of ada, which needs 8 GPUs"), (True, "another run has it")],
)
def test_the_waiting_has_an_end_whoever_is_before_us(
    take: Callable[..., tuple[Any, list[str]]], silent: bool, said: str
) -> None:
    ray = FakeRay([GetTimeoutError()] * 10_000 if silent else [], holder=OTHER)
    with pytest.raises(
        RunFailed,
        match=(
            rf"gave up after .* \(resources.queue_timeout_s = 0.05\) of waiting for the turn to start: {said}"
        ),
    ):
        take(ray, timeout_s=0.05)
    assert ray.killed == 0


def test_what_is_needed_in_words() -> None:
    assert admission.needed([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 0.5}]) == "1 GPU and 2.5 CPUs"
    assert admission.needed([{}]) == "nothing"
