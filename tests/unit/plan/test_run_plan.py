from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import N, config_of, plan_of

from pcl_ray.plan import check, make, with_workers, worker_counts


def test_the_numbers_of_a_plan() -> None:
    plan = plan_of(resources__workers=2, loss__negative_prototypes=7)
    assert (plan.num_images, plan.num_holdout, plan.world_size) == (1000, 200, 2)
    assert (plan.batch_per_worker, plan.global_batch) == (50, 100)
    assert (plan.steps_per_epoch, plan.epochs, plan.total_steps) == (10, 10, 100)
    assert plan.num_clusters == (10, 50)
    assert plan.negatives == (7, 7)
    assert plan.queue_size == 500
    assert (plan.feature_bytes, plan.assignment_bytes, plan.queue_bytes) == (
        1000 * 16 * 4,
        1000 * 8 * 2,
        500 * 16 * 4,
    )


def test_no_workers_is_one_process_and_all_negatives_is_none() -> None:
    plan = plan_of(resources__workers=0)
    assert (plan.world_size, plan.batch_per_worker, plan.negatives) == (1, 100, (None, None))


def test_the_incomplete_last_batch_is_dropped() -> None:
    assert make(config_of(), 1099).steps_per_epoch == 10


@pytest.mark.parametrize(
    ("warmup", "every", "expected"),
    [
        (0, 1, (0, 1, 2, 3, 4, 5)),
        (2, 1, (2, 3, 4, 5)),
        (1, 2, (1, 3, 5)),
        (2, 10, (2, 5)),
        (4, 1, (4, 5)),
        (5, 1, ()),
        (9, 1, ()),
    ],
)
def test_epochs_that_begin_with_new_clusters(warmup: int, every: int, expected: tuple[int, ...]) -> None:
    """The last entry is the final clustering, after training; none if no epoch uses clusters."""
    plan = plan_of(train__epochs=5, e_step__warmup_epochs=warmup, e_step__every_epochs=every)
    assert plan.e_step_epochs == expected
    assert [epoch for epoch in range(6) if plan.clusters_before(epoch)] == list(expected)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, (0, 1, 2, 3, 4)), (2, (1, 3, 4)), (5, (4,)), (0, (4,)), (9, (4,))]
)
def test_epochs_that_end_with_an_evaluation(every: int, expected: tuple[int, ...]) -> None:
    plan = plan_of(train__epochs=5, evaluation__every_epochs=every)
    assert plan.evaluation_epochs == expected
    assert [epoch for epoch in range(5) if plan.evaluates_after(epoch)] == list(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"schedule": "cosine"},
            {
                0: 0.4,
                25: 0.2 * (1 + math.cos(math.pi / 4)),
                50: 0.2,
                75: 0.2 * (1 - math.cos(math.pi / 4)),
                100: 0.0,
            },
        ),
        ({"schedule": "constant"}, {0: 0.4, 50: 0.4, 99: 0.4}),
        (
            {"schedule": "step", "milestones": [3, 6]},
            {0: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 99: 0.004},
        ),
        ({"schedule": "step", "milestones": [3], "gamma": 0.5}, {29: 0.4, 30: 0.2}),
        ({"schedule": "step", "milestones": []}, {99: 0.4}),
        # Warm-up over 20 steps from 0; the cosine then has 80 steps left.
        ({"schedule": "cosine", "warmup_epochs": 2}, {0: 0.02, 9: 0.2, 19: 0.4, 20: 0.4, 60: 0.2, 100: 0.0}),
        ({"schedule": "constant", "warmup_epochs": 0.25}, {0: 0.4 / 3, 1: 0.8 / 3, 2: 0.4, 3: 0.4}),
        ({"schedule": "step", "milestones": [1], "warmup_epochs": 2}, {9: 0.2, 19: 0.4, 20: 0.04}),
    ],
)
def test_learning_rate_against_hand_values(settings: dict[str, Any], expected: dict[int, float]) -> None:
    plan = plan_of(**{f"optimizer__{name}": value for name, value in settings.items()})
    assert {step: plan.lr_at(step) for step in expected} == pytest.approx(expected, abs=1e-12)


@given(
    schedule=st.sampled_from(["cosine", "step", "constant"]),
    warmup=st.floats(0, 9.99),
    epochs=st.integers(10, 12),
    batch=st.integers(50, 300),
)
def test_learning_rate_rises_and_then_never_rises_again(
    schedule: str, warmup: float, epochs: int, batch: int
) -> None:
    changed = {
        "optimizer__schedule": schedule,
        "optimizer__warmup_epochs": warmup,
        "train__epochs": epochs,
        "train__batch_size": batch,
    }
    plan = plan_of(**changed, optimizer__milestones=[5, 8])
    rates = [plan.lr_at(step) for step in range(plan.total_steps)]
    assert all(0 < rate <= 0.4 + 1e-12 for rate in rates)
    peak = math.ceil(warmup * plan.steps_per_epoch)
    assert all(a < b for a, b in zip(rates[:peak], rates[1:peak], strict=False))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (0, {0: 0.5, 19: 0.5, 20: 0.5, 99: 0.5}),  # without clusters there is no term to weigh
        (2, {0: 0, 19: 0, 20: 0.025, 29: 0.25, 38: 0.475, 39: 0.5, 40: 0.5, 99: 0.5}),
        (0.1, {19: 0, 20: 0.5, 21: 0.5}),
        (0.05, {20: 0.5}),
        (16, {20: 0.5 / 160, 99: 0.25}),
    ],
)
def test_the_weight_of_the_prototypes_rises_after_the_warm_up(
    ramp: float, expected: dict[int, float]
) -> None:
    plan = plan_of(loss__prototype_weight=0.5, loss__prototype_ramp_epochs=ramp, e_step__warmup_epochs=2)
    assert plan.steps_per_epoch == 10
    assert {step: plan.prototype_weight_at(step) for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("momentum", "end", "expected"),
    [
        (0.9, None, {0: 0.9, 50: 0.9, 99: 0.9}),
        (0.9, 0.9, {0: 0.9, 50: 0.9, 99: 0.9}),
        # as BYOL writes it: 1 − (1 − m)(cos(π k/K) + 1) / 2
        (0.9, 1, {k: 1 - 0.1 * (math.cos(math.pi * k / 100) + 1) / 2 for k in range(100)}),
        (0.99, 0.999, {0: 0.99, 25: 0.99 + 0.009 * (0.5 - 0.25 * math.sqrt(2)), 50: 0.9945}),
        (0.999, 0.5, {0: 0.999, 50: 0.7495}),
        (0, 0, {0: 0, 99: 0}),
    ],
)
def test_the_momentum_goes_along_half_a_cosine_from_one_value_to_the_other(
    momentum: float, end: float | None, expected: dict[int, float]
) -> None:
    plan = plan_of(encoder__momentum=momentum, encoder__momentum_end=end)
    assert {step: plan.momentum_at(step) for step in expected} == pytest.approx(expected, abs=1e-12)
    assert plan.momentum_at(0) == momentum
    if end in (None, momentum):
        assert {plan.momentum_at(step) for step in range(100)} == {momentum}


FITTING_SIZES = st.fixed_dictionaries(
    {
        "train__batch_size": st.sampled_from([8, 16, 200]),
        "train__epochs": st.integers(1, 50),
        "resources__workers": st.sampled_from([0, 1, 2, 4]),
        "loss__queue_size": st.integers(1, 200),
        "loss__negative_prototypes": st.one_of(st.sampled_from(["auto", "all"]), st.integers(1, 9)),
        "e_step__num_clusters": st.lists(
            st.one_of(st.integers(10, 200), st.floats(0.05, 0.99)), min_size=1, max_size=3
        ),
        "e_step__warmup_epochs": st.integers(0, 60),
        "e_step__every_epochs": st.integers(1, 20),
        "optimizer__warmup_epochs": st.floats(0, 0.99),
        "evaluation__every_epochs": st.integers(0, 50),
        "train__micro_batch": st.one_of(st.none(), st.integers(2, 300)),
        "resources__cpus_per_worker": st.floats(0.1, 40),
        "data__loader_workers": st.one_of(st.none(), st.integers(0, 9)),
        "data__source": st.sampled_from(["digits", "folder"]),
    }
)


@given(changed=FITTING_SIZES, images=st.integers(200, 5000))
def test_what_fits_can_be_planned(changed: dict[str, Any], images: int) -> None:
    config = config_of(**changed)
    assert check(config, images, gpus=0)[0] == []
    plan = make(config, images)
    assert plan.steps_per_epoch * plan.global_batch <= images < (plan.steps_per_epoch + 1) * plan.global_batch
    assert plan.batch_per_worker * plan.world_size == plan.global_batch
    assert plan.batch_per_worker >= 2
    assert plan.micro_batches >= 1
    assert math.ceil(plan.batch_per_worker / plan.micro_batches) <= (
        config.train.micro_batch or plan.batch_per_worker
    )
    assert plan.threads >= 1
    assert plan.loader_workers >= 0
    assert all(2 <= k <= images for k in plan.num_clusters)
    assert plan.queue_size <= plan.total_steps * plan.global_batch
    assert list(plan.e_step_epochs) == sorted(set(plan.e_step_epochs))
    assert all(plan.warmup_epochs <= epoch <= plan.epochs for epoch in plan.e_step_epochs)
    assert max(plan.evaluation_epochs) == plan.epochs - 1
    assert all(
        0 < plan.lr_at(step) <= config.optimizer.lr * (1 + 1e-9)
        for step in {0, plan.total_steps // 2, plan.total_steps - 1}
    )


def test_with_a_bank_fresh_features_are_taken_first_last_and_now_and_then() -> None:
    plan = plan_of(train__epochs=9)  # E-steps before epochs 2 … 8, and the final one
    taken = {
        every: [epoch for epoch in plan.e_step_epochs if plan.takes_fresh_features(epoch, every)]
        for every in (0, 1, 3)
    }
    assert taken == {0: [2, 9], 1: [2, 3, 4, 5, 6, 7, 8, 9], 3: [2, 5, 8, 9]}


@pytest.mark.parametrize("micro", [None, 7])
def test_the_batch_of_a_step_is_the_same_for_any_number_of_workers(micro: int | None) -> None:
    plans = [plan_of(resources__workers=workers, train__micro_batch=micro) for workers in (0, 1, 2, 4, 5, 10)]
    assert {(plan.global_batch, plan.steps_per_epoch, plan.total_steps) for plan in plans} == {(100, 10, 100)}
    assert [plan.batch_per_worker for plan in plans] == [100, 100, 50, 25, 20, 10]
    assert len({tuple(plan.lr_at(step) for step in range(100)) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, (1,)),
        ({"resources__workers": [2, 8], "train__batch_size": 120}, (8, 6, 5, 4, 3, 2)),
        ({"resources__workers": "2,8", "train__batch_size": 64}, (8, 4, 2)),
        ({"resources__workers": 4}, (4,)),
        ({"resources__workers": 4, "resources__min_workers": 1}, (4, 2, 1)),
        ({"resources__workers": 0, "resources__min_workers": 2}, ()),
    ],
)
def test_the_numbers_of_workers_that_a_run_may_have(changed: dict[str, Any], counts: tuple[int, ...]) -> None:
    assert worker_counts(config_of(**changed)) == counts


def test_fewer_workers_have_more_images_each_in_parts_as_large_as_before() -> None:
    config = config_of(resources__workers=[1, 4], encoder__batch_norm_parts=5, resources__gpus_per_worker=1)
    plan = make(config, N)
    fewer_config, fewer = with_workers(config, plan, 2)
    assert (fewer.world_size, fewer.batch_per_worker, fewer.devices) == (2, 50, 2)
    assert fewer_config.encoder.batch_norm_parts == 10
    assert fewer.steps_per_epoch == plan.steps_per_epoch
    assert with_workers(config, plan, 4) == (config, plan)


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({"train__batch_size": 120, "resources__workers": [1, 4]}, 3),  # no equal parts
        ({"resources__workers": [1, 4], "train__micro_batch": 10}, 2),
    ],
)
def test_parts_that_would_be_cut_elsewhere_stay_as_many(changed: dict[str, Any], count: int) -> None:
    config = config_of(**changed)
    assert with_workers(config, make(config, N), count)[0] == config
