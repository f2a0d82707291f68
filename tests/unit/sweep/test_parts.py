"""Parts of a sweep that need neither Ray nor training: capacity, objectives, settings, times."""

from __future__ import annotations

import pytest

from pcl_ray import config, plan
from pcl_ray.cli import sweep
from pcl_ray.errors import ConfigError
from pcl_ray.sweep.capacity import bundles, trials_at_a_time
from pcl_ray.sweep.space import objective, settings
from pcl_ray.sweep.space.settings import SweepConfig


def at_a_time(words: tuple[str, ...], nodes: list[dict[str, float]]) -> int:
    base = config.load("digits", words)
    return trials_at_a_time(bundles(base, plan.make(base, 1438, 359)), nodes)


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
    assert at_a_time(words, nodes) == expected


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("train/loss", "grows and shrinks with τ and K"),
        ("train/loss_prototype", "grows and shrinks"),
        ("train/accuracy_prototype_0", "another task for every K"),
        ("cluster/0/objective", "inertia of k-means falls with every further cluster"),
        ("cluster/1/nmi", "adjusted for that"),
        ("cluster/0/purity", "rise with K by chance"),
        ("eval/uniformity", "trade off"),
        ("eval/knn", "did you mean 'eval/knn_top1'"),
    ],
)
def test_what_cannot_compare_trials_is_refused_with_the_reason(metric: str, why: str) -> None:
    (problem,) = objective.problems(metric, None, labelled=True)
    assert why in str(problem)


@pytest.mark.parametrize(
    "metric", ["eval/knn_top1", "eval/rankme", "eval/lidar", "eval/areq", "cluster/0/ami", "cluster/2/ari"]
)
def test_what_can_compare_trials_is_taken(metric: str) -> None:
    assert not list(objective.problems(metric, None, labelled=True))


def test_labels_and_modes_must_fit_the_metric() -> None:
    assert "needs labels" in str(*objective.problems("cluster/0/ami", None, labelled=False))
    assert not list(objective.problems("eval/rankme", "max", labelled=False))
    assert "more is better" in str(*objective.problems("eval/knn_top1", "min", labelled=True))
    assert "near 1" in str(*objective.problems("eval/areq", "max", labelled=False))


def test_scores_are_always_better_when_higher() -> None:
    assert objective.of("eval/areq").score(0.9) == pytest.approx(-0.1)
    assert objective.of("eval/areq").score(1.3) < objective.of("eval/areq").score(0.9)
    assert objective.of("eval/knn_top1").score(0.9) == 0.9


GOOD = {"eval/rankme": 20.0, "cluster/0/k": 10.0, "cluster/0/empty": 0.0, "cluster/0/largest_share": 0.2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"eval/rankme": 4.9}, "effective rank 4.9"),
        ({"cluster/0/largest_share": 0.51}, "holds 51%"),
        ({"cluster/0/empty": 3.0}, "30% of the clusters are empty"),
        ({"cluster/1/k": 4.0, "cluster/1/empty": 2.0}, "50% of the clusters"),
    ],
)
def test_collapse_is_refused_where_no_labels_would_show_it(change: dict[str, float], said: str) -> None:
    refusal = objective.of("eval/rankme").refusal(GOOD | change, SweepConfig())
    assert said in refusal
    assert bool(refusal) == bool(said)
    assert objective.of("eval/knn_top1").refusal(GOOD | change, SweepConfig()) == ""


def test_settings_name_every_mistake_and_the_right_name() -> None:
    found, problems = settings.read(
        {"sweep.seeds": 0, "sweep.sampels": 3, "sweep.scheduler": "ahsa", "sweep.samples": 7}
    )
    assert found.samples == 7
    assert sorted(problem.name for problem in problems) == ["sweep.sampels", "sweep.scheduler", "sweep.seeds"]
    said = "\n".join(map(str, problems))
    assert "did you mean 'sweep.samples'" in said
    assert "asha" in said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("0.5h", 1800)],
)
def test_budgets_are_written_as_people_write_times(text: str, seconds: float) -> None:
    assert sweep.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2x", "h", "two hours", "-3h", "1h 30"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        sweep.seconds(text)
