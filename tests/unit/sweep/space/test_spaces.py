from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pcl_ray import config as configs
from pcl_ray.errors import ConfigError
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray import tune  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402
from ray.tune.search.sample import Domain, Float  # noqa: E402
from search_spaces import space_of  # noqa: E402

from pcl_ray.support.text import value_text  # noqa: E402
from pcl_ray.sweep.space import spaces  # noqa: E402

# --- points


def test_grid_varies_the_e_step_slowest() -> None:
    space = space_of(
        {
            "e_step.num_clusters": tune.choice([[20], [40]]),
            "loss.temperature": tune.choice([0.1, 0.2, 0.4]),
            "e_step.alpha": tune.choice([1, 10]),
        }
    )
    found = [
        (point["e_step.num_clusters"], point["e_step.alpha"], point["loss.temperature"])
        for point in spaces.grid(space)
    ]
    assert found == [(k, alpha, tau) for k in ([20], [40]) for alpha in (1, 10) for tau in (0.1, 0.2, 0.4)]
    assert spaces.size(space) == 12


@pytest.mark.parametrize(
    ("domain", "count"),
    [
        (tune.choice([1, 2, 3]), 3),
        (tune.randint(2, 7), 5),
        (tune.lograndint(1, 1001), 1000),
        (tune.randint(0, 1001), None),
        (tune.uniform(0, 1), None),
        (tune.quniform(0, 1, 0.5), None),
    ],
)
def test_size_counts_what_can_be_counted(domain: Domain, count: int | None) -> None:
    assert spaces.size(space_of({"a": domain})) == count
    assert spaces.size(space_of({"a": domain, "b": tune.choice([1, 2])})) == (
        None if count is None else 2 * count
    )
    if count is not None:
        assert len(spaces.grid(space_of({"a": domain}))) == count


def test_grid_of_whole_numbers_ends_before_the_upper_end() -> None:
    assert [point["a"] for point in spaces.grid(space_of({"a": tune.randint(2, 5)}))] == [2, 3, 4]


def test_no_grid_of_a_range() -> None:
    with pytest.raises(ConfigError) as caught:
        spaces.grid(
            space_of(
                {
                    "loss.temperature": tune.loguniform(0.05, 0.5),
                    "e_step.alpha": tune.choice([1]),
                    "optimizer.lr": tune.uniform(0.01, 0.1),
                }
            )
        )
    assert [problem.name for problem in caught.value.problems] == ["loss.temperature", "optimizer.lr"]
    assert "log-uniform 0.05 … 0.5" in str(caught.value)


MIXED = {
    "loss.temperature": tune.loguniform(0.05, 0.5),
    "e_step.alpha": tune.uniform(0.05, 0.5),
    "encoder.width": tune.randint(4, 9),
    "e_step.num_clusters": tune.choice([[20], [40]]),
}


def test_draw_is_reproducible() -> None:
    np.random.seed(1)  # not what is drawn from
    first = spaces.draw(space_of(MIXED), 20, 3)
    np.random.seed(2)
    assert spaces.draw(space_of(MIXED), 20, 3) == first
    assert spaces.draw(space_of(MIXED), 5, 3) == first[:5]
    assert spaces.draw(space_of(MIXED), 20, 4) != first


def test_draw_stays_in_the_domains_and_is_written_as_it_is() -> None:
    points = spaces.draw(space_of(MIXED), 200, 0)
    assert all(
        0.05 <= point["loss.temperature"] <= 0.5
        and float(value_text(point["loss.temperature"])) == point["loss.temperature"]
        for point in points
    )
    assert {point["encoder.width"] for point in points} == {4, 5, 6, 7, 8}
    assert {str(point["e_step.num_clusters"]) for point in points} == {"[20]", "[40]"}
    assert {type(value) for point in points for value in point.values()} == {float, int, list}
    # by logarithm, and not
    assert (
        np.median([point["loss.temperature"] for point in points])
        < 0.2
        < np.median([point["e_step.alpha"] for point in points])
    )


def test_draw_of_two_knobs_is_independent() -> None:
    points = spaces.draw(space_of({"a": tune.uniform(0, 1), "b": tune.uniform(0, 1)}), 400, 0)
    assert abs(np.corrcoef([point["a"] for point in points], [point["b"] for point in points])[0, 1]) < 0.2


def test_snapped_takes_the_nearest_level() -> None:
    snapped = spaces.snapped(space_of({"loss.temperature": tune.loguniform(0.05, 0.5)}), 3)
    middle = 0.1581  # of the logarithms
    assert [
        snapped({"loss.temperature": tau, "e_step.alpha": 7})["loss.temperature"]
        for tau in (0.05, 0.088, 0.09, 0.28, 0.29, 0.5)
    ] == [0.05, 0.05, middle, middle, 0.5, 0.5]
    assert snapped({"loss.temperature": 0.1, "e_step.alpha": 7}) == {
        "loss.temperature": middle,
        "e_step.alpha": 7,
    }
    assert pickle.loads(pickle.dumps(snapped))({"loss.temperature": 0.1}) == {"loss.temperature": middle}


def test_snapped_is_even_in_a_uniform_range() -> None:
    snapped = spaces.snapped(space_of({"loss.temperature": tune.uniform(0.1, 0.5)}), 5)
    assert {snapped({"loss.temperature": tau})["loss.temperature"] for tau in np.linspace(0.1, 0.5, 201)} == {
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    }


@pytest.mark.parametrize(
    "searched",
    [
        {"loss.temperature": tune.choice([0.1, 0.3])},
        {"loss.temperature": tune.quniform(0.1, 0.5, 0.1)},
        {"e_step.alpha": tune.uniform(1, 2)},
    ],
)
def test_snapped_leaves_what_has_no_range_of_temperatures(searched: dict[str, Any]) -> None:
    point = {"loss.temperature": 0.1234, "e_step.alpha": 1.5}
    assert spaces.snapped(space_of(searched), 2)(dict(point)) == point


def test_snap_without_levels_and_with_too_few() -> None:
    space, point = space_of({"loss.temperature": tune.uniform(0.1, 0.5)}), {"loss.temperature": 0.123}
    assert spaces.snap(space, point, None) == point
    assert spaces.snap(space, point, 3) == {"loss.temperature": 0.1}
    assert point == {"loss.temperature": 0.123}
    with pytest.raises(ConfigError, match="2 or more"):
        spaces.snapped(space, 1)


def test_a_searcher_gets_primitives() -> None:
    space = space_of(
        {
            "e_step.num_clusters": tune.choice([[0.01, 0.02], [50], "0.05"]),
            "e_step.balance": tune.choice([None, 2.0]),
            **{k: MIXED[k] for k in list(MIXED)[:3]},
        }
    )
    handed = spaces.to_tune(space)
    assert list(handed) == list(space.domains)
    assert handed["e_step.num_clusters"].categories == ["0.01,0.02", "50", "0.05"]
    assert handed["e_step.balance"].categories == [None, 2.0]
    assert isinstance(handed["loss.temperature"], Float)
    distributions = OptunaSearch.convert_search_space(handed)
    assert distributions["encoder.width"].high == 8
    config = configs.load("digits")
    for text, listed in zip(
        handed["e_step.num_clusters"].categories, space.domains["e_step.num_clusters"].categories, strict=True
    ):
        assert configs.with_overrides(config, {"e_step.num_clusters": text}) == configs.with_overrides(
            config, {"e_step.num_clusters": listed}
        )


# --- words


def test_described() -> None:
    searched = {
        "loss.temperature": tune.loguniform(0.05, 0.5),
        "loss.prototype_weight": tune.uniform(0.5, 2),
        "optimizer.lr": tune.quniform(0.1, 0.5, 0.1),
        "encoder.width": tune.randint(4, 9),
        "loss.queue_size": tune.lograndint(4, 9),
        "e_step.alpha": tune.choice([1, 3.0, 10]),
        "e_step.num_clusters": tune.choice([[0.01, 0.02], [0.05]]),
    }
    assert spaces.described(space_of(searched, train__epochs=20)) == [
        ("loss.temperature", "log-uniform 0.05 … 0.5"),
        ("loss.prototype_weight", "uniform 0.5 … 2"),
        ("optimizer.lr", "uniform 0.1 … 0.5 in steps of 0.1"),
        ("encoder.width", "uniform whole numbers 4 … 8"),
        ("loss.queue_size", "log-uniform whole numbers 4 … 8"),
        ("e_step.alpha", "one of 1, 3, 10"),
        ("e_step.num_clusters", "one of 0.01,0.02; 0.05"),
        ("train.epochs", "fixed 20"),
    ]


def test_ray_is_not_imported_by_what_answers_at_once(loaded_by: Callable[..., list[str]]) -> None:
    assert loaded_by("pcl_ray.sweep, tune_spaces", "ray") == []
