"""What runs and trials reserve of a cluster, and how often that fits."""

from __future__ import annotations

import pytest

from pcl_ray import config, plan
from pcl_ray.on_ray.reserving import bundles
from pcl_ray.on_ray.reserving.bundles import Bundle


def trial(words: tuple[str, ...]) -> list[Bundle]:
    base = config.load("digits", words)
    return bundles.trial_bundles(base.resources, plan.make(base, 1438, 359).e_step_shards)


@pytest.mark.parametrize(
    ("words", "nodes", "expected"),
    [
        (("resources.workers=0",), [{"CPU": 2.0}], 2),
        # not 3: a trial lies on one node
        (("resources.workers=0", "resources.cpus_per_worker=4"), [{"CPU": 7.0}, {"CPU": 7.0}], 2),
        (("resources.workers=0", "resources.gpus_per_worker=0.25"), [{"CPU": 16.0, "GPU": 2.0}], 8),
        # three a GPU: no share spans two
        (("resources.workers=0", "resources.gpus_per_worker=0.3"), [{"CPU": 16.0, "GPU": 2.0}], 6),
        (("resources.workers=0", "resources.gpus_per_worker=0.25"), [{"CPU": 3.0, "GPU": 2.0}], 3),
        # 3 GPUs each, with the actor
        (
            ("resources.workers=2", "resources.gpus_per_worker=1", "resources.e_step_gpus=1"),
            [{"CPU": 64.0, "GPU": 8.0}],
            2,
        ),
        (("resources.workers=2", "resources.gpus_per_worker=1"), [{"CPU": 64.0, "GPU": 8.0}], 4),
        # 2 workers, the actor, and what follows them: no second one
        (("resources.workers=2",), [{"CPU": 4.0}], 1),
        (("resources.workers=2",), [{"CPU": 3.0}], 0),
        (("resources.workers=0", "resources.gpus_per_worker=1"), [{"CPU": 64.0}], 0),
        (("resources.workers=4", "resources.gpus_per_worker=1"), [{"CPU": 8.0, "GPU": 2.0}] * 3, 1),
    ],
)
def test_trials_at_a_time_count_workers_and_actor(
    words: tuple[str, ...], nodes: list[dict[str, float]], expected: int
) -> None:
    assert bundles.fitting(trial(words), nodes) == expected


def test_a_run_reserves_workers_actor_and_shards_without_what_it_needs_none_of() -> None:
    resources = config.load("digits", ("resources.workers=2", "resources.gpus_per_worker=0.5")).resources
    assert bundles.run_bundles(resources, 1, resources.workers) == [
        {"CPU": 1, "GPU": 0.5},
        {"CPU": 1, "GPU": 0.5},
        {"CPU": 1},
        {"CPU": 1},
    ]


def test_a_trial_in_one_process_reserves_that_alone_one_with_workers_next_to_nothing_for_it() -> None:
    assert trial(("resources.workers=0", "resources.gpus_per_worker=0.25")) == [{"CPU": 1, "GPU": 0.25}]
    *run, process = trial(("resources.workers=2",))
    assert run == [{"CPU": 1}] * 3
    assert process == {"CPU": 0.01}


def test_the_total_counts_one_kind() -> None:
    assert bundles.total([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 0.5}], "CPU") == 2.5
    assert bundles.total([{"CPU": 2.0}], "GPU") == 0
