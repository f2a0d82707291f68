from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray import tune  # noqa: E402
from ray.tune.search.sample import Domain  # noqa: E402
from search_spaces import problems_of, space_of, written  # noqa: E402

from pcl_ray.sweep.space import spaces  # noqa: E402


def test_all_mistakes_at_once_and_each_once(tmp_path: Path) -> None:
    text = """
BASE = "digits"
SPACE = {
    "loss.temperatur": tune.choice([0.1, 0.2]),
    "loss.temperature": tune.uniform(0.0, 11.0),
    "e_step.alpha": tune.sample_from(lambda config: 1),
    "optimizer": {"lr": tune.uniform(0.01, 0.1)},
    "train.epochs": tune.choice([0, 20, -1]),
    "e_step.num_clusters": tune.choice([[0.0001], [5000], [50], "x", [50]]),
    "train.batch_size": 1,
    "e_step.clip": tune.choice([]),
    "encoder.width": tune.randint(8, 4),
    "optimizer.momentum": tune.randn(),
    "loss.queue_size": tune.qrandint(100, 200, 50),
}
"""
    found = problems_of(spaces.load(written(tmp_path, text)))
    assert sorted((problem.name, str(problem.value)) for problem in found) == [
        ("e_step.alpha", "computed from others"),
        ("e_step.clip", "one of nothing"),
        ("e_step.num_clusters", "[0.0001]"),
        ("e_step.num_clusters", "[5000]"),
        ("e_step.num_clusters", "one of 0.0001, 5000, 50, x, 50"),
        ("e_step.num_clusters", "x"),
        ("encoder.width", "uniform whole numbers 8 … 3"),
        ("loss.queue_size", "uniform whole numbers 100 … 199 in steps of 50"),
        ("loss.temperatur", "0.1"),
        ("loss.temperature", "0.0"),
        ("loss.temperature", "11.0"),
        ("optimizer", "{'lr': 'uniform 0.01 … 0.1'}"),
        ("optimizer.momentum", "normal"),
        ("train.batch_size", "1"),
        ("train.epochs", "-1"),
        ("train.epochs", "0"),
    ]
    said = {problem.name: problem.message for problem in found}
    assert "did you mean 'loss.temperature'?" in said["loss.temperatur"]
    assert "number > 0 and ≤ 10" in said["loss.temperature"]
    assert "tune.choice" in said["e_step.alpha"]
    assert "'optimizer.lr'" in said["optimizer"]
    assert "tune.choice" in said["loss.queue_size"]


def test_a_k_that_does_not_fit_needs_the_data_to_show() -> None:
    space = space_of({"e_step.num_clusters": tune.choice(["0.02,0.04", "0.0005", [40, 2000]])})
    assert [(problem.name, problem.value) for problem in problems_of(space)] == [
        ("e_step.num_clusters", [0.0005]),
        ("e_step.num_clusters", [40, 2000]),
    ]
    assert "1438 training images" in problems_of(space)[1].message
    assert problems_of(space, num_images=0) == []
    assert problems_of(space, num_images=100_000) == []


def test_auto_is_a_value_like_others() -> None:
    space = space_of({"e_step.num_clusters": tune.choice(["auto", "0.02,0.04"])})
    assert problems_of(space) == []
    too_few = [problem for problem in problems_of(space, num_images=4) if problem.value == "auto"]
    assert [problem.name for problem in too_few] == ["e_step.num_clusters"]


def test_of_a_choice_each_value_is_told() -> None:
    found = problems_of(
        space_of(
            {"e_step.num_clusters": tune.choice([[2000], [40], [3000]]), "e_step.alpha": tune.choice([1, 10])}
        )
    )
    assert [problem.value for problem in found] == [[2000], [3000]]


def test_a_k_of_the_recipe_that_does_not_fit_is_no_mistake_where_k_is_swept() -> None:
    assert (
        problems_of(space_of({"e_step.num_clusters": tune.choice([[20], [40]])}), "e_step.num_clusters=5000")
        == []
    )
    (problem,) = problems_of(space_of({"e_step.alpha": tune.choice([1, 10])}), "e_step.num_clusters=5000")
    assert (problem.name, problem.value) == ("e_step.num_clusters", [5000])
    assert "(with" not in problem.message  # the recipe's own


def test_values_that_only_clash_together_are_found_with_their_point() -> None:
    space = space_of(
        {"e_step.num_clusters": tune.choice([[50], [20]]), "loss.temperature": tune.choice([0.1, 0.2])}
    )
    (problem,) = problems_of(space, "loss.negative_prototypes=30")
    assert (problem.name, problem.value) == ("loss.negative_prototypes", 30)
    assert "(with e_step.num_clusters = 20, loss.temperature = 0.1)" in problem.message
    both = {
        "loss.negative_prototypes": tune.choice([10, 30]),
        "e_step.num_clusters": tune.choice([[50], [20]]),
    }
    assert [(problem.name, problem.value) for problem in problems_of(space_of(both))] == [
        ("loss.negative_prototypes", 30)
    ]


@pytest.mark.parametrize(
    "more", [{}, {"loss.temperature": tune.uniform(0.1, 0.2)}, {"e_step.iterations": tune.randint(1, 900)}]
)
def test_a_clash_away_from_the_first_values_is_found_in_grids_and_ranges(more: dict[str, Domain]) -> None:
    searched = {
        "loss.negative_prototypes": tune.choice([10, 30]),
        "e_step.num_clusters": tune.choice([[50], [20]]),
        "e_step.alpha": tune.choice([1, 2]),
        **more,
    }
    assert [problem.name for problem in problems_of(space_of(searched))] == ["loss.negative_prototypes"]


def test_of_a_range_one_value_stands_for_all() -> None:
    (problem,) = problems_of(space_of({"train.batch_size": tune.randint(64, 200)}), "resources.workers=2")
    assert problem.name == "train.batch_size"
    assert "multiple of resources.workers" in problem.message


def test_the_last_whole_number_is_tried_and_not_the_one_after() -> None:
    assert problems_of(space_of({"encoder.width": tune.randint(4, 257)})) == []
    assert [problem.value for problem in problems_of(space_of({"encoder.width": tune.randint(4, 258)}))] == [
        257
    ]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("tracking.enabled", [True, False], "recorded"),
        ("tracking.flush_s", [1.0], "recorded"),
        ("resources.workers", [0, 2], "as a constant"),
        ("evaluation.knn_neighbours", [10, 20], "measured, not the trials"),
        ("data.source", ["digits", "idx"], "other data"),
        ("data.path", ["a", "b"], "other data"),
        ("data.holdout", [0.1, 0.2], "other data"),
        ("train.keep_checkpoints", [1, 2], "not what they learn"),
        ("e_step.threads", [1, 2], "not what they learn"),
        ("seed", [0, 1], "--seeds"),
    ],
)
def test_what_is_no_hyper_parameter_is_not_swept_but_may_be_set(
    name: str, values: list[Any], said: str
) -> None:
    (problem,) = problems_of(space_of({name: tune.choice(values), "e_step.alpha": tune.choice([1, 10])}))
    assert problem.name == name
    assert said in problem.message
    constant = space_of({"e_step.alpha": tune.choice([1, 10])}, **{name: values[0]})
    assert problems_of(constant) == []


def test_the_length_of_a_run_may_be_swept() -> None:
    assert problems_of(space_of({"train.epochs": tune.choice([20, 50])})) == []


def test_a_space_without_domains_is_a_mistake() -> None:
    (problem,) = problems_of(space_of({}, train__epochs=20))
    assert problem.name == "SPACE"
    assert "sweeps no knob" in problem.message


def test_grid_search_of_no_list(tmp_path: Path) -> None:
    space = spaces.load(
        written(
            tmp_path,
            'BASE = "digits"\nSPACE = {"e_step.alpha": {"grid_search": 5}, "loss.temperature":'
            " tune.uniform(0.1, 0.2)}\n",
        )
    )
    (problem,) = problems_of(space)
    assert (problem.name, problem.message) == ("e_step.alpha", "grid_search takes a list of values")
