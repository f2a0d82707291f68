from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray import config as configs
from pcl_ray.config import EStepConfig, RunConfig
from pcl_ray.errors import ConfigError


def refused(overrides: list[str] | dict[str, Any], recipe: str | Path = "digits") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        configs.load(recipe, overrides)
    return caught.value


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("loss.temperatur", "loss.temperature"),
        ("temperature", "loss.temperature"),
        ("los.temperature", "loss.temperature"),
        ("estep.alpha", "e_step.alpha"),
        ("optimiser.lr", "optimizer.lr"),
        ("e_step.temperature", "loss.temperature"),
        ("train.lr", "optimizer.lr"),
        ("alpha", "e_step.alpha"),
        ("e_step.k_clusters", "e_step.num_clusters"),
        ("sed", "seed"),
    ],
)
def test_unknown_key_says_which_was_meant(given: str, meant: str) -> None:
    (problem,) = refused([f"{given}=1"]).problems
    assert problem.name == given
    assert f"did you mean {meant!r}?" in problem.message


def test_unknown_key_without_likeness_names_the_way_to_the_list() -> None:
    assert "--describe" in str(refused(["wxyz=1"]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=many", "whole number ≥ 1"),
        ("train.epochs=1.5", "whole number ≥ 1"),
        ("train.epochs=0", "whole number ≥ 1"),
        ("loss.temperature=0", "number > 0 and ≤ 10"),
        ("loss.temperature=.nan", "number > 0 and ≤ 10"),
        ("loss.temperature=true", "true/false given"),
        ("optimizer.lr=.inf", "number > 0 and ≤ 100"),
        ("optimizer.momentum=1", "number ≥ 0 and < 1"),
        ("encoder.head=deep", "linear | mlp"),
        ("encoder.backbone=vgg16", "resnet18 … resnet152"),
        ("loss.mask_duplicates=perhaps", "true | false"),
        ("loss.negative_prototypes=some", "auto | all | whole number ≥ 1"),
        ("loss.negative_prototypes=0", "auto | all | whole number ≥ 1"),
        ("loss.negative_prototypes=true", "true/false given; allowed: auto | all | whole number ≥ 1"),
        ("data.in_memory=maybe", "allowed: true | false | auto"),
        ("data.in_memory=2", "allowed: true | false | auto"),
        ("data.in_memory=", "allowed: true | false | auto"),
        ("data.in_memory=[true]", "allowed: true | false | auto"),
        ("data.memory_gb=0", "number > 0"),
        ("data.memory_gb=auto", "number > 0"),
        ("data.memory_gb=true", "true/false given; allowed: number > 0"),
        ("data.reduced_decoding=half", "true | false"),
        ("data.loader_workers=-1", "whole number | null ≥ 0 and ≤ 128"),
        ("data.loader_workers=129", "whole number | null ≥ 0 and ≤ 128"),
        ("data.loader_workers=auto", "whole number | null ≥ 0 and ≤ 128"),
        ("data.prefetch=65", "whole number | null ≥ 0 and ≤ 64"),
        ("data.prefetch=true", "true/false given; allowed: whole number | null"),
        ("augment.engine=gpu", "batch | torchvision"),
        ("train.micro_batch=1", "whole number | null ≥ 2"),
        ("train.micro_batch=false", "true/false given; allowed: whole number | null ≥ 2"),
        ("train.memory_format=nhwc", "channels_last | contiguous"),
        ("train.compile=maybe", "true | false"),
        ("optimizer.fused=auto", "true | false"),
        ("data.channels=2", "1 | 3"),
        ("augment.std=[0.2, 0]", "list of number, each > 0"),
        ("e_step.clip=[90, 10]", "two rising percentiles between 0 and 100"),
        ("e_step.num_clusters=1", "1 is neither a count of 2 or more nor a share between 0 and 1"),
        ("e_step.num_clusters=2.5", "2.5 is neither"),
        ("e_step.num_clusters=-3", "-3 is neither"),
        ("e_step.num_clusters=[10, many]", "list of whole number | number"),
        ("e_step.num_clusters=", "list of whole number | number"),
        ("seed=-1", "whole number ≥ 0 and ≤ 2147483647"),
        ("loss=5", "is a section and takes temperature, queue_size"),
        ("loss.temperature", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train.epochs=" + "9" * 5000, "whole number ≥ 1"),
    ],
)
def test_wrong_value_says_what_is_allowed(override: str, said: str) -> None:
    error = refused([override])
    (problem,) = error.problems
    assert problem.name == (override.partition("=")[0] or "=3")
    assert said in problem.message
    assert len(str(error)) < 400


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {temperature: -1, temprature: 3}\ntrain: {epochs: x}\nextra: {}\n")
    error = refused(["seed=x", "optimizer.lr=0", "nonsense"], path)
    names = [problem.name for problem in error.problems]
    assert sorted(names) == sorted(
        ["loss.temperature", "loss.temprature", "train.epochs", "extra", "seed", "optimizer.lr", "nonsense"]
    )
    assert len(str(error).splitlines()) == 7


def test_overrides_win_over_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {temperature: 0.5, queue_size: 64}\n")
    config = configs.load(path, ["loss.temperature=0.1", "loss.temperature=0.3"])
    assert config.loss.temperature == 0.3  # the last word
    assert config.loss.queue_size == 64
    assert config.loss.mask_duplicates is RunConfig().loss.mask_duplicates  # said nowhere
    assert configs.load(path, {"loss.temperature": 0.1}) == configs.load(path, ["loss.temperature=0.1"])


def test_an_override_can_mend_the_recipe(tmp_path: Path) -> None:
    assert configs.load(written(tmp_path, "train: {epochs: x}\n"), ["train.epochs=3"]).train.epochs == 3


def test_with_overrides_leaves_the_original() -> None:
    config = RunConfig()
    changed = configs.with_overrides(config, ["loss.temperature=0.5"])
    assert (config.loss.temperature, changed.loss.temperature) == (0.2, 0.5)
    with pytest.raises(ConfigError, match=r"loss\.tau"):
        configs.with_overrides(config, {"loss.tau": 1})


def test_load_leniently_reports_and_keeps_the_rest() -> None:
    config, problems = configs.load_leniently(
        "digits", ["train.epochs=0", "loss.temperature=0.4", "nonsense", "loss.tau=1"]
    )
    assert sorted(problem.name for problem in problems) == ["loss.tau", "nonsense", "train.epochs"]
    assert config.loss.temperature == 0.4
    assert config.train.epochs == RunConfig().train.epochs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250", (250,)),
        ("[250, 500]", (250, 500)),
        ("250,500", (250, 500)),
        ("0.02", (0.02,)),
        ("1e-2", (0.01,)),
        ("[100, 0.5]", (100, 0.5)),
        ("100.0", (100,)),
    ],
)
def test_counts_and_shares(text: str, expected: tuple[int | float, ...]) -> None:
    found = configs.load("digits", [f"e_step.num_clusters={text}"]).e_step.num_clusters
    assert found == expected
    # a count is an int and a share a float: the plan tells them apart so
    assert [type(k) for k in found] == [type(k) for k in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("false", False),
        ("True", True),
        ("yes", True),
        ("off", False),
        ("auto", "auto"),
        ("'auto'", "auto"),
        ("'true'", True),
    ],
)
def test_in_memory_is_yes_no_or_auto(text: str, expected: bool | str) -> None:
    found = configs.load("digits", [f"data.in_memory={text}"]).data.in_memory
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("knob", ["data.loader_workers", "data.prefetch", "train.micro_batch"])
def test_null_leaves_the_choice(knob: str) -> None:
    assert configs.load("digits", [f"{knob}=3"]).flatten()[knob] == 3
    assert configs.load("digits", [f"{knob}=null"]).flatten()[knob] is None


def test_a_wrong_value_of_several_kinds_is_one_sentence() -> None:
    (problem,) = refused(["data.in_memory=maybe"]).problems
    assert str(problem) == "data.in_memory = 'maybe': allowed: true | false | auto"


def test_a_huge_count_is_left_to_the_plan() -> None:
    assert EStepConfig(num_clusters=10**400).num_clusters == (10**400,)


@pytest.mark.parametrize("value", ["1e-3", "0.001", "'0.001'"])
def test_numbers_as_people_write_them(value: str) -> None:
    assert configs.load("digits", [f"optimizer.lr={value}"]).optimizer.lr == 0.001


@pytest.mark.parametrize("path", ["*.npy", "{", "2024-13-45", "a=b", "/data/x y"])
def test_text_that_is_no_yaml_is_plain_text(path: str) -> None:
    assert configs.load("digits", [f"data.path={path}"]).data.path == path


def test_flatten_has_every_knob_under_its_dotted_name() -> None:
    flat = RunConfig().flatten()
    assert flat["loss.temperature"] == 0.2
    assert flat["e_step.alpha"] == 10.0
    assert flat["e_step.num_clusters"] == (25000, 50000, 100000)
    assert flat["seed"] == 0
    assert set(flat) == {knob.name for knob in configs.describe()}
    assert configs.load("digits", flat) == RunConfig()  # and each of these names is one that overrides take


def test_describe_has_a_sentence_for_every_knob() -> None:
    knobs = configs.describe()
    sections = [name for name, field in RunConfig.model_fields.items() if name != "seed"]
    expected = {
        f"{section}.{leaf}" for section in sections for leaf in getattr(RunConfig(), section).model_dump()
    } | {"seed"}
    assert {knob.name for knob in knobs} == expected
    assert len(knobs) == len(expected)
    for knob in knobs:
        assert len(knob.sentence) > 5, knob
        assert knob.sentence.endswith("."), knob
        assert knob.type
        assert knob.allowed
        assert "typing" not in knob.type + knob.allowed
        assert "class" not in knob.type + knob.allowed
    temperature = next(knob for knob in knobs if knob.name == "loss.temperature")
    assert (temperature.type, temperature.default, temperature.allowed) == (
        "number",
        0.2,
        "number > 0 and ≤ 10",
    )


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "loss.temperature": st.floats(1e-8, 10),
        "loss.negative_prototypes": st.one_of(st.sampled_from(["auto", "all"]), st.integers(1, 10**6)),
        "data.in_memory": st.sampled_from(["auto", True, False]),
        "data.prefetch": st.one_of(st.none(), st.integers(0, 64)),
        "train.micro_batch": st.one_of(st.none(), st.integers(2, 10**6)),
        "train.memory_format": st.sampled_from(["channels_last", "contiguous"]),
        "optimizer.fused": st.booleans(),
        "e_step.num_clusters": st.lists(
            st.one_of(st.integers(2, 10**6), st.floats(1e-6, 0.999)), min_size=1, max_size=4
        ),
        "optimizer.lr": st.floats(1e-12, 100),
        "optimizer.milestones": st.lists(st.integers(0, 500), max_size=3),
        "encoder.blocks": st.lists(st.integers(1, 32), min_size=1, max_size=4),
        "data.path": st.one_of(
            st.none(), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
        ),
        "data.limit": st.one_of(st.none(), st.integers(2, 10**9)),
        "loss.mask_duplicates": st.booleans(),
        "seed": st.integers(0, 2**31 - 1),
    },
)


@given(overrides=OVERRIDES)
def test_to_yaml_is_a_recipe_of_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
) -> None:
    config = configs.with_overrides(RunConfig(), overrides)
    path = tmp_path_factory.mktemp("roundtrip") / "recipe.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert configs.load(path) == config


@given(
    name=st.sampled_from(sorted(RunConfig().flatten()) + ["nothing", "loss", "loss.x.y", "."]),
    value=st.text(max_size=12),
)
def test_no_override_ends_in_anything_but_a_configuration_or_a_config_error(name: str, value: str) -> None:
    # Any other exception would reach the user as a traceback.
    with suppress(ConfigError):
        assert isinstance(configs.load("digits", [f"{name}={value}"]), RunConfig)


def test_the_configuration_is_frozen() -> None:
    config = RunConfig()
    with pytest.raises(pydantic.ValidationError):
        config.loss.temperature = 0.5
    with pytest.raises(pydantic.ValidationError):
        config.loss = config.loss
    assert hash(config) == hash(RunConfig())


@pytest.mark.parametrize("name", configs.recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    assert isinstance(configs.load(name), RunConfig)


def test_an_unknown_recipe_says_which_was_meant_and_which_there_are() -> None:
    error = refused([], "digit")
    assert "Did you mean 'digits'?" in str(error)
    for name in configs.recipe_names():
        assert name in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must be a mapping of sections, not list"),
        ("a: b: c", "is not valid YAML"),
        ("data: {path: 2024-13-45}", "is not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("1: 2", "1 = 2: unknown key"),
        ("loss: {1: 2}", "loss.1 = 2: unknown key"),
        ("loss: {a.b: 3}", "loss.a.b = 3: unknown key"),
        ("loss: 5", "is a section and takes"),
        ("loss.temperature: -1", "loss.temperature = -1: allowed: number > 0"),
    ],
)
def test_a_broken_recipe_is_a_config_error(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in str(refused([], written(tmp_path, text)))


def test_a_missing_recipe_file_is_a_config_error(tmp_path: Path) -> None:
    assert "nowhere.yaml' does not exist" in str(refused([], tmp_path / "nowhere.yaml"))


def test_a_recipe_may_write_dotted_names(tmp_path: Path) -> None:
    config = configs.load(written(tmp_path, "loss: {queue_size: 64}\nloss.temperature: 0.4\n"))
    assert (config.loss.temperature, config.loss.queue_size) == (0.4, 64)


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert configs.load(written(tmp_path, "# nothing yet\n")) == RunConfig()


def test_a_recipe_file_wins_over_no_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder called like a shipped recipe in the working directory changes nothing.
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configs.load("digits") == configs.load("digits", [])
    assert yaml.safe_load(configs.load("digits").to_yaml())["data"]["source"] == "digits"


@pytest.mark.parametrize("module", ["pcl_ray.config", "pcl_ray.plan"])
def test_import_pulls_in_nothing_heavy(
    run_python: Callable[..., subprocess.CompletedProcess[str]], module: str
) -> None:
    heavy = ["torch", "numpy", "ray", "mlflow", "torchvision", "sklearn", "faiss"]
    done = run_python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
