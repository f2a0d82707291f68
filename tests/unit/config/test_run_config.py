from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray import config as configs
from pcl_ray.config import RunConfig


def test_flatten_has_every_knob_under_its_dotted_name() -> None:
    flat = RunConfig().flatten()
    assert flat["loss.temperature"] == 0.2
    assert flat["e_step.alpha"] == 10.0
    assert flat["e_step.num_clusters"] == (25000, 50000, 100000)
    assert flat["seed"] == 0
    assert set(flat) == {knob.name for knob in configs.describe()}
    assert configs.load("digits", flat) == RunConfig()  # and each of these names is one that overrides take


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
        "e_step.num_clusters": st.one_of(
            st.just("auto"),
            st.lists(st.one_of(st.integers(2, 10**6), st.floats(1e-6, 0.999)), min_size=1, max_size=4),
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


def test_the_configuration_is_frozen() -> None:
    config = RunConfig()
    with pytest.raises(pydantic.ValidationError):
        config.loss.temperature = 0.5
    with pytest.raises(pydantic.ValidationError):
        config.loss = config.loss
    assert hash(config) == hash(RunConfig())


@pytest.mark.parametrize("module", ["pcl_ray.config", "pcl_ray.plan"])
def test_import_pulls_in_nothing_heavy(loaded_by: Callable[..., list[str]], module: str) -> None:
    assert loaded_by(module, "torch", "numpy", "ray", "mlflow", "torchvision", "sklearn", "faiss") == []


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("[ab]*.png", ["[ab]*.png"]),
        ("*_[0-9]", ["*_[0-9]"]),
        ("[ab]*,[cd]*", ["[ab]*", "[cd]*"]),
        ("[a.png, b.png]", ["a.png", "b.png"]),
        ("[]", []),
        ("", []),
    ],
)
def test_patterns_keep_their_brackets(text: str, patterns: list[str]) -> None:
    config = configs.load("folder", {"data.path": "/x", "data.exclude": text})
    assert list(config.data.exclude) == patterns
