"""What is wrong with a space: its knobs, their values, and what they do together with recipe and data, before
any trial starts.
"""

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

_ALL_UP_TO, _DRAWN = 200, 50  # grids up to this size are checked whole, of others so many points


def problems(space: Space, config_base: RunConfig, num_images: int, num_holdout: int) -> list[Problem]:
    """Every mistake, each once.

    config_base: what all trials have in common, with the space's constants in it. num_images: 0 where the
    data are missing; then what needs N is left out.
    """
    found = (
        []
        if space.domains
        else [
            Problem(
                "SPACE",
                {},
                "sweeps no knob; give at least one a range, e.g. loss.temperature: tune.loguniform(0.05,"
                " 0.5)",
            )
        ]
    )
    for name, value in space.fixed.items():
        found += (
            [_nested(name, value)] if isinstance(value, Mapping) else _mistakes(config_base, {name: value})
        )
    searched: dict[str, Domain] = {}
    for name, domain in space.domains.items():
        wrong, usable = _knob(name, domain, config_base)
        found += wrong
        searched |= {name: usable} if usable is not None else {}
    return found + _together(replace(space, domains=searched), config_base, num_images, num_holdout)


def _nested(name: str, value: Mapping[Any, Any]) -> Problem:
    if list(value) == ["grid_search"]:
        return Problem(name, value, "grid_search takes a list of values")
    inner = ", ".join(repr(f"{name}.{leaf}") for leaf in value) or repr("loss.temperature")
    shown = {leaf: domains.words(part) if isinstance(part, Domain) else part for leaf, part in value.items()}
    return Problem(name, shown, f"a space has no levels; write dotted names, here {inner}")


def _knob(name: str, domain: Domain, base: RunConfig) -> tuple[list[Problem], Domain | None]:
    """The mistakes of one knob alone, and what of its domain can be tried: a choice without its wrong
    values.
    """
    if said := domains.wrong(domain) or _unsweepable(name):
        return [Problem(name, domains.words(domain), said)], None
    edges = domains.edges(domain)
    if name not in base.flatten():
        return _mistakes(base, {name: edges[0]}), None  # the same for each value
    distinct = {value_text(value): value for value in edges}.values()
    of_values = [(value, _mistakes(base, {name: value})) for value in distinct]
    wrong = [problem for _, mistakes in of_values for problem in mistakes]
    if isinstance(domain, Categorical):
        good = [value for value, mistakes in of_values if not mistakes]
        twice = domains.repeated(domain)
        return ([Problem(name, domains.words(domain), twice)] if twice else []) + wrong, (
            tune.choice(good) if good else None
        )
    return wrong, None if wrong else domain


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
    try:
        configs.with_overrides(base, values)
    except ConfigError as error:
        return list(error.problems)
    return []


def _together(space: Space, base: RunConfig, num_images: int, num_holdout: int) -> list[Problem]:
    """What whole points get wrong that no knob gets wrong alone: a K that exceeds N, a warm-up as long as the
    run.
    """

    def crossed(config: RunConfig) -> list[Problem]:
        return plans.check(config, num_images, num_holdout)[0] if num_images else plans.check_alone(config)

    found: dict[tuple[str, str, str], Problem] = {}
    of_base = set(map(str, crossed(base)))
    for point in _points(space):
        for problem in crossed(configs.with_overrides(base, point)):
            swept = problem.name in space.domains or str(problem) in of_base
            there = (
                ""
                if swept
                else (
                    f" (with {', '.join(f'{name} = {value_text(value)}' for name, value in point.items())})"
                )
            )
            found.setdefault(_likeness(problem, space), replace(problem, message=problem.message + there))
    return list(found.values())


def _likeness(problem: Problem, space: Space) -> tuple[str, str, str]:
    """Alike are mistakes that differ in numbers only: of a range one value stands for all, of a choice each
    is told.
    """
    of_range = problem.name in space.domains and not isinstance(space.domains[problem.name], Categorical)
    return problem.name, "" if of_range else repr(problem.value), re.sub(r"[\d.]+", "", problem.message)


def _points(space: Space) -> list[dict[str, Any]]:
    """Points that between them have every value of a choice and both ends of a range, and then the grid or a
    part of the space.
    """
    edges = {name: domains.edges(domain) for name, domain in space.domains.items()}
    first = {name: values[0] for name, values in edges.items()}
    points = [first | {name: value} for name, values in edges.items() for value in values]
    count = spaces.size(space)
    return points + (
        spaces.grid(space) if count is not None and count <= _ALL_UP_TO else spaces.draw(space, _DRAWN, 0)
    )
