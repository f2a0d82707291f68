"""What a sweep would cost."""

from __future__ import annotations

import pytest
import torch
from small import DIGITS_RUN

from pcl_ray import config, plan
from pcl_ray.sweep.estimate import Cost, measure

BASE = config.load("digits", (*DIGITS_RUN, "resources.workers=0"))


def test_a_run_costs_its_training_and_its_feature_passes() -> None:
    """4 epochs of 4 steps of 64 images; features of 360 images before each of 3 E-steps and for the last
    evaluation."""
    whole = plan.make(BASE, 300, 60)
    steps = whole.steps_per_epoch * whole.global_batch
    assert Cost(trained=1.0, passed=0.0).of_run(whole, 4) == 4 * steps
    assert Cost(trained=0.0, passed=1.0).of_run(whole, 4) == 4 * 360
    assert Cost(trained=1.0, passed=0.0).of_run(whole, 3) == 3 * steps


def test_a_few_steps_are_timed_here() -> None:
    cost = measure(BASE)
    assert cost is not None
    assert cost.trained > 0
    assert cost.passed > 0


def test_they_are_timed_on_as_many_threads_as_a_trial_has(monkeypatch: pytest.MonkeyPatch) -> None:
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    measure(BASE)
    assert used == [1, *used[1:-1], before]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_trials_with_gpus_are_not_timed_on_a_machine_without() -> None:
    assert measure(config.with_overrides(BASE, {"resources.gpus_per_worker": 1})) is None
