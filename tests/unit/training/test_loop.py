"""The EM loop in one process: its events and their order, its records, and where it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import CPU, SmallTraining, alone

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.training.events import Event
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import epochs, train
from pcl_ray.training.training_task import TrainingTask


def trained(small: SmallTraining, task: TrainingTask) -> list[Event]:
    small.events.clear()
    e_step = LocalEStep(small.config, small.splits)
    train(task, small.splits, device=CPU, e_step=e_step, broadcast=alone, post=small.post)
    return list(small.events)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if event.kind not in ("alive", "step", "snapshot")]


def last_state(task: TrainingTask) -> RunState:
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    return run_state.load(path)


def test_the_order_of_events(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    events = trained(small, small.task(tmp_path))
    epoch = ["phase", "phase", "epoch"]
    assert kinds(events) == ["start", *epoch, *epoch]
    phases = [event.text for event in events if event.kind == "phase"]
    assert phases == ["features", "clustering"] * 2
    steps = small.plan.steps_per_epoch
    ends = [(event.epoch, event.step) for event in events if event.kind == "epoch"]
    assert ends == [(0, steps - 1), (1, 2 * steps - 1)]


def test_an_epochs_event_comes_after_its_checkpoint(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    task = small.task(tmp_path)
    found: list[int] = []
    post = small.post

    def noting(event: Event) -> None:
        post(event)
        if event.kind == "epoch":
            found.append(last_state(task).epoch)

    small.post = noting  # type: ignore[method-assign]
    trained(small, task)
    assert found == [1, 2]


def test_what_is_told_is_what_the_checkpoint_holds(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    task = small.task(tmp_path)
    told = [event.metrics for event in trained(small, task) if event.kind == "epoch"]
    history = last_state(task).history
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert [entry["metrics"] for entry in history] == told
    for metrics in told:
        assert metrics["perf/e_step_seconds"] <= metrics["perf/epoch_seconds"]
        share = metrics["perf/e_step_seconds"] / metrics["perf/epoch_seconds"]
        assert metrics["perf/e_step_share"] == pytest.approx(share)
    minutes = sum(metrics["perf/epoch_seconds"] for metrics in told) / 60 * small.plan.devices
    assert told[1]["perf/device_minutes"] == pytest.approx(minutes)


def test_it_gives_back_how_many_epochs_are_done_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=3")
    task = small.task(tmp_path)
    options: dict[str, Any] = {"device": CPU, "broadcast": alone, "post": small.post}
    first = epochs(task, small.splits, e_step=LocalEStep(small.config, small.splits), **options)
    assert [next(first), next(first)] == [1, 2]
    first.close()
    again = epochs(task, small.splits, e_step=LocalEStep(small.config, small.splits), **options)
    assert list(again) == [3]
    starts = [event.epoch for event in small.events if event.kind == "start"]
    assert starts == [0, 2]


def test_a_run_that_is_done_trains_nothing(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=1", "optimizer.warmup_epochs=0")
    task = small.task(tmp_path)
    trained(small, task)
    assert kinds(trained(small, task)) == ["start"]


def test_without_warm_up_there_is_an_e_step_before_the_first_epoch(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=1", "optimizer.warmup_epochs=0", "e_step.warmup_epochs=0")
    task = small.task(tmp_path)
    events = trained(small, task)
    assert kinds(events) == ["start", "phase", "phase", "phase", "phase", "epoch"]
    (entry,) = last_state(task).history
    assert "train/loss_prototype" in entry["metrics"]
    assert entry["metrics"]["perf/e_step_seconds"] <= entry["metrics"]["perf/epoch_seconds"]


def test_a_warm_up_left_to_others_owes_its_e_step(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    trained(small, small.task(tmp_path / "one", warmup_copy=str(tmp_path / "warm-up")))
    path = epoch_files.latest(tmp_path / "warm-up")
    assert path is not None
    copy = run_state.load(path)
    assert (copy.epoch, copy.clusters, copy.e_step.owed) == (1, None, True)
    assert "eval/rankme" not in copy.history[0]["metrics"]

    other = small.task(tmp_path / "two")
    run_state.save(copy, other.checkpoints, keep=2)
    events = trained(small, other)
    assert kinds(events)[:4] == ["start", "phase", "phase", "figures"]
    (owed,) = [event for event in events if event.kind == "figures"]
    assert (owed.epoch, owed.step) == (0, copy.history[0]["step"])
    assert {"eval/rankme", "perf/owed_seconds", "cluster/0/phi_mean"} <= owed.metrics.keys()
    one, two = last_state(small.task(tmp_path / "one")), last_state(other)
    assert not two.e_step.owed
    weights = [state.learner["model"] for state in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_fork_with_other_knobs_begins_with_an_e_step(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    task = small.task(tmp_path / "one")
    trained(small, task)
    state = last_state(task)
    longer = SmallTraining.of("train.epochs=3", "e_step.num_clusters=9")
    fork = longer.task(tmp_path / "two")
    run_state.save(replace(state, e_step=replace(state.e_step, anew=True)), fork.checkpoints, keep=2)
    trained(longer, fork)
    last = last_state(fork)
    assert last.clusters is not None
    assert [c.num_clusters for c in last.clusters.clusterings] == [9]
    assert "train/accuracy_prototype_0" in last.history[2]["metrics"]
    assert "train/accuracy_prototype_1" not in last.history[2]["metrics"]


def test_the_first_look_shows_the_untrained_encoder_and_changes_nothing(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=1", "optimizer.warmup_epochs=0", "tracking.enabled=true")
    looked, plain = small.task(tmp_path / "one", first_look=True), small.task(tmp_path / "two")
    events = trained(small, looked)
    shown = [event for event in events if event.kind == "snapshot" and not event.epoch]
    assert [event.snapshot.note for event in shown if event.snapshot is not None] == ["untrained encoder"]
    assert [event.kind for event in events if event.kind in ("snapshot", "views")][:2] == [
        "snapshot",
        "views",
    ]
    views = next(event.views for event in events if event.kind == "views")
    assert views is not None
    assert (views.shape, views.dtype) == ((8, 2, 8, 8, 1), "uint8")
    trained(small, plain)
    weights = [last_state(task).learner["model"] for task in (looked, plain)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_shown_costs_a_warning_alone(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=1", "optimizer.warmup_epochs=0", "tracking.enabled=true")
    post = small.post

    def refusing(event: Event) -> None:
        post(event)
        if event.kind == "views":
            raise OSError("no place for pictures")

    small.post = refusing  # type: ignore[method-assign]
    events = trained(small, small.task(tmp_path))
    assert "epoch" in kinds(events)
    assert small.texts("warning") == [
        "something could not be shown (OSError: no place for pictures); training goes on"
    ]
