"""A checkpoint within an epoch of two workers: both go on from it exactly; one can, too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import gloo_member, saved_by_workers
from small_training import CPU, SmallTraining

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.features import FeatureShard
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.training.e_step_schedule import PendingEStep
from pcl_ray.training.loop import train
from pcl_ray.training.training_task import TrainingTask

KNOBS = (
    "train.epochs=9",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=2",
    "e_step.warmup_epochs=8",
    "evaluation.every_epochs=9",
    "evaluation.reference_lines=false",
)


class Cut(Exception):
    pass


class NoEStep:
    """Warm-up needs none."""

    def begin(self, key: str, request: Any, shards: dict[str, FeatureShard], previous: Any) -> PendingEStep:
        raise AssertionError(f"an E-step in the warm-up: {key}")


def broadcast(value: Any, /) -> Any:
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def trained_until(folder: Path, epoch: int, step: int) -> None:
    """Trains until before this step of this epoch, on all workers at once, as a kill would end it."""
    small = SmallTraining.of(*KNOBS)

    def mark(phase: str, at_epoch: int, at_step: int) -> None:
        end = epoch * small.plan.steps_per_epoch + step
        if phase == "the M-step" and (at_epoch, at_step) == (epoch, end):
            raise Cut

    task = TrainingTask(small.config, small.plan, str(folder))
    options: dict[str, Any] = {"e_step": NoEStep(), "broadcast": broadcast, "post": small.post, "mark": mark}
    with suppress(Cut):
        train(task, small.splits, device=CPU, **options)
    starts = [event.step for event in small.events if event.kind == "start"]
    assert len(starts) == (rank() == 0)


def whole(folder: Path) -> None:
    trained_until(folder, 1, 3)


def interrupted(folder: Path) -> None:
    trained_until(folder, 0, 3)
    trained_until(folder, 1, 3)


def worker(number: int, folder: str) -> None:
    with gloo_member(number, 2, folder, 60):
        whole(Path(folder) / "whole")
        interrupted(Path(folder) / "interrupted")
        trained_until(Path(folder) / "fewer", 0, 3)
        dist.barrier()
    torch.save(number, Path(folder) / f"worker_{number}.pt")


def goes_on(number: int, folder: str) -> None:
    with gloo_member(number, 2, folder, 60):
        trained_until(Path(folder), 1, 3)
        dist.barrier()
    torch.save(number, Path(folder) / f"worker_{number}.pt")


def newest(folder: Path) -> RunState:
    path = epoch_files.latest(folder / "checkpoints")
    assert path is not None
    assert epoch_files.position(path) == (1, 2)
    return run_state.load(path)


def assert_same(a: RunState, b: RunState) -> None:
    for part in ("model", "queue"):
        for name, value in a.learner[part].items():
            other = b.learner[part][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert a.part is not None
    assert b.part is not None
    assert torch.equal(a.part.buffers, b.part.buffers)
    assert torch.equal(a.part.tally["sums"], b.part.tally["sums"])
    assert all(torch.equal(x, y) for x, y in zip(a.random_states, b.random_states, strict=True))
    assert a.history[0]["metrics"]["train/loss"] == b.history[0]["metrics"]["train/loss"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    assert saved_by_workers(worker, 2, folder, 200) == [0, 1]
    return folder


def test_two_workers_go_on_within_an_epoch_as_if_nothing_had_been(two: Path) -> None:
    state = newest(two / "whole")
    assert state.part is not None
    assert len(state.part.buffers) == 2
    assert not torch.equal(*state.part.buffers)  # batch norm has seen other halves of the batches
    assert_same(state, newest(two / "interrupted"))


def test_one_worker_goes_on_where_two_were(two: Path) -> None:
    trained_until(two / "fewer", 1, 3)
    state = newest(two / "fewer")
    assert state.part is not None
    assert len(state.part.buffers) == 1
    assert [entry["step"] for entry in state.history] == [3]


def test_two_workers_go_on_where_one_was(tmp_path: Path) -> None:
    trained_until(tmp_path, 0, 3)
    assert saved_by_workers(goes_on, 2, tmp_path, 100) == [0, 1]
    state = newest(tmp_path)
    assert state.part is not None
    assert len(state.part.buffers) == 2
