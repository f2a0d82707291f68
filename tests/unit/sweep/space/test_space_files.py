from __future__ import annotations

from pathlib import Path

import pytest

from pcl_ray import config as configs
from pcl_ray.data import datasets
from pcl_ray.errors import ConfigError
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray.tune.search.sample import Categorical, Domain  # noqa: E402
from search_spaces import problems_of, written  # noqa: E402

from pcl_ray.sweep.space import checks, files, spaces  # noqa: E402

SHIPPED = ["all_three", "alpha", "num_clusters", "paper_grid", "temperature"]


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
        ("base: !!timestamp 202-01-01", "cannot be read as YAML: tags are not read here"),
        ("base: &a digits\nname: *a", "cannot be read as YAML: aliases are not read here"),
    ],
)
def test_what_is_no_space_in_yaml(tmp_path: Path, text: str, said: str) -> None:
    assert said in str(refused(written(tmp_path, text, "a.yaml")))
