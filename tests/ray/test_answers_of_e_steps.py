"""What rank 0 hands out of E-steps comes to the other workers, and none of it stays in its process."""

from __future__ import annotations

from collections.abc import Callable

SCRIPT = """
from pcl_ray.on_ray import environment
environment.set_defaults()
import numpy as np
import ray
from pcl_ray.on_ray.connection import connected
from pcl_ray.training.e_step_actor import EStepAnswer
from pcl_ray.training.events import EventBoard

ROUNDS, SIZES = 30, (8, 2_000, 50_000)  # numbers: in the actor's reply, and in the store


@ray.remote(num_cpus=0)
class Actor:
    def run(self, number, size):
        return EStepAnswer(metrics={"number": number}, warnings=(np.full(size, number).tobytes(),))


def e_step(board):
    from pcl_ray.on_ray.processes import actor_e_step
    actor_e_step.world_size = lambda: 2
    made = object.__new__(actor_e_step.ActorEStep)
    made.calls, made.limit_s, made._board = actor_e_step.RayCalls(), 60, board
    return made


@ray.remote(num_cpus=0)
class Other:
    def receive(self, board, key):
        answer = e_step(board).receive(key)
        return answer and (answer.metrics["number"], len(answer.warnings[0]))


@ray.remote(num_cpus=0)
class RankZero:
    def train(self, actor, board, other):
        sender, process = e_step(board), ray._private.worker.global_worker.core_worker
        for number in range(ROUNDS):
            size = SIZES[number % len(SIZES)]
            answer = ray.get(actor.run.remote(number, size))
            sender.hand_out(f"run/{number}", answer)
            received = ray.get(other.receive.remote(board, f"run/{number}"))
            assert received == (number, 8 * size), received
            assert ray.get(other.receive.remote(board, "run/another")) is None
        return process.get_local_memory_store_bytes_used(), len(process.get_all_reference_counts())


with connected(2):
    board = ray.remote(EventBoard).options(num_cpus=0).remote()
    held, references = ray.get(RankZero.remote().train.remote(Actor.remote(), board, Other.remote()))
    assert held < 16_000, held  # bytes: what one answer has that came with the actor's reply
    assert references < 10, references
print("nothing stays")
"""


def test_nothing_stays_of_what_was_handed_out(said_by: Callable[[str], str]) -> None:
    assert "nothing stays" in said_by(SCRIPT)
