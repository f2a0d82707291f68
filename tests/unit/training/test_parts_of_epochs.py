"""Checkpoints within an epoch: a run that goes on from one ends as the run that was never interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from same_states import assert_equal
from small_training import CPU, SmallTraining, alone

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.training.events import Event
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import train
from pcl_ray.training.training_task import TrainingTask
from pcl_ray.training.worker_checkpoints import CheckpointCadence

EVERY_TWO_STEPS = ("train.epochs=3", "train.log_every_steps=1", "train.checkpoint_every_steps=2")


class Cut(Exception):
    """Ends a training as kill −9 would: nothing of it runs on."""


def trained(small: SmallTraining, task: TrainingTask, cut_at: int | None = None) -> None:
    """Trains; with `cut_at` until the figures of this global step are told."""

    def post(event: Event) -> None:
        small.post(event)
        if event.kind == "step" and event.step == cut_at:
            raise Cut

    e_step = LocalEStep(small.config, small.splits)
    train(task, small.splits, device=CPU, e_step=e_step, broadcast=alone, post=post)


def end(task: TrainingTask) -> RunState:
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    return run_state.load(path)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("encoder.batch_norm_parts=2", "loss.queue_negatives=other_clusters"),
        ("e_step.overlap=true", "e_step.switch_step=1"),
        ("e_step.features=bank",),
        ("train.micro_batch=16", "optimizer.name=adamw"),
    ],
)
def test_a_run_cut_within_an_epoch_ends_as_one_that_was_not(tmp_path: Path, words: tuple[str, ...]) -> None:
    small = SmallTraining.of(*EVERY_TWO_STEPS, *words)
    steps = small.plan.steps_per_epoch
    assert steps >= 4
    whole = small.task(tmp_path / "whole")
    trained(small, whole)
    cut = small.task(tmp_path / "cut")
    for step in (2, steps + 2, 2 * steps + 2):  # a checkpoint after two steps of an epoch, cut in the fourth
        with pytest.raises(Cut):
            trained(small, cut, cut_at=step)
        newest = epoch_files.latest(cut.checkpoints)
        assert newest is not None
        assert epoch_files.position(newest) == (step // steps, 2)
    small.events.clear()
    trained(small, cut)
    start = next(event for event in small.events if event.kind == "start")
    assert (start.epoch, start.step) == (2, 2 * steps + 2)
    states = [vars(end(task)) for task in (cut, whole)]
    plain = [state | {"clusters": None, "e_step": vars(state["e_step"])} for state in states]
    assert_equal(*plain)
    clusters = [end(task).clusters for task in (cut, whole)]
    assert clusters[0] is not None
    assert clusters[1] is not None
    assert_equal(clusters[0].state_dict(), clusters[1].state_dict())
    assert [path.name for path in cut.checkpoints.glob("*")] == [
        path.name for path in whole.checkpoints.glob("*")
    ]


def test_checkpoints_within_epochs_change_nothing(tmp_path: Path) -> None:
    small = SmallTraining.of(*EVERY_TWO_STEPS)
    never = SmallTraining.of(*EVERY_TWO_STEPS, "train.checkpoint_every_steps=null")
    often, seldom = small.task(tmp_path / "often"), never.task(tmp_path / "seldom")
    trained(small, often)
    trained(never, seldom)
    assert_equal(end(often).learner, end(seldom).learner)


def test_the_first_epoch_is_gone_on_with_without_another_first_look(tmp_path: Path) -> None:
    small = SmallTraining.of(*EVERY_TWO_STEPS)
    task = small.task(tmp_path, first_look=True)
    with pytest.raises(Cut):
        trained(small, task, cut_at=2)
    assert small.texts("snapshot")
    small.events.clear()
    with pytest.raises(Cut):
        trained(small, task, cut_at=2)
    assert not small.texts("snapshot")
    metrics = run_state.load(task.checkpoints / "epoch_00000_step_00002.pt").part.metrics  # type: ignore[union-attr]
    assert "eval/pixels/knn_top1" in metrics


def test_a_damaged_one_is_skipped_for_the_one_before(tmp_path: Path) -> None:
    small = SmallTraining.of(*EVERY_TWO_STEPS)
    task, whole = small.task(tmp_path / "damaged"), small.task(tmp_path / "whole")
    trained(small, whole)
    steps = small.plan.steps_per_epoch
    with pytest.raises(Cut):
        trained(small, task, cut_at=2 * steps + 2)
    newest = epoch_files.latest(task.checkpoints)
    assert newest is not None
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    small.events.clear()
    trained(small, task)
    (warning,) = [text for text in small.texts("warning") if "going on from the one before" in text]
    assert newest.name in warning
    assert "checksum" in warning
    assert (newest.parent / f"{newest.name}.damaged").is_file()
    assert next(event.epoch for event in small.events if event.kind == "start") == 2
    assert_equal(end(task).learner, end(whole).learner)


@pytest.mark.parametrize("damage", ["empty", "folder", "foreign", "pickle", "cut"])
def test_whatever_is_no_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    small = SmallTraining.of("train.epochs=2", "optimizer.warmup_epochs=0")
    task = small.task(tmp_path)
    trained(small, task)
    newest = epoch_files.latest(task.checkpoints)
    assert newest is not None
    content = newest.read_bytes()
    newest.unlink()
    match damage:
        case "empty":
            newest.touch()
        case "folder":
            newest.mkdir()
        case "foreign":
            torch.save({"state_dict": {}}, newest)
        case "pickle":
            newest.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
        case "cut":
            newest.write_bytes(content[:-20])
    small.events.clear()
    trained(small, task)
    assert next(event.epoch for event in small.events if event.kind == "start") == 1
    assert end(task).epoch == 2
    assert not (tmp_path / "run").exists()


def test_where_none_is_whole_nothing_is_trained_anew(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=1", "optimizer.warmup_epochs=0")
    task = small.task(tmp_path)
    trained(small, task)
    for path in epoch_files.complete(task.checkpoints):
        path.write_bytes(b"")
    with pytest.raises(Exception, match=r"no checkpoint of the run can be read: .*epoch_00001\.pt"):
        trained(small, task)


def test_a_later_version_is_not_skipped(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=2", "optimizer.warmup_epochs=0")
    task = small.task(tmp_path)
    trained(small, task)
    newest = epoch_files.latest(task.checkpoints)
    assert newest is not None
    torch.save({**torch.load(newest, weights_only=True), "version": 99}, newest)
    with pytest.raises(Exception, match="upgrade pcl_ray"):
        trained(small, task)
    assert newest.is_file()


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    small = SmallTraining.of("train.epochs=4", "train.keep_checkpoints=1", "train.keep_best=1")
    task = small.task(tmp_path)
    trained(small, task)
    accuracies = [entry["metrics"]["eval/knn_top1"] for entry in end(task).history]
    best = accuracies.index(max(accuracies)) + 1
    names = [path.name for path in epoch_files.complete(task.checkpoints)]
    assert names == [f"epoch_{epoch:05d}.pt" for epoch in sorted({best, 4})]


def test_of_equal_ones_the_earlier_is_best_and_without_labels_rankme_decides() -> None:
    def history(name: str, *values: float) -> list[dict[str, Any]]:
        return [{"epoch": epoch, "metrics": {name: value}} for epoch, value in enumerate(values)]

    assert epoch_files.best_epochs(history("eval/knn_top1", 0.5, 0.7, 0.7), 2) == [2, 3]
    assert epoch_files.best_epochs(history("eval/rankme", 5.0, 9.0, 7.0), 1) == [2]
    assert epoch_files.best_epochs(history("train/loss", 1.0), 1) == []


def test_the_clock_makes_one_due_once() -> None:
    settings = SmallTraining.of("train.checkpoint_every_minutes=0.0001").config.train
    cadence = CheckpointCadence(settings, CPU)
    while not cadence.is_due(1):
        pass
    cadence.restart(1)
    assert not cadence.is_due(2)
    by_steps = CheckpointCadence(SmallTraining.of("train.checkpoint_every_steps=3").config.train, CPU)
    assert [steps for steps in range(1, 6) if by_steps.is_due(steps)] == [3, 4, 5]
    by_steps.restart(3)
    assert not by_steps.is_due(5)
    assert by_steps.is_due(6)


def test_a_folder_of_parts_is_pruned_to_the_newest(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for epochs, steps in ((1, 0), (1, 4), (2, 0), (2, 4), (2, 8), (3, 0), (3, 2)):
        epoch_files.path_of(tmp_path, epochs, steps).touch()
    epoch_files.prune(tmp_path, keep=1, kept_epochs=[1])
    names = [path.name for path in epoch_files.complete(tmp_path)]
    assert names == ["epoch_00001.pt", "epoch_00003.pt", "epoch_00003_step_00002.pt"]
