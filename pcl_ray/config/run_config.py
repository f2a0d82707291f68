"""The configuration of one run: typed sections, recipes, overrides, and every mistake reported at once.

A knob has one dotted name everywhere (`loss.temperature`): in recipes, on the command line, in sweep spaces,
in error messages and as MLflow parameter. Defaults are the paper's v2 setting where the paper has one.
Imports neither torch nor numpy, so that `--help` and a wrong key answer at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pcl_ray.config import knobs
from pcl_ray.config.sections import (
    AugmentConfig,
    DataConfig,
    EncoderConfig,
    EStepConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    ResourcesConfig,
    Section,
    TrackingConfig,
    TrainConfig,
)
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support.text import suggestion_sentence


class RunConfig(Section):
    """One experiment. Frozen: what follows from it and the data is in `plan.RunPlan`."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    e_step: EStepConfig = EStepConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of everything random in the run.")

    def flatten(self) -> dict[str, Any]:
        """Every knob under its dotted name: {"loss.temperature": 0.2, …}."""
        return dict(_leaves(self.model_dump()))

    def to_yaml(self) -> str:
        """The whole configuration as a recipe that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe() -> list[knobs.Knob]:
    """Every knob with its type, default, range and a sentence."""
    return [knobs.knob_from(name, field) for name, field in knobs.fields_of(RunConfig).items()]


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


def with_overrides(config: RunConfig, overrides: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with some knobs changed. Raises ConfigError with every mistake."""
    return _validated(config.model_dump(), overrides)


def load_leniently(
    recipe_or_path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[RunConfig, list[Problem]]:
    """As `load`, but wrong knobs fall back to their defaults: lets the cross-checks report their part in the
    same breath.
    """
    tree = _read_recipe(recipe_or_path)
    problems = _apply(tree, overrides)
    config, wrong = _build(tree)
    return config, problems + wrong


def _validated(tree: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    problems = _apply(tree, overrides)
    config, wrong = _build(tree)
    if problems + wrong:
        raise ConfigError(problems + wrong)
    return config


def _read_recipe(recipe_or_path: str | Path) -> dict[str, Any]:
    path = Path(recipe_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"recipe file {str(recipe_or_path)!r} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {str(recipe_or_path)!r} cannot be read: {error}") from None
    elif str(recipe_or_path) in recipe_names():
        text = (resources.files("pcl_ray.config.recipes") / f"{recipe_or_path}.yaml").read_text(
            encoding="utf-8"
        )
    else:
        hint = suggestion_sentence(str(recipe_or_path), recipe_names())
        raise ConfigError(
            f"unknown recipe {str(recipe_or_path)!r}.{hint} Shipped: {', '.join(recipe_names())}; or give the"
            " path of a .yaml file"
        )
    try:
        tree = yaml.safe_load(text) or {}
    # ValueError: dates like 2024-13-45, numbers of thousands of digits
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"recipe {str(recipe_or_path)!r} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"recipe {str(recipe_or_path)!r} must be a mapping of sections, not {type(tree).__name__}"
        )
    return _sections(tree)


def _sections(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The same recipe with text keys, and with `loss.temperature: 0.1` as `loss: {temperature: 0.1}`: a knob
    has its dotted name here too.
    """
    sections: dict[str, Any] = {}
    dotted: dict[str, Any] = {}
    for key, value in tree.items():
        field = RunConfig.model_fields.get(str(key))
        if value is None and field is not None and isinstance(field.default, Section):
            continue  # a section's heading with nothing below it
        (dotted if "." in str(key) else sections)[str(key)] = (
            {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        )
    _apply(sections, dotted)
    return sections


def _apply(tree: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> list[Problem]:
    """Writes overrides into the tree; gives back the ones that could not even be read."""
    if not isinstance(overrides, Mapping):
        parsed, problems = parse(overrides)
    else:
        parsed, problems = dict(overrides), []
    for name, value in parsed.items():
        *parents, leaf = str(name).split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    return problems


def parse(overrides: Iterable[str]) -> tuple[dict[str, Any], list[Problem]]:
    """`KEY=VALUE` words as a mapping, and those that are not written so."""
    parsed: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name:
            problems.append(Problem(text, text, "overrides are written KEY=VALUE, e.g. loss.temperature=0.1"))
            continue
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # as above: what is no YAML is plain text
            parsed[name.strip()] = value
    return parsed, problems


def _build(tree: dict[str, Any]) -> tuple[RunConfig, list[Problem]]:
    """The config and the mistakes; wrong knobs are taken out and left at their defaults."""
    try:
        return RunConfig.model_validate(tree), []
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    fields = knobs.fields_of(RunConfig)
    problems: dict[str, Problem] = {}
    places = []
    for mistake in mistakes:
        place = knobs.knob_of([str(part) for part in mistake["loc"]], fields)
        value = _lookup(tree, ".".join(place), mistake.get("input"))
        unknown_section = (
            len(place) == 1
            and place[0] not in RunConfig.model_fields
            and isinstance(value, Mapping)
            and value
        )
        for name, wrong in _leaves(value, f"{place[0]}.") if unknown_section else [(".".join(place), value)]:
            problems.setdefault(name, knobs.explain(name, wrong, mistake, fields))
        places.append(place)
    for place in places:
        _remove(tree, place)
    return RunConfig.model_validate(tree), list(problems.values())


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
