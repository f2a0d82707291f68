from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcl_ray import config as configs
from pcl_ray.data import datasets
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray import tune  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402
from ray.tune.search.sample import Categorical, Domain, Float  # noqa: E402

from pcl_ray.support.text import value_text  # noqa: E402
from pcl_ray.sweep.space import checks, files, spaces  # noqa: E402
from pcl_ray.sweep.space.spaces import Space  # noqa: E402

N, HOLDOUT = 1438, 359  # digits
SHIPPED = ["all_three", "alpha", "num_clusters", "paper_grid", "temperature"]


def space_of(searched: dict[str, Any], **fixed: Any) -> Space:
    return Space(
        "test",
        "digits",
        searched,
        {name.replace("__", "."): value for name, value in fixed.items()},
        None,
        None,
        None,
    )


def problems_of(space: Space, *overrides: str, num_images: int = N) -> list[Problem]:
    return checks.problems(space, configs.load(space.base, list(overrides)), num_images, HOLDOUT)


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(("from ray import tune\n" if name.endswith(".py") else "") + text)
    return str(folder / name)


def refused(name_or_path: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        spaces.load(name_or_path)
    return caught.value


def same(left: Domain, right: Domain) -> bool:
    """Domains of Ray do not compare."""
    if isinstance(left, Categorical) or isinstance(right, Categorical):
        return (
            isinstance(left, Categorical)
            and isinstance(right, Categorical)
            and left.categories == right.categories
        )
    samplers = [
        (type(domain.get_sampler()), getattr(domain.get_sampler(), "q", None)) for domain in (left, right)
    ]
    return (
        type(left) is type(right)
        and vars(left)["lower"] == vars(right)["lower"]
        and vars(left)["upper"] == vars(right)["upper"]
        and len(set(samplers)) == 1
    )


# --- shipped spaces


def test_these_are_shipped() -> None:
    assert files.shipped() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_has_no_problems(name: str) -> None:
    space = spaces.load(name)
    config = configs.load(space.base)
    assert space.name == name
    assert checks.problems(space, config, *datasets.sizes(config.data)) == []
    assert space.objective is None  # by the labels of the data, which need not be the recipe's
    for point in spaces.draw(space, 5, 0):
        configs.with_overrides(config, point)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_begins_with_its_command(name: str) -> None:
    assert spaces.source(name)[1].startswith(f'"""pcl-ray sweep {name}')


def test_the_papers_setting_is_a_point_of_its_grid() -> None:
    points = spaces.grid(spaces.load("paper_grid"))
    assert len(points) == spaces.size(spaces.load("paper_grid")) == 12
    assert {"loss.temperature": 0.2, "e_step.alpha": 10.0, "e_step.num_clusters": "0.02,0.04,0.08"} in points


# --- reading

PYTHON = """
BASE = "digits"
OBJECTIVE, MODE, NUM_SAMPLES = "eval/rankme", "max", 7
SPACE = {
    "loss.temperature": tune.loguniform(0.05, 0.5),
    "loss.prototype_weight": tune.uniform(0.5, 2.0),
    "encoder.momentum": tune.quniform(0.9, 0.98, 0.02),
    "encoder.width": tune.randint(8, 16),
    "loss.queue_size": tune.lograndint(64, 512),
    "e_step.alpha": {"grid_search": [1, 10, 100]},
    "e_step.num_clusters": tune.choice(["0.01,0.02", [0.05]]),
    "train.epochs": 20,
    "e_step.clip": [5, 95],
}
"""
YAML = """
base: digits
objective: eval/rankme
mode: max
num_samples: 7
space:
  loss.temperature: {type: loguniform, low: 0.05, high: 5e-1}
  loss.prototype_weight: {type: uniform, low: 0.5, high: 2}
  encoder.momentum: {type: quniform, low: 0.9, high: 0.98, q: 0.02}
  encoder.width: {type: randint, low: 8, high: 16}
  loss.queue_size: {type: lograndint, low: 64, high: 512}
  e_step.alpha: {type: grid, values: [1, 10, 100]}
  e_step.num_clusters: {type: choice, values: ["0.01,0.02", [0.05]]}
  train.epochs: 20
  e_step.clip: [5, 95]
"""


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml_is_the_same_as_python(tmp_path: Path, suffix: str) -> None:
    python = spaces.load(written(tmp_path, PYTHON))
    other = spaces.load(written(tmp_path, YAML, f"mine{suffix}"))
    assert list(python.domains) == list(other.domains)
    assert [name for name in python.domains if not same(python.domains[name], other.domains[name])] == []
    for space in (python, other):
        assert (space.name, space.base, space.objective, space.mode, space.num_samples) == (
            "mine",
            "digits",
            "eval/rankme",
            "max",
            7,
        )
        assert space.fixed == {"train.epochs": 20, "e_step.clip": [5, 95]}
        assert problems_of(space) == []
    assert spaces.draw(python, 3, 1) == spaces.draw(other, 3, 1)


def test_objective_mode_and_number_may_be_left_out(tmp_path: Path) -> None:
    space = spaces.load(
        written(tmp_path, 'BASE = "digits"\nSPACE = {"e_step.alpha": tune.choice([1, 10])}\n')
    )
    assert (space.objective, space.mode, space.num_samples) == (None, None, None)


def test_values_are_plain_python(tmp_path: Path) -> None:
    text = """
import numpy as np
BASE = "digits"
SPACE = {
    "loss.temperature": tune.grid_search(np.linspace(0.1, 0.3, 3)),
    "e_step.num_clusters": tune.choice([(np.int64(20), 40)]),
    "train.epochs": np.int64(20),
}
"""
    space = spaces.load(written(tmp_path, text))
    points = spaces.grid(space)
    assert [point["loss.temperature"] for point in points] == pytest.approx([0.1, 0.2, 0.3])
    assert {type(point["loss.temperature"]) for point in points} == {float}
    assert points[0]["e_step.num_clusters"] == [20, 40]
    assert type(points[0]["e_step.num_clusters"][0]) is int
    assert type(space.fixed["train.epochs"]) is int


def test_source_is_the_text_that_reads_the_same(tmp_path: Path) -> None:
    file, text = spaces.source(written(tmp_path, YAML, "a.yaml"))
    assert file.endswith("a.yaml")
    assert text == YAML


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("temprature", "Did you mean 'temperature'?"),
        ("wxyz", "Shipped: all_three, alpha"),
        ("x.json", "a .py or .yaml file"),
    ],
)
def test_unknown_space_says_which_there_are(given: str, said: str) -> None:
    assert said in str(refused(given))


@pytest.mark.parametrize("name", ["none.py", "none.yaml", "none.yml"])
def test_missing_file_is_said(name: str) -> None:
    assert str(refused(name)) == f"space file {name!r} does not exist"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'BASE = "digits"\ndef half(x):\n    return x / 0\nSPACE = {"e_step.alpha": half(1)}\n',
            "line 4: ZeroDivisionError: division by zero",
        ),
        ("BASE = (\n", "line 2: SyntaxError"),
        ("import no_such_module\n", "line 2: ModuleNotFoundError"),
        ('\n\nraise SystemExit("enough")\n', "line 4: SystemExit: enough"),
        (
            'SPACE = {"loss.temperature": tune.loguniform(0, 1)}\n',
            "line 2: ValueError: LogUniform requires a lower bound greater than 0",
        ),
    ],
)
def test_code_that_fails_is_one_sentence_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    error = refused(written(tmp_path, text))
    assert f"{tmp_path / 'mine.py'}, {said}" in str(error)
    assert "\n" not in str(error)


def test_all_mistakes_in_pythons_names_at_once(tmp_path: Path) -> None:
    error = refused(
        written(
            tmp_path, 'OBJETIVE = "eval/knn_top1"\nMODE = "most"\nNUM_SAMPLES = 0\nSPACE = [1]\nHELPER = 3\n'
        )
    )
    assert {problem.name: problem.message for problem in error.problems} == {
        "OBJETIVE": "unknown name; did you mean 'OBJECTIVE'?",
        "BASE": "is missing",
        "MODE": "Input should be 'max' or 'min'",
        "NUM_SAMPLES": "Input should be greater than or equal to 1",
        "SPACE": "Input should be a valid dictionary",
    }


def test_a_misspelt_name_is_not_missing_as_well(tmp_path: Path) -> None:
    (problem,) = refused(written(tmp_path, 'BASE = "digits"\nSPAEC = {}\n')).problems
    assert (problem.name, problem.message) == ("SPAEC", "unknown name; did you mean 'SPACE'?")


def test_a_helper_like_a_name_that_is_there_is_no_mistake(tmp_path: Path) -> None:
    space = spaces.load(
        written(
            tmp_path, 'BASES = ["digits"]\nBASE = BASES[0]\nSPACE = {"e_step.alpha": tune.choice([1, 10])}\n'
        )
    )
    assert space.base == "digits"


def test_all_mistakes_in_yaml_at_once(tmp_path: Path) -> None:
    text = """
bas: digits
mode: most
space:
  loss.temperature: {type: loguniform, low: 0.5, high: 0.05}
  loss.prototype_weight: {type: loguniform, low: 0, high: 1}
  e_step.alpha: {type: chioce, values: [1]}
  e_step.num_clusters: {type: choice, values: ["0.05", [0.05]]}
  e_step.iterations: {type: grid, values: []}
  e_step: {restarts: {type: choice, values: [1]}}
  train.batch_size: {type: randint, low: 1.5, high: 9}
  encoder.momentum: {type: uniform, low: 0.1, hihg: 0.9}
  optimizer.lr: {type: quniform, low: 0.15, high: 1, q: 0.1}
  optimizer.momentum: {type: uniform, low: 0, high: .inf}
"""
    found = {problem.name: problem.message for problem in refused(written(tmp_path, text, "a.yaml")).problems}
    expected = {
        "bas": "did you mean 'base'?",
        "base": "is missing",
        "mode": "'max' or 'min'",
        "loss.temperature": "its lower end 0.5 must be below its upper end 0.05",
        "loss.prototype_weight": "low must be above 0 in a loguniform range",
        "e_step.alpha": "a mapping needs `type`: uniform",
        "e_step.num_clusters": "lists 0.05 more than once",
        "e_step.iterations": "has no values",
        "e_step": "dotted name",
        "train.batch_size.low": "valid integer",
        "encoder.momentum.hihg": "did you mean 'high'?",
        "encoder.momentum.high": "is missing",
        "optimizer.lr": "not divisible",
        "optimizer.momentum.high": "finite",
    }
    assert found.keys() == expected.keys()
    assert {name: found[name] for name in found if expected[name] not in found[name]} == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a mapping with base and space, not list"),
        ("", "not NoneType"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_what_is_no_space_in_yaml(tmp_path: Path, text: str, said: str) -> None:
    assert said in str(refused(written(tmp_path, text, "a.yaml")))


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


# --- problems


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


def test_ray_is_not_imported_by_what_answers_at_once(run_python: Callable[..., Any]) -> None:
    done = run_python("import sys, pcl_ray.sweep, tune_spaces; print('ray' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_optuna_hears_only_of_results_that_have_a_score() -> None:
    """A trial that waits for another's warm-up tells how far it is, and no score."""
    from pcl_ray.sweep.space import search
    from pcl_ray.sweep.space.settings import SweepConfig

    searcher = search.optuna(space_of({"e_step.alpha": tune.loguniform(1, 100)}), SweepConfig())
    assert set(searcher.suggest("one")) == {"e_step.alpha"}
    searcher.on_trial_result("one", {"epoch": 0, "training_iteration": 1})
    searcher.on_trial_result("one", {"epoch": 1, "training_iteration": 2, "score": 0.5})
    searcher.on_trial_complete("one", {"epoch": 1, "training_iteration": 3, "score": 0.5})
    assert searcher._ot_study.best_value == 0.5
