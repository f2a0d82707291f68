"""Runs whose loss or weights are not finite: they end, or go back with a smaller step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import CPU, SmallTraining, alone
from torch.optim.optimizer import register_optimizer_step_post_hook

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.errors import NotFinite, RunFailed
from pcl_ray.model.divergence import Rollbacks, stop_if_weights_are_not_finite
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import train
from pcl_ray.training.training_task import TrainingTask


def trained(small: SmallTraining, task: TrainingTask) -> None:
    options: dict[str, Any] = {"e_step": LocalEStep(small.config, small.splits), "broadcast": alone}
    train(task, small.splits, device=CPU, post=small.post, **options)


def rollbacks(value: str) -> Rollbacks:
    return Rollbacks(SmallTraining.of(f"train.on_divergence={value}").config.train)


def test_a_run_stops_unless_it_may_go_back() -> None:
    failure = NotFinite("the loss is nan")
    with pytest.raises(NotFinite, match="the loss is nan"):
        rollbacks("stop").after(failure)


def test_it_goes_back_three_times_each_time_to_half_the_rate() -> None:
    back = rollbacks("roll_back")
    assert (back.rate_scale, back.figures()) == (1.0, {})
    for scale in (0.5, 0.25, 0.125):
        assert f"with {scale:g} of the learning rate" in back.after(NotFinite("the loss is nan"))
        assert back.rate_scale == scale
    assert back.figures() == {"train/rollbacks": 3.0}
    with pytest.raises(RunFailed, match="the loss is nan.*gone back 3 times already"):
        back.after(NotFinite("the loss is nan"))


def test_weights_that_are_not_finite_are_noticed_wherever_they_are() -> None:
    learner = SmallTraining.of().learner()
    stop_if_weights_are_not_finite(learner, 0, 3)
    list(learner.pair.key.parameters())[-1].data[0] = torch.nan
    with pytest.raises(NotFinite, match="not finite after epoch 1, step 4"):
        stop_if_weights_are_not_finite(learner, 0, 3)


@contextmanager
def blows_up_above(rate: float, after: int) -> Iterator[None]:
    """Steps with a larger learning rate than this leave a weight that is not finite, but for the first."""
    steps = 0

    def blow_up(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        (group, *_) = optimizer.param_groups
        if group["lr"] > rate and steps > after:
            group["params"][0].data.flatten()[0] = torch.inf

    hook = register_optimizer_step_post_hook(blow_up)
    try:
        yield
    finally:
        hook.remove()


KNOBS = ("train.epochs=3", "optimizer.lr=0.08", "optimizer.schedule=step", "optimizer.milestones=[]")


@pytest.mark.parametrize("after", [2, 6, 7])  # in the first epoch, in the second, with its end's weights
def test_a_run_goes_back_to_its_last_checkpoint_and_ends_well(tmp_path: Path, after: int) -> None:
    small = SmallTraining.of(*KNOBS, "optimizer.warmup_epochs=0", "train.on_divergence=roll_back")
    task = small.task(tmp_path)
    with blows_up_above(0.03, after):  # 0.08 and 0.04, not 0.02
        trained(small, task)
    warnings = [text for text in small.texts("warning") if "Going back" in text]
    assert len(warnings) == 2
    assert "(1 of 3 times" in warnings[0]
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    state = run_state.load(path)
    assert (state.epoch, state.rollbacks) == (3, 2)
    assert all(torch.isfinite(value).all() for value in state.learner["model"].values())
    rates = [entry["metrics"]["train/lr"] for entry in state.history]
    counts = [entry["metrics"].get("train/rollbacks", 0) for entry in state.history]
    good = after // small.plan.steps_per_epoch  # epochs that had ended before
    assert rates == pytest.approx([0.08] * good + [0.02] * (3 - good))
    assert counts == [0.0] * good + [2.0] * (3 - good)
    assert [event.kind for event in small.events].count("start") == 1  # nobody was lost


def test_a_run_that_went_back_goes_on_with_the_smaller_rate(tmp_path: Path) -> None:
    small = SmallTraining.of(*KNOBS, "optimizer.warmup_epochs=0", "train.on_divergence=roll_back")
    longer = SmallTraining.of(
        *KNOBS, "optimizer.warmup_epochs=0", "train.on_divergence=roll_back", "train.epochs=4"
    )
    task = small.task(tmp_path)
    with blows_up_above(0.05, 6):
        trained(small, task)
        trained(longer, longer.task(tmp_path))
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    assert [e["metrics"]["train/lr"] for e in run_state.load(path).history][-2:] == pytest.approx([0.04] * 2)


def test_a_run_that_only_stops_names_the_weights(tmp_path: Path) -> None:
    small = SmallTraining.of(*KNOBS, "optimizer.warmup_epochs=0")
    task = small.task(tmp_path)
    with blows_up_above(0.03, 7), pytest.raises(NotFinite, match="after epoch 2"):
        trained(small, task)
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    assert all(torch.isfinite(value).all() for value in run_state.load(path).learner["model"].values())
