"""Recipes and overrides as a RunConfig, with every mistake reported at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pcl_ray.config import knobs, plain_yaml
from pcl_ray.config.run_config import RunConfig, leaves
from pcl_ray.config.sections import Section
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support.text import suggestion_sentence, value_text


def recipe_names() -> list[str]:
    """The recipes shipped with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("pcl_ray.config.recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def load(recipe_or_path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> RunConfig:
    """A shipped recipe by name, or a YAML file, with overrides (`KEY=VALUE` strings, or a mapping of dotted
    names).

    Raises ConfigError with every mistake in recipe and overrides.
    """
    return _validated(_read_recipe(recipe_or_path), overrides)


def load_stored(path: Path) -> RunConfig:
    """The configuration that a run has in its folder. Raises ConfigError, also where the file is empty, which
    no run has written: a recipe without any knob would be the defaults.
    """
    tree = _read_recipe(path)
    if not tree:
        raise ConfigError(f"{path} is empty: the configuration of that run is lost")
    # Before there was the knob, held-out files were a random choice: a run that goes on keeps them.
    data = tree.get("data")
    if isinstance(data, dict) and data.get("source") in ("folder", "parquet", "webdataset"):
        data.setdefault("split", "random")
    return _validated(tree, ())


def with_overrides(config: RunConfig, overrides: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with some knobs changed. Raises ConfigError with every mistake."""
    return _validated(config.model_dump(), overrides)


def load_leniently(
    recipe_or_path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[RunConfig, list[Problem]]:
    """What `load` gives, and the mistakes; their knobs get defaults, so that cross-checks can run too."""
    tree = _read_recipe(recipe_or_path)
    problems = _apply(tree, overrides)
    config, more_problems = _build(tree)
    return config, problems + more_problems


def _validated(tree: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    problems = _apply(tree, overrides)
    config, more_problems = _build(tree)
    if problems or more_problems:
        raise ConfigError(problems + more_problems)
    return config


def _read_recipe(recipe_or_path: str | Path) -> dict[str, Any]:
    shown = repr(str(recipe_or_path))
    text = recipe_text(str(recipe_or_path))
    try:
        tree = plain_yaml.load(text) or {}
    except ValueError as error:
        raise ConfigError(f"recipe {shown} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {shown} must be a mapping of sections, not {type(tree).__name__}")
    return _sections(tree)


def recipe_text(recipe_or_path: str) -> str:
    """The YAML of a file or a shipped recipe. Raises ConfigError where there is none that can be read."""
    path = Path(recipe_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"recipe file {recipe_or_path!r} does not exist")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {recipe_or_path!r} cannot be read: {error}") from None
    if recipe_or_path not in recipe_names():
        if os.path.isdir(path):
            shown = shlex.quote(recipe_or_path)
            raise ConfigError(
                f"{recipe_or_path!r} is a folder; of its pictures: pcl-ray train folder data.path={shown}"
            )
        hint = suggestion_sentence(recipe_or_path, recipe_names())
        raise ConfigError(
            f"unknown recipe {recipe_or_path!r}.{hint} Shipped: {', '.join(recipe_names())}; or give the path"
            " of a .yaml file"
        )
    return (resources.files("pcl_ray.config.recipes") / f"{recipe_or_path}.yaml").read_text(encoding="utf-8")


def _sections(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The same recipe with text keys, and with `loss.temperature: 0.1` as `loss: {temperature: 0.1}`."""
    sections: dict[str, Any] = {}
    dotted: dict[str, Any] = {}
    for key, value in tree.items():
        field = RunConfig.model_fields.get(str(key))
        if value is None and field is not None and isinstance(field.default, Section):
            continue  # a section's heading with nothing below it
        (dotted if "." in str(key) else sections)[str(key)] = _with_text_keys(value)
    _apply(sections, dotted)
    return sections


def _with_text_keys(value: Any) -> Any:
    """A value whose mappings have texts as keys: YAML reads `~`, `3` and `yes` as others."""
    if not isinstance(value, dict):
        return value
    return {str(key): _with_text_keys(inner) for key, inner in value.items()}


def _apply(tree: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> list[Problem]:
    """Writes overrides into the tree; gives back the ones that could not even be read."""
    problems: list[Problem] = []
    if not isinstance(overrides, Mapping):
        overrides, problems = parse(overrides)
    for name, value in overrides.items():
        *parents, leaf = str(name).split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = _with_text_keys(value)
    return problems


def as_words(overrides: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """The overrides as one types them, `KEY=VALUE`."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{name}={value_text(value, digits=None)}" for name, value in overrides.items()]


def names_of(overrides: Iterable[str] | Mapping[str, Any]) -> set[str]:
    """The knobs that overrides name."""
    if isinstance(overrides, Mapping):
        return {str(name) for name in overrides}
    return {text.partition("=")[0].strip() for text in overrides}


def parse(overrides: Iterable[str]) -> tuple[dict[str, Any], list[Problem]]:
    """`KEY=VALUE` words as a mapping, and those that are not written so."""
    parsed: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name:
            problems.append(Problem(text, text, "overrides are written KEY=VALUE, e.g. loss.temperature=0.1"))
            continue
        parsed[name.strip()] = _value(name.strip(), value)
    return parsed, problems


def _value(name: str, text: str) -> Any:
    """The value of a knob as it was typed. Where a knob takes texts, which may be names of files, YAML has
    its way with null, lists and what is in quotes alone: `a: b`, `a #1` and `007` are names, too.
    """
    try:
        value = plain_yaml.load(text)
    except ValueError:  # what is no YAML is plain text
        return text
    if value is None or isinstance(value, list) or text.strip().startswith(("'", '"')):
        return value
    return text if name in knobs.text_knobs() else value


def _build(tree: dict[str, Any]) -> tuple[RunConfig, list[Problem]]:
    """The config and the mistakes; wrong knobs are taken out and left at their defaults."""
    try:
        return RunConfig.model_validate(tree), []
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    fields = knobs.fields_of(RunConfig)
    problems: dict[str, Problem] = {}
    wrong_paths = []
    for mistake in mistakes:
        path = knobs.knob_of([str(part) for part in mistake["loc"]], fields)
        value = _lookup(tree, ".".join(path), mistake.get("input"))
        for name, wrong_value in _wrong_knobs(path, value):
            problems.setdefault(name, knobs.explain(name, wrong_value, mistake, fields))
        wrong_paths.append(path)
    for path in wrong_paths:
        _remove(tree, path)
    return RunConfig.model_validate(tree), list(problems.values())


def _wrong_knobs(path: list[str], value: Any) -> list[tuple[str, Any]]:
    """The knob at this path; of a section that does not exist, all that is written below it."""
    is_section = len(path) == 1 and path[0] not in RunConfig.model_fields and isinstance(value, Mapping)
    if is_section and value:
        return list(leaves(value, f"{path[0]}."))
    return [(".".join(path), value)]


def _lookup(tree: Any, name: str, otherwise: Any) -> Any:
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return otherwise
        tree = tree[part]
    return tree


def _remove(tree: dict[str, Any], path: list[str]) -> None:
    for part in path[:-1]:
        tree = tree[part]
    tree.pop(path[-1], None)
