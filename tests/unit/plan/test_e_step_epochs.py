from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from planned import config_of, plan_of

from pcl_ray.config import EStepConfig
from pcl_ray.plan import check, e_step_epochs, e_step_number


def settings(warmup: int, every: int, early: int, early_every: int) -> EStepConfig:
    return EStepConfig(
        warmup_epochs=warmup, every_epochs=every, early_epochs=early, early_every_epochs=early_every
    )


def epoch_by_epoch(e_step: EStepConfig, epochs: int) -> list[int]:
    """The schedule as one would follow it with a finger: how long to wait depends on where the last was."""
    found, wait = [], 0
    for epoch in range(e_step.warmup_epochs, epochs):
        past = epoch - e_step.warmup_epochs
        if past == e_step.early_epochs:
            wait = 0  # the regular ones begin
        if not wait:
            found.append(epoch)
            wait = e_step.early_every_epochs if past < e_step.early_epochs else e_step.every_epochs
        wait -= 1
    return found


SETTINGS = st.builds(settings, st.integers(0, 9), st.integers(1, 5), st.integers(0, 12), st.integers(1, 6))


@given(SETTINGS, st.integers(1, 40))
def test_seldom_at_first_then_at_every_so_many(e_step: EStepConfig, epochs: int) -> None:
    assert list(e_step_epochs(e_step, epochs)) == epoch_by_epoch(e_step, epochs)


@given(SETTINGS, st.integers(1, 40))
def test_e_steps_are_numbered_in_their_order(e_step: EStepConfig, epochs: int) -> None:
    scheduled = e_step_epochs(e_step, epochs)
    assert [e_step_number(e_step, epoch) for epoch in scheduled] == list(range(len(scheduled)))
    for epoch in range(e_step.warmup_epochs, epochs):  # in between the last one is in force
        in_force = max(earlier for earlier in scheduled if earlier <= epoch)
        assert e_step_number(e_step, epoch) == scheduled.index(in_force)
    assert all(e_step_number(e_step, epoch) < 0 for epoch in range(e_step.warmup_epochs))


def test_a_plan_has_early_e_steps_and_the_final_one() -> None:
    plan = plan_of(
        train__epochs=12, e_step__warmup_epochs=2, e_step__early_epochs=5, e_step__early_every_epochs=3
    )
    assert plan.e_step_epochs == (2, 5, 7, 8, 9, 10, 11, 12)
    assert plan_of(e_step__early_epochs=5) == plan_of()  # 1 is the early distance that says nothing


def test_an_early_distance_without_early_epochs_is_refused() -> None:
    (problem,) = check(config_of(e_step__early_every_epochs=2), 1000)[0]
    assert problem.name == "e_step.early_every_epochs"
    assert "e_step.early_epochs" in problem.message


def test_a_bank_of_slow_rows_is_refused_with_rare_early_e_steps() -> None:
    knobs = {"e_step__features": "bank", "e_step__bank_momentum": 0.9, "e_step__early_epochs": 4}
    (problem,) = check(config_of(**knobs, e_step__early_every_epochs=2), 1000)[0]
    assert problem.name == "e_step.bank_momentum"
    assert "e_step.early_every_epochs" in problem.message
    assert not check(config_of(**knobs), 1000)[0]
