"""What is wrong with a space before any trial starts: knobs, values, and both with recipe and data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support.text import value_text
from pcl_ray.sweep.space import domains, spaces
from pcl_ray.sweep.space.spaces import Space

_ALL_UP_TO = 200  # grids up to this size are checked whole
_DRAWN = 50  # points that are checked of others


def problems(space: Space, base: RunConfig, num_images: int, num_holdout: int) -> list[Problem]:
    """Every mistake, each once.

    base: what all trials have in common, with the space's constants in it. num_images: 0 where the data are
    missing; then what needs N is left out.
    """
    mistakes: list[Problem] = []
    if not space.domains:
        message = (
            "sweeps no knob; give at least one a range, e.g. loss.temperature: tune.loguniform(0.05, 0.5)"
        )
        mistakes.append(Problem("SPACE", {}, message))
    for name, value in space.fixed.items():
        if isinstance(value, Mapping):
            mistakes.append(_nested(name, value))
        else:
            mistakes += _mistakes(base, {name: value})
    searchable: dict[str, Domain] = {}
    for name, domain in space.domains.items():
        knob_mistakes, usable = _check_knob(name, domain, base)
        mistakes += knob_mistakes
        if usable is not None:
            searchable[name] = usable
    return mistakes + _together(replace(space, domains=searchable), base, num_images, num_holdout)


def _nested(name: str, value: Mapping[Any, Any]) -> Problem:
    if list(value) == ["grid_search"]:
        return Problem(name, value, "grid_search takes a list of values")
    inner = ", ".join(repr(f"{name}.{leaf}") for leaf in value) or repr("loss.temperature")
    shown = {leaf: domains.words(part) if isinstance(part, Domain) else part for leaf, part in value.items()}
    return Problem(name, shown, f"a space has no levels; write dotted names, here {inner}")


def _check_knob(name: str, domain: Domain, base: RunConfig) -> tuple[list[Problem], Domain | None]:
    """The mistakes of one knob alone, and the part of its domain to try: a choice without wrong values."""
    reason = domains.wrong(domain) or _unsweepable(name)
    if reason:
        return [Problem(name, domains.words(domain), reason)], None
    edges = domains.edges(domain)
    if name not in base.flatten():
        return _mistakes(base, {name: edges[0]}), None  # the same for each value
    distinct = {value_text(value): value for value in edges}.values()
    of_values = [(value, _mistakes(base, {name: value})) for value in distinct]
    mistakes = [problem for _, of_value in of_values for problem in of_value]
    if not isinstance(domain, Categorical):
        return mistakes, None if mistakes else domain
    if twice := domains.repeated(domain):
        mistakes = [Problem(name, domains.words(domain), twice), *mistakes]
    right = [value for value, of_value in of_values if not of_value]
    return mistakes, tune.choice(right) if right else None


def _unsweepable(name: str) -> str | None:
    """Why a knob is nothing to compare trials over."""
    if name == "seed":
        return "is no hyper-parameter; --seeds repeats each configuration with several seeds"
    if name.startswith("evaluation."):
        return "would change how trials are measured, not the trials; set it for all, as a constant"
    if name.startswith("data."):
        return "trials on other data cannot be compared with each other; set it for all, as a constant"
    is_knob = name in configs.knobs.names()
    if is_knob and configs.properties(name).changeable_on_resume and name != "train.epochs":
        return (
            "would change how trials are computed or recorded, not what they learn; set it for all, as a"
            " constant"
        )
    return None


def _mistakes(base: RunConfig, values: Mapping[str, Any]) -> list[Problem]:
    """What the configuration itself refuses in these values."""
    try:
        configs.with_overrides(base, values)
    except ConfigError as error:
        return list(error.problems)
    return []


def _together(space: Space, base: RunConfig, num_images: int, num_holdout: int) -> list[Problem]:
    """What whole points get wrong that no knob does alone: K above N, a warm-up as long as the run."""

    def check_point(config: RunConfig) -> list[Problem]:
        if not num_images:
            return plans.check_alone(config)
        return plans.check(config, num_images, num_holdout)[0]

    different: dict[tuple[str, str, str], Problem] = {}
    of_base = set(map(str, check_point(base)))
    for point in _points(space):
        values = ", ".join(f"{name} = {value_text(value)}" for name, value in point.items())
        for problem in check_point(configs.with_overrides(base, point)):
            likeness = _likeness(problem, space)
            if problem.name not in space.domains and str(problem) not in of_base:
                problem = replace(problem, message=f"{problem.message} (with {values})")
            different.setdefault(likeness, problem)
    return list(different.values())


def _likeness(problem: Problem, space: Space) -> tuple[str, str, str]:
    """What two mistakes have in common that count as one: they differ in numbers only. Of a range one value
    stands for all, of a choice each is reported.
    """
    of_range = problem.name in space.domains and not isinstance(space.domains[problem.name], Categorical)
    return problem.name, "" if of_range else repr(problem.value), re.sub(r"[\d.]+", "", problem.message)


def _points(space: Space) -> list[dict[str, Any]]:
    """Points with every value of a choice and both ends of a range, then the grid or a part of the space."""
    edges = {name: domains.edges(domain) for name, domain in space.domains.items()}
    first = {name: values[0] for name, values in edges.items()}
    points = [first | {name: value} for name, values in edges.items() for value in values]
    count = spaces.size(space)
    if count is not None and count <= _ALL_UP_TO:
        return points + spaces.grid(space)
    return points + spaces.draw(space, _DRAWN, 0)
