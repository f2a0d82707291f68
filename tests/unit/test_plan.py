from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.data.draws import view_draws
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.plan import RunPlan, check, make, memory_side, resolve_num_clusters
from pcl_ray.support import machine

GOOD = {
    "data.channels": 1,
    "augment.mean": [0.5],
    "augment.std": [0.5],
    "encoder.dim": 16,
    "encoder.batch_norm": "plain",
    "loss.queue_size": 500,
    "e_step.num_clusters": [10, 0.05],
    "e_step.warmup_epochs": 2,
    "train.batch_size": 100,
    "train.epochs": 10,
    "optimizer.lr": 0.4,
    "evaluation.every_epochs": 1,
}
N = 1000  # ten steps an epoch


def config_of(**changed: Any) -> RunConfig:
    """`loss__temperature=0.1` for the knob loss.temperature."""
    return configs.with_overrides(
        RunConfig(), GOOD | {name.replace("__", "."): value for name, value in changed.items()}
    )


def plan_of(**changed: Any) -> RunPlan:
    return make(config_of(**changed), N, 200)


def test_a_good_configuration_has_no_problems_and_no_notes() -> None:
    assert check(config_of(), N, 200, gpus=0) == ([], [])


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
    """The last entry is the final clustering, after training; without any epoch that uses clusters there is
    none.
    """
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


def test_shares_become_counts() -> None:
    assert resolve_num_clusters((0.02, 250, 0.5), 1000) == (20, 250, 500)


# One row: what is changed, the number of images, the knob at fault, and what its message must hold, a number
# for the way out among it.
MISTAKES: dict[str, tuple[dict[str, Any], int, str, list[str]]] = {
    "more clusters than images": (
        {"e_step__num_clusters": [10, 2000]},
        N,
        "e_step.num_clusters",
        ["2000 is more than the 1000", "share like 0.02"],
    ),
    "a share of fewer than two": (
        {"e_step__num_clusters": [0.001]},
        N,
        "e_step.num_clusters",
        ["0.001 of 1000 images, that is 1", "least 0.0015"],
    ),
    "a share of none": (
        {"e_step__num_clusters": [1e-6]},
        N,
        "e_step.num_clusters",
        ["that is 0,", "at least 0.0015"],
    ),
    "fewer images than a batch": ({}, 60, "train.batch_size", ["only 60 images", "at most 60"]),
    "batch over workers": (
        {"resources__workers": 3},
        N,
        "train.batch_size",
        ["resources.workers = 3", "e.g. 102"],
    ),
    "one image a worker": (
        {"train__batch_size": 4, "resources__workers": 4, "loss__queue_size": 8},
        N,
        "train.batch_size",
        ["4 workers 1 image", "at least 8"],
    ),
    "more negatives than prototypes": (
        {"loss__negative_prototypes": 10},
        N,
        "loss.negative_prototypes",
        ["10 prototypes", "at most 9", "all"],
    ),
    "a queue the run never fills": (
        {"loss__queue_size": 10001},
        N,
        "loss.queue_size",
        ["only 10000 places", "train.epochs"],
    ),
    "a warm-up of the rate over the whole run": (
        {"optimizer__warmup_epochs": 10},
        N,
        "optimizer.warmup_epochs",
        ["below train.epochs = 10"],
    ),
    "means of another number of channels": (
        {"augment__mean": [0.1, 0.2, 0.3]},
        N,
        "augment.mean",
        ["data.channels = 1"],
    ),
    "deviations of another number of channels": (
        {"augment__std": [0.1, 0.2]},
        N,
        "augment.std",
        ["data.channels = 1"],
    ),
    "synchronised batch norm on CPUs": (
        {"encoder__batch_norm": "sync", "resources__workers": 2},
        N,
        "encoder.batch_norm",
        ["GPUs", "shuffle"],
    ),
    "the slow reference on kept squares": (
        {
            "data__source": "folder",
            "data__path": "/pictures",
            "data__in_memory": True,
            "augment__engine": "torchvision",
        },
        N,
        "data.in_memory",
        ["augment.engine = batch"],
    ),
    "bf16 on CPUs": (
        {"train__precision": "bf16"},
        N,
        "train.precision",
        ["fp32", "resources.gpus_per_worker"],
    ),
    "GPU workers without a GPU": (
        {"resources__gpus_per_worker": 1},
        N,
        "resources.gpus_per_worker",
        ["no GPU on this machine", "set it to 0"],
    ),
    "GPU clustering without a GPU": (
        {"resources__e_step_gpus": 1},
        N,
        "resources.e_step_gpus",
        ["no GPU on this machine", "set it to 0"],
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_the_knob_its_value_and_the_way_out(case: str) -> None:
    changed, images, name, parts = MISTAKES[case]
    config = config_of(**changed)
    problems, notes = check(config, images, gpus=0)
    (problem,) = [p for p in problems if p.name == name]
    assert str(problem).startswith(f"{name} = ")
    value = config.flatten()[name]
    assert problem.value == (list(value) if isinstance(value, tuple) else value)
    for part in parts:
        assert part in problem.message
    assert not notes  # notes about a plan that cannot run only distract


@pytest.mark.parametrize("case", [case for case in MISTAKES if case != "fewer images than a batch"])
def test_one_mistake_is_one_problem(case: str) -> None:
    changed, images, _, _ = MISTAKES[case]
    assert len(check(config_of(**changed), images, gpus=0)[0]) == 1


def test_several_mistakes_are_all_reported_and_make_refuses_them() -> None:
    config = config_of(e_step__num_clusters=[5000, 6000], loss__queue_size=10**6, optimizer__warmup_epochs=99)
    names = [problem.name for problem in check(config, N)[0]]
    assert sorted(names) == [
        "e_step.num_clusters",
        "e_step.num_clusters",
        "loss.queue_size",
        "optimizer.warmup_epochs",
    ]
    with pytest.raises(ConfigError) as caught:
        make(config, N)
    assert [problem.name for problem in caught.value.problems] == names
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("changed", "images"),
    [
        ({"loss__queue_size": 333}, N),  # the batch need not divide the queue
        ({"loss__queue_size": 10000}, N),  # just filled by the last step
        ({"loss__negative_prototypes": 9}, N),  # all others of the smallest clustering
        ({"e_step__num_clusters": [1000]}, N),
        ({"e_step__num_clusters": [0.0015]}, N),
        ({"train__batch_size": 1000}, N),
        ({"resources__workers": 50}, N),  # two images each
        ({"optimizer__warmup_epochs": 9.5}, N),
        ({"loss__queue_size": 64}, N),  # smaller than a batch
    ],
)
def test_what_just_fits_is_no_mistake(changed: dict[str, Any], images: int) -> None:
    problems, _ = check(config_of(**changed), images, gpus=0)
    assert problems == []


@pytest.mark.parametrize("gpus", [None, 1, 8])
def test_gpus_are_only_missed_where_there_are_none(gpus: int | None) -> None:
    assert check(config_of(resources__gpus_per_worker=1), N, gpus=gpus)[0] == []


@pytest.mark.parametrize(
    ("changed", "images", "holdout", "said"),
    [
        ({"e_step__warmup_epochs": 10}, N, 9, "e_step.warmup_epochs = 10 covers all 10 epochs"),
        ({"loss__queue_size": 1500}, N, 9, "loss.queue_size = 1500 exceeds the 1000 images"),
        ({"e_step__num_clusters": [400]}, N, 9, "400 clusters get 2.5 images each"),
        ({"loss__negative_prototypes": 8}, N, 9, "fewer are left to draw"),
        ({}, N, 0, "data.holdout"),
    ],
)
def test_what_is_legal_but_worth_saying(
    changed: dict[str, Any], images: int, holdout: int, said: str
) -> None:
    problems, notes = check(config_of(**changed), images, holdout)
    assert problems == []
    assert [said in note for note in notes] == [True]


ANY_SIZES = st.fixed_dictionaries(
    {
        "train__batch_size": st.integers(2, 2000),
        "train__epochs": st.integers(1, 300),
        "resources__workers": st.integers(0, 70),
        "resources__gpus_per_worker": st.sampled_from([0, 0.5, 1]),
        "resources__e_step_gpus": st.sampled_from([0, 1]),
        "loss__queue_size": st.integers(1, 10**6),
        "loss__negative_prototypes": st.one_of(st.sampled_from(["auto", "all"]), st.integers(1, 5000)),
        "e_step__num_clusters": st.lists(
            st.one_of(st.integers(2, 3000), st.floats(1e-6, 0.99)), min_size=1, max_size=3
        ),
        "e_step__warmup_epochs": st.integers(0, 400),
        "optimizer__warmup_epochs": st.floats(0, 300),
        "augment__mean": st.lists(st.floats(0, 1), max_size=4),
        "augment__engine": st.sampled_from(["batch", "torchvision"]),
        "data__source": st.sampled_from(["digits", "folder"]),
        "data__in_memory": st.sampled_from(["auto", True, False]),
        "data__loader_workers": st.one_of(st.none(), st.integers(0, 9)),
        "train__micro_batch": st.one_of(st.none(), st.integers(2, 3000)),
        "encoder__batch_norm": st.sampled_from(["shuffle", "sync", "plain"]),
    }
)

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


@given(
    changed=ANY_SIZES,
    images=st.integers(0, 5000),
    holdout=st.integers(0, 100),
    gpus=st.sampled_from([None, 0, 2]),
)
def test_check_never_raises_and_make_refuses_what_it_finds(
    changed: dict[str, Any], images: int, holdout: int, gpus: int | None
) -> None:
    config = config_of(**changed)
    problems, notes = check(config, images, holdout, gpus=gpus)
    known = config.flatten()
    assert all(
        isinstance(problem, Problem) and problem.name in known and problem.message for problem in problems
    )
    assert all(isinstance(note, str) for note in notes)
    if check(config, images, holdout)[0]:  # those that do not depend on this machine
        with pytest.raises(ConfigError):
            make(config, images, holdout)


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


@given(images=st.integers(2, 10**7), share=st.floats(1e-12, 0.9))
def test_the_share_that_a_refusal_proposes_is_enough(images: int, share: float) -> None:
    problems = [
        p
        for p in check(config_of(e_step__num_clusters=[share]), images)[0]
        if p.name == "e_step.num_clusters"
    ]
    for problem in problems:
        proposed = float(re.search(r"use at least ([\d.e-]+)", problem.message)[1])
        assert resolve_num_clusters((proposed,), images)[0] >= 2
    assert bool(problems) == (round(share * images) < 2)


@pytest.mark.parametrize(
    ("knobs", "images", "mode", "shards"),
    [
        ({"resources__workers": 0}, 10**9, "single", 0),  # one process has no choice
        ({"resources__workers": 1}, N, "single", 0),
        ({"resources__workers": 4}, N, "single", 0),
        ({"resources__workers": 4, "resources__gpus_per_worker": 1}, N, "distributed", 0),
        ({"resources__workers": 1, "resources__gpus_per_worker": 1}, N, "single", 0),
        # workers that train cannot cluster
        ({"resources__workers": 4, "resources__gpus_per_worker": 1, "e_step__overlap": True}, N, "single", 0),
        ({"resources__workers": 4}, 125_000_000, "single", 0),  # 16 dimensions of 4 bytes: 8 GB, the limit
        ({"resources__workers": 4}, 125_000_001, "sharded", 2),
        ({"resources__workers": 4, "e_step__feature_dtype": "float16"}, 125_000_001, "single", 0),
        ({"resources__workers": 4, "e_step__memory_gb": 1}, 125_000_000, "sharded", 8),
        ({"resources__workers": 4, "e_step__mode": "sharded", "e_step__shards": 5}, N, "sharded", 5),
        ({"resources__workers": 4, "e_step__mode": "distributed"}, N, "distributed", 0),
    ],
)
def test_where_features_are_clustered_follows_from_size_and_machines(
    knobs: dict[str, Any], images: int, mode: str, shards: int
) -> None:
    plan = make(config_of(**knobs), images)
    assert (plan.e_step_mode, plan.e_step_shards) == (mode, shards)


def test_with_a_bank_fresh_features_are_taken_first_last_and_now_and_then() -> None:
    plan = plan_of(train__epochs=9)  # E-steps before epochs 2 … 8, and the final one
    taken = {
        every: [epoch for epoch in plan.e_step_epochs if plan.takes_fresh_features(epoch, every)]
        for every in (0, 1, 3)
    }
    assert taken == {0: [2, 9], 1: [2, 3, 4, 5, 6, 7, 8, 9], 3: [2, 5, 8, 9]}


@pytest.mark.parametrize(
    ("batch", "workers", "micro", "expected"),
    [
        (100, 1, None, 1),
        (100, 1, 100, 1),
        (100, 1, 1000, 1),
        (100, 1, 50, 2),
        (100, 1, 99, 2),
        (100, 1, 34, 3),
        (100, 1, 33, 4),
        (100, 1, 2, 50),
        (100, 2, 50, 1),  # of a worker's part
        (100, 2, 20, 3),
        (100, 50, 2, 1),
        (100, 0, 60, 2),
    ],
)
def test_passes_of_a_worker_in_a_step(batch: int, workers: int, micro: int | None, expected: int) -> None:
    plan = plan_of(train__batch_size=batch, resources__workers=workers, train__micro_batch=micro)
    assert plan.micro_batches == expected


@pytest.mark.parametrize("micro", [None, 7])
def test_the_batch_of_a_step_is_the_same_for_any_number_of_workers(micro: int | None) -> None:
    plans = [plan_of(resources__workers=workers, train__micro_batch=micro) for workers in (0, 1, 2, 4, 5, 10)]
    assert {(plan.global_batch, plan.steps_per_epoch, plan.total_steps) for plan in plans} == {(100, 10, 100)}
    assert [plan.batch_per_worker for plan in plans] == [100, 100, 50, 25, 20, 10]
    assert len({tuple(plan.lr_at(step) for step in range(100)) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("gpus", "counts", "expected"),
    [
        (0, [10, 32_768], (None, None)),
        (0, [10, 32_769], (None, 16_384)),  # each clustering by its own size
        (0, [262_145], (16_384,)),
        (1, [32_769, 262_144], (None, None)),
        (1, [10, 262_145], (None, 16_384)),
    ],
)
def test_auto_draws_negatives_only_of_very_many_prototypes(
    gpus: int, counts: list[int], expected: tuple[int | None, ...]
) -> None:
    knobs = {"resources__gpus_per_worker": gpus, "e_step__num_clusters": counts}
    assert make(config_of(loss__negative_prototypes="auto", **knobs), 10**6).negatives == expected
    assert make(config_of(**knobs), 10**6).negatives == expected  # the default
    assert make(config_of(loss__negative_prototypes="all", **knobs), 10**6).negatives == (None,) * len(counts)
    assert make(config_of(loss__negative_prototypes=9, **knobs), 10**6).negatives == (9,) * len(counts)


FILES = {"data__source": "folder", "data__path": "/pictures", "data__in_memory": False}
CPUS = 8  # that this machine is made to have


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: CPUS)


# One row: what is changed, processes that decode, threads that compute.
@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("changed", "loaders", "threads"),
    [
        ({}, 0, 1),  # digits: in memory, one core
        ({"resources__workers": 0}, 0, 8),
        ({"resources__cpus_per_worker": 4}, 0, 4),
        ({"resources__cpus_per_worker": 0.5}, 0, 1),
        ({"resources__cpus_per_worker": 3.9}, 0, 3),
        # Files, on CPUs: a quarter of the cores.
        (FILES, 0, 1),
        (FILES | {"resources__cpus_per_worker": 3}, 0, 3),
        (FILES | {"resources__cpus_per_worker": 4}, 1, 3),
        (FILES | {"resources__cpus_per_worker": 16}, 4, 12),
        (FILES | {"resources__workers": 0}, 2, 6),
        # Files, for a GPU: all cores but one.
        (FILES | {"resources__gpus_per_worker": 1}, 1, 1),
        (FILES | {"resources__gpus_per_worker": 1, "resources__cpus_per_worker": 2}, 1, 1),
        (FILES | {"resources__gpus_per_worker": 1, "resources__cpus_per_worker": 12}, 11, 1),
        (FILES | {"resources__gpus_per_worker": 1, "resources__workers": 0}, 7, 1),
        # As asked for.
        (FILES | {"data__loader_workers": 0, "resources__cpus_per_worker": 8}, 0, 8),
        (FILES | {"data__loader_workers": 3, "resources__cpus_per_worker": 8}, 3, 5),
        (FILES | {"data__loader_workers": 20, "resources__cpus_per_worker": 8}, 20, 1),
        (
            FILES
            | {"data__loader_workers": 0, "resources__gpus_per_worker": 1, "resources__cpus_per_worker": 8},
            0,
            8,
        ),
        # In memory the batch engine needs none, the slow reference takes what it is given.
        (FILES | {"data__in_memory": True, "data__loader_workers": 3, "resources__cpus_per_worker": 8}, 0, 8),
        ({"data__loader_workers": 3, "resources__cpus_per_worker": 8}, 0, 8),
        ({"augment__engine": "torchvision", "resources__cpus_per_worker": 8}, 0, 8),
        (
            {"augment__engine": "torchvision", "data__loader_workers": 3, "resources__cpus_per_worker": 8},
            3,
            5,
        ),
        (FILES | {"augment__engine": "torchvision", "resources__cpus_per_worker": 8}, 2, 6),
        (
            FILES
            | {"augment__engine": "torchvision", "data__loader_workers": 3, "resources__cpus_per_worker": 8},
            3,
            5,
        ),
    ],
)
def test_processes_that_decode_and_threads_that_compute(
    changed: dict[str, Any], loaders: int, threads: int
) -> None:
    plan = plan_of(**changed)
    assert (plan.loader_workers, plan.threads) == (loaders, threads)


@given(
    cpus=st.floats(0.1, 128),
    cores=st.integers(1, 128),
    workers=st.sampled_from([0, 1, 2]),
    engine=st.sampled_from(["batch", "torchvision"]),
    source=st.sampled_from(["digits", "folder"]),
)
def test_on_cpus_auto_takes_no_more_cores_than_there_are(
    cpus: float, cores: int, workers: int, engine: str, source: str
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "cores", lambda: cores)
        changed = FILES | {"data__source": source, "augment__engine": engine}
        plan = plan_of(**changed, resources__cpus_per_worker=cpus, resources__workers=workers)
    assert plan.threads >= 1
    assert plan.threads + plan.loader_workers <= max(int(cpus) if workers else cores, 1)


def test_this_machine_has_a_core() -> None:
    assert machine.cores() >= 1


# A kept picture of `folder` takes 579 × 579 pixels at the defaults, 335,241 bytes in grey.
BYTES = 579**2
SMALL = 4 * 10**9 // BYTES  # pictures that 4 GB hold


@pytest.mark.parametrize(
    ("changed", "images", "holdout", "expected"),
    [
        ({}, 10**7, 0, True),  # arrays always are
        ({"data__in_memory": False}, N, 0, True),
        ({"data__source": "folder"}, SMALL, 0, True),
        ({"data__source": "folder"}, SMALL + 1, 0, False),
        ({"data__source": "folder"}, SMALL - 100, 100, True),  # held-out pictures are kept too
        ({"data__source": "folder"}, SMALL - 100, 101, False),
        ({"data__source": "imagenet"}, SMALL + 1, 0, False),
        ({"data__source": "folder", "data__memory_gb": 8}, SMALL + 1, 0, True),
        ({"data__source": "folder", "data__memory_gb": 0.01}, 29, 0, True),
        ({"data__source": "folder", "data__memory_gb": 0.01}, 30, 0, False),
        # a quarter of the pixels
        ({"data__source": "folder", "augment__image_size": 112}, SMALL + 1, 0, True),
        (
            {
                "data__source": "folder",
                "data__channels": 3,
                "augment__mean": [0.5] * 3,
                "augment__std": [0.5] * 3,
            },
            SMALL,
            0,
            False,
        ),
        ({"data__source": "folder", "data__in_memory": True}, 10**7, 0, True),
        ({"data__source": "folder", "data__in_memory": False}, N, 0, False),
        # the slow reference reads files as they are
        ({"data__source": "folder", "augment__engine": "torchvision"}, N, 0, False),
        ({"augment__engine": "torchvision"}, N, 0, True),
    ],
)
def test_files_are_kept_in_memory_where_they_fit_or_as_asked_for(
    changed: dict[str, Any], images: int, holdout: int, expected: bool
) -> None:
    base = {
        "train__batch_size": 20,
        "e_step__num_clusters": [2],
        "loss__queue_size": 20,
        "data__path": "/pictures",
    }
    plan = make(config_of(**base | changed), images, holdout)
    assert plan.in_memory is expected
    assert plan.loader_workers == 0  # with one core


@pytest.mark.parametrize(
    ("size", "crop", "side"),
    [(224, 0.2, 579), (224, 1.0, 259), (64, 0.2, 166), (32, 0.75, 43), (4, 0.0001, 462)],
)
def test_side_of_kept_pictures_against_hand_values(size: int, crop: float, side: int) -> None:
    assert plan_of(augment__image_size=size, augment__min_crop=crop).memory_side == side


@given(
    size=st.integers(4, 300), crop=st.floats(0.01, 1), original=st.integers(0, 4000), seed=st.integers(0, 100)
)
def test_no_crop_of_a_square_picture_is_enlarged(size: int, crop: float, original: int, seed: int) -> None:
    config = config_of(augment__image_size=size, augment__min_crop=crop)
    side = memory_side(config)
    sizes = np.full((50, 2), side + original)  # smaller pictures are kept as they are
    boxes = view_draws(config.augment, 1, seed, 0, np.arange(50), 0, sizes).boxes
    kept = boxes[:, 2:] * side / (side + original)
    assert kept.min() >= size - 0.5  # crops are whole pixels of the original


def test_loader_processes_that_are_not_needed_are_worth_saying() -> None:
    def notes(**changed: Any) -> list[str]:
        return check(config_of(data__loader_workers=2, **changed), N, 200)[1]

    assert notes() == ["data.loader_workers = 2: not needed, the images are in memory"]
    assert notes(**FILES | {"data__in_memory": True}) == notes()
    assert notes(**FILES) == []
    assert notes(augment__engine="torchvision") == []
    assert check(config_of(data__loader_workers=0), N, 200)[1] == []


@pytest.mark.parametrize("wanted", ["auto", "all"])
def test_negatives_that_are_no_number_need_no_check(wanted: str) -> None:
    assert check(config_of(loss__negative_prototypes=wanted, e_step__num_clusters=[2]), N, 200) == ([], [])
