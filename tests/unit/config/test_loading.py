from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small import config_error

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {temperature: -1, temprature: 3}\ntrain: {epochs: x}\nextra: {}\n")
    error = config_error(["seed=x", "optimizer.lr=0", "nonsense"], path)
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


@pytest.mark.parametrize("path", ["*.npy", "{", "2024-13-45", "a=b", "/data/x y"])
def test_text_that_is_no_yaml_is_plain_text(path: str) -> None:
    assert configs.load("digits", [f"data.path={path}"]).data.path == path


@given(
    name=st.sampled_from(sorted(RunConfig().flatten()) + ["nothing", "loss", "loss.x.y", "."]),
    value=st.text(max_size=12),
)
def test_no_override_ends_in_anything_but_a_configuration_or_a_config_error(name: str, value: str) -> None:
    # Any other exception would reach the user as a traceback.
    with suppress(ConfigError):
        assert isinstance(configs.load("digits", [f"{name}={value}"]), RunConfig)


@pytest.mark.parametrize(
    ("word", "named"),
    [("data={~: 1, 3: 4}", "data.None"), ("a.b.c={~: 1}", "a.b.c.None"), ("a={1: {yes: 2}}", "a.1.True")],
)
def test_keys_that_yaml_reads_as_no_text_are_unknown_ones(word: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"{named} = .*unknown key"):
        configs.load("digits", [word])


@pytest.mark.parametrize("name", configs.recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    assert isinstance(configs.load(name), RunConfig)


def test_an_unknown_recipe_says_which_was_meant_and_which_there_are() -> None:
    error = config_error([], "digit")
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
    assert said in str(config_error([], written(tmp_path, text)))


def test_a_missing_recipe_file_is_a_config_error(tmp_path: Path) -> None:
    assert "nowhere.yaml' does not exist" in str(config_error([], tmp_path / "nowhere.yaml"))


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


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("data: {source: folder, path: /x}", "random"),  # begun before there was the knob
        ("data: {source: parquet, path: /x}", "random"),
        ("data: {source: folder, path: /x, split: content}", "content"),
        ("data: {source: digits}", "content"),  # which it does not concern
        ("seed: 1", "content"),
    ],
)
def test_a_run_goes_on_with_the_split_that_it_began_with(tmp_path: Path, text: str, split: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert configs.load_stored(path).data.split == split
    assert configs.load(path).data.split == "content"  # a new run by its recipe
