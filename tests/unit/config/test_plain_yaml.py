"""Texts that are no plain values, whatever they would do to YAML's constructors: refused, or plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray import config as configs
from pcl_ray.config import plain_yaml
from pcl_ray.errors import ConfigError

NASTY = [
    "{" * 200,
    "[" * 200,
    "- " * 500 + "1",
    "!!timestamp 202-01-01",
    "!!python/object/apply:os.system [true]",
    "!!int x",
    "!!binary =",
    "! x",
    "[&a 1, *a]",
    "2024-13-45",
    "1" * 5000,
    ".".join("1" * 2000),
    "? [a]: b",
    "{[a]: b}",
    "{{a: b}: c}",
    "<<: 1",
    "\x00",
    "a: b: c",
    "@x",
    "%YAML 1.1",
]


KNOBS = ("e_step.cold_iterations", "encoder.stem", "e_step.num_clusters", "data.path", "data.exclude")


def mistakes(recipe: str | Path, overrides: list[str]) -> list[str]:
    """What is wrong, [] where nothing is."""
    try:
        configs.load(recipe, overrides)
    except ConfigError as error:
        return list(map(str, error.problems)) or [str(error)]
    return []


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("text", NASTY)
def test_a_value_is_read_or_is_plain_text(text: str, knob: str) -> None:
    assert all(line.startswith(knob) for line in mistakes("digits", [f"{knob}={text}"]))


@pytest.mark.parametrize("text", NASTY)
def test_a_recipe_is_read_or_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"e_step:\n  alpha: {text}\n")
    assert not any("\n" in line for line in mistakes(tmp_path / "mine.yaml", []))


def test_plain_values_are_read() -> None:
    values: dict[str, Any] = {
        "1": 1,
        "1e-3": "1e-3",  # YAML 1.1; pydantic makes it a number
        "1.0e-3": 0.001,
        "true": True,
        "null": None,
        "[1, 2.5, x]": [1, 2.5, "x"],
        "{a: {b: [c]}}": {"a": {"b": ["c"]}},
        "": None,
    }
    assert {text: plain_yaml.load(text) for text in values} == values
    assert plain_yaml.load(f"{'[' * 20}{']' * 20}") is not None


def test_aliases_are_read_where_pyyaml_wrote_them() -> None:
    values = [1, 2]
    text = yaml.safe_dump({"a": values, "b": values})
    assert plain_yaml.load(text, aliases=True) == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(ValueError, match="aliases are not read here"):
        plain_yaml.load(text)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_whatever_is_typed_raises_nothing_else(text: str) -> None:
    mistakes("digits", [f"loss.temperature={text}"])
