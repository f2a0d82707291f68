"""The EM loop in one process: its events and their order, its records, and where it begins."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_states import assert_equal
from small_training import CPU, SmallTraining, alone

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.errors import RunFailed
from pcl_ray.evaluation import LabelledSample, knn_accuracy
from pcl_ray.features import FeatureShard
from pcl_ray.training.events import Event
from pcl_ray.training.feature_pass import FeaturePass
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


def content_of(task: TrainingTask) -> Any:
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    return torch.load(path, weights_only=True)


def test_the_order_of_events(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2")
    events = trained(small, small.task(tmp_path))
    epoch = ["phase", "phase", "epoch"]
    assert kinds(events) == ["start", "phase", *epoch, *epoch]
    phases = [event.text for event in events if event.kind == "phase"]
    assert phases == ["evaluation", *["features", "clustering"] * 2]  # first of the untrained encoder
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


def test_a_checkpoint_is_written_beside_the_next_epoch_whose_events_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallTraining.of("train.epochs=2", "train.log_every_steps=1")
    steps, seen = small.plan.steps_per_epoch, threading.Event()
    write, writes, marks = run_state.save, [], []

    def slow(*arguments: Any) -> Path:
        if not writes:
            assert seen.wait(60)  # until the next epoch has begun
        writes.append(list(small.events))
        return write(*arguments)

    def mark(phase: str, epoch: int, step: int) -> None:
        marks.append((phase, step))
        if (phase, step) == ("the M-step", steps + 1):
            seen.set()

    monkeypatch.setattr(run_state, "save", slow)
    task = small.task(tmp_path)
    options: dict[str, Any] = {"device": CPU, "broadcast": alone, "post": small.post, "mark": mark}
    train(task, small.splits, e_step=LocalEStep(small.config, small.splits), **options)
    before, _ = writes
    assert "epoch" not in kinds(before)
    told = [(event.kind, event.step) for event in small.events if event.kind in ("epoch", "step")]
    assert told == [  # in their order, whatever they had to wait for
        *(("step", step) for step in range(steps - 1)),
        ("epoch", steps - 1),
        *(("step", step) for step in range(steps, 2 * steps - 1)),
        ("epoch", 2 * steps - 1),
    ]


def test_the_checkpoint_is_of_its_epoch_whatever_is_trained_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit what `epochs` writes, which waits for it."""
    small = SmallTraining.of("train.epochs=3", "train.keep_checkpoints=3", "optimizer.warmup_epochs=0")
    beside, waited = small.task(tmp_path / "beside"), small.task(tmp_path / "waited")
    write = run_state.save

    def slow(*arguments: Any) -> Path:
        time.sleep(0.3)
        return write(*arguments)

    monkeypatch.setattr(run_state, "save", slow)
    trained(small, beside)
    monkeypatch.undo()
    options: dict[str, Any] = {"device": CPU, "broadcast": alone, "post": small.post}
    assert list(epochs(waited, small.splits, e_step=LocalEStep(small.config, small.splits), **options))
    one, other = (epoch_files.complete(task.checkpoints) for task in (beside, waited))
    assert [path.name for path in one] == [path.name for path in other]
    assert len(one) == 3
    for first, second in zip(one, other, strict=True):
        states = run_state.load(first), run_state.load(second)
        assert_equal(states[0].learner, states[1].learner)
        assert [len(state.history) for state in states] == [states[0].epoch] * 2


def test_a_write_that_failed_is_told_at_the_next_one_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: RunState, *arguments: Any) -> Path:
        raise RunFailed(f"no space after epoch {state.epoch}")

    monkeypatch.setattr(run_state, "save", full)
    for count, name in ((3, "longer"), (1, "short")):
        small = SmallTraining.of(f"train.epochs={count}", "optimizer.warmup_epochs=0")
        with pytest.raises(RunFailed, match="no space after epoch 1"):
            trained(small, small.task(tmp_path / name))
        assert "epoch" not in kinds(small.events)  # it was not safe


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
    assert kinds(events) == ["start", *["phase"] * 5, "epoch"]
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


@pytest.mark.parametrize("small_crops", [0, 2])
def test_the_first_look_shows_the_untrained_encoder_and_changes_nothing(
    tmp_path: Path, small_crops: int
) -> None:
    words = ("train.epochs=1", "optimizer.warmup_epochs=0", "tracking.enabled=true")
    small = SmallTraining.of(*words, f"augment.small_crops={small_crops}")
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
    assert (views.shape, views.dtype) == ((8, 2 + small_crops, 8, 8, 1), "uint8")
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


LINES = {"eval/pixels/knn_top1", "eval/untrained/knn_top1"}


def accuracy(small: SmallTraining, shards: dict[str, FeatureShard], ending: str = "") -> float:
    """kNN accuracy of the labelled sample by these shards."""
    train, holdout = small.splits.train.labels, small.splits.holdout
    assert train is not None
    assert holdout is not None
    assert holdout.labels is not None
    sample = LabelledSample.of(train, holdout.labels, small.config.evaluation)
    return knn_accuracy(
        torch.from_numpy(shards[f"bank{ending}"].features),
        torch.tensor(train[sample.bank_B]),
        torch.from_numpy(shards[f"queries{ending}"].features),
        torch.tensor(holdout.labels[sample.queries_Q]),
        neighbours=small.config.evaluation.knn_neighbours,
        temperature=small.config.evaluation.knn_temperature,
    )


def lines_of(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name in LINES}


def test_reference_lines_stand_beside_every_evaluation_and_are_measured_once(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=4", "evaluation.every_epochs=2", "evaluation.bank_images=100")
    task = small.task(tmp_path)
    trained(small, task)
    history = [entry["metrics"] for entry in last_state(task).history]
    assert ["eval/knn_top1" in metrics for metrics in history] == [False, True, False, True]
    first = lines_of(history[0])  # where a run that goes on finds them
    assert first.keys() == LINES
    assert [lines_of(metrics) for metrics in history[1:]] == [first, {}, first]
    assert ["perf/reference_seconds" in metrics for metrics in history] == [True, False, False, False]
    # the untrained encoder's, and not that of a later one
    shards = small.features().labelled(small.learner())
    assert first["eval/untrained/knn_top1"] == accuracy(small, shards)


def test_a_run_that_goes_on_has_the_lines_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallTraining.of("train.epochs=3")
    whole, cut = small.task(tmp_path / "whole"), small.task(tmp_path / "cut")
    expected = lines_of(trained(small, whole)[-1].metrics)
    e_step = LocalEStep(small.config, small.splits)
    course = epochs(cut, small.splits, device=CPU, e_step=e_step, broadcast=alone, post=small.post)
    assert next(course) == 1
    course.close()
    monkeypatch.setattr(FeaturePass, "references", None)  # to measure them again would fail
    trained(small, cut)
    assert [lines_of(entry["metrics"]) for entry in last_state(cut).history] == [expected] * 3


@pytest.mark.parametrize("words", [("evaluation.reference_lines=false",), ("data.holdout=0",)])
def test_without_reference_lines_nothing_is_measured(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeaturePass, "references", None)
    small = SmallTraining.of("train.epochs=2", *words)
    task = small.task(tmp_path)
    trained(small, task)
    assert not any(lines_of(entry["metrics"]) for entry in last_state(task).history)


def test_reference_lines_change_nothing_in_training(tmp_path: Path) -> None:
    weights = []
    for wanted in ("true", "false"):
        small = SmallTraining.of("train.epochs=2", f"evaluation.reference_lines={wanted}")
        task = small.task(tmp_path / wanted)
        trained(small, task)
        weights.append(last_state(task).learner["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_with_the_feature_bank_the_evaluation_looks_at_fresh_features(tmp_path: Path) -> None:
    """The E-step takes the bank's rows; the accuracy is that of the encoder as it is."""
    small = SmallTraining.of("train.epochs=3", "e_step.features=bank", "evaluation.bank_images=100")
    task = small.task(tmp_path)
    trained(small, task)
    state = last_state(task)
    learner = small.learner()
    learner.load_state_dict(state.learner)
    shards = small.features().labelled(learner)
    for name, ending in (("eval/knn_top1", ""), ("eval/head/knn_top1", "/head")):
        assert state.history[-1]["metrics"][name] == accuracy(small, shards, ending)


def test_a_run_that_pauses_goes_on_from_there_and_ends_the_same(tmp_path: Path) -> None:
    """Asked only after epochs with a checkpoint; the event of the last one has been posted by then."""
    small = SmallTraining.of("train.epochs=5", "train.checkpoint_every_epochs=2")
    whole, paused = small.task(tmp_path / "whole"), small.task(tmp_path / "paused")
    trained(small, whole)

    ended, asked = [], 0
    for _ in range(3):
        small.events.clear()

        def pauses() -> bool:
            nonlocal asked
            asked += 1
            return True

        e_step = LocalEStep(small.config, small.splits)
        ended.append(
            train(
                paused,
                small.splits,
                device=CPU,
                e_step=e_step,
                broadcast=alone,
                post=small.post,
                pauses=pauses,
            )
        )
        done = [event.epoch + 1 for event in small.events if event.kind == "epoch"]
        assert done[-1] == last_state(paused).epoch
    assert ended == [False, False, True]
    assert asked == 2
    assert_equal(content_of(paused), content_of(whole))
