"""Taking turns, where Ray does not answer as it should; tests/ray shows that it works on a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RuntimeEnvSetupError

from pcl_ray.errors import RunFailed
from pcl_ray.on_ray.reserving import admission
from pcl_ray.on_ray.reserving.admission import Admission, Applicant, Waiting

TakeTurn = Callable[..., tuple[Admission, list[str]]]
OTHER = Applicant("theirs", "ada", 0.0, "8 GPUs")


class FakeRay:
    """One name, which somebody may have; `answers` says what comes of each question to an actor."""

    def __init__(self, answers: list[Any], holder: Applicant | None = None):
        self.answers, self.holder, self.killed = answers, holder, 0
        self.made = 0

    def remote(self, _: type) -> Any:
        outer = self

        class Remote:
            def options(self, **options: Any) -> Remote:
                assert options["num_cpus"] == 0
                return self

            def remote(self, applicant: Applicant) -> Any:
                if outer.holder is not None:
                    raise ValueError("the name is taken")
                outer.holder, outer.made = applicant, outer.made + 1
                return FakeActor()

        return Remote()

    def get_actor(self, name: str, namespace: str) -> Any:
        if self.holder is None:
            raise ValueError("nobody")
        return FakeActor()

    def get(self, _: Any, timeout: float) -> Any:
        answer = self.answers.pop(0) if self.answers else self.holder
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _: Any) -> None:
        self.killed += 1
        self.holder = None


class FakeActor:
    class holder:
        @staticmethod
        def remote() -> str:
            return "reference"


@pytest.fixture
def take_turn(monkeypatch: pytest.MonkeyPatch) -> TakeTurn:
    monkeypatch.setattr(admission, "POLL_S", 0.0)

    def run(ray: FakeRay, timeout_s: float = 60.0) -> tuple[Admission, list[str]]:
        monkeypatch.setattr(admission, "ray", ray)
        messages: list[str] = []
        waiting = Waiting(timeout_s, messages.append)
        admitted = admission.wait_for_turn(Applicant("mine", "ben", 0.0, "1 CPU"), waiting)
        waiting.end()
        return admitted, messages

    return run


def test_a_slow_start_of_our_own_is_waited_for(take_turn: TakeTurn) -> None:
    ray = FakeRay([GetTimeoutError(), GetTimeoutError(), OTHER])
    admitted, messages = take_turn(ray)
    assert ray.made == 1
    assert admitted.actor is not None
    assert messages == ["waiting for the cluster to start a process", ""]
    admitted.release()
    admitted.release()
    assert ray.killed == 1


def test_one_that_died_is_made_again(take_turn: TakeTurn) -> None:
    ray = FakeRay([ActorDiedError()])
    take_turn(ray)
    assert (ray.made, ray.killed) == (2, 1)


def test_a_cluster_that_cannot_start_it_fails_the_run(take_turn: TakeTurn) -> None:
    ray = FakeRay([RuntimeEnvSetupError("no space left")])
    with pytest.raises(RunFailed, match="cannot start a process for the run: .*no space left"):
        take_turn(ray)
    assert ray.killed == 1


@pytest.mark.parametrize(
    ("silent", "reason"),
    [(False, "before us is run theirs of ada, which needs 8 GPUs"), (True, "another run has it")],
)
def test_the_waiting_has_an_end_whoever_is_before_us(take_turn: TakeTurn, silent: bool, reason: str) -> None:
    ray = FakeRay([GetTimeoutError()] * 10_000 if silent else [], holder=OTHER)
    with pytest.raises(
        RunFailed,
        match=(
            r"gave up after .* \(resources.queue_timeout_s = 0.05\) of waiting for the turn to start: "
            rf"{reason}"
        ),
    ):
        take_turn(ray, timeout_s=0.05)
    assert ray.killed == 0


def test_what_is_needed_in_words() -> None:
    assert admission.resources_text([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 0.5}]) == "1 GPU and 2.5 CPUs"
    assert admission.resources_text([{}]) == "nothing"
