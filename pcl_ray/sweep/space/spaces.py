"""Search spaces for sweeps: what may vary, what is fixed and what counts as better.

A space is a Python module with BASE, SPACE and, if it likes, OBJECTIVE, MODE and NUM_SAMPLES; or the same in
YAML:

    base: digits
    space:
      loss.temperature: {type: loguniform, low: 0.05, high: 0.5}
      e_step.num_clusters: {type: choice, values: ["0.01,0.02", "0.05"]}
      train.epochs: 20

Imports Ray: whoever imports this calls `on_ray.environment.set_defaults` first, and late. `checks` finds what
is wrong with a space's knobs; the functions here are for spaces without mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support.text import value_text
from pcl_ray.sweep.space import domains, files

__all__ = ["Space", "described", "draw", "grid", "load", "size", "snap", "snapped", "source", "to_tune"]

_TEMPERATURE = "loss.temperature"


@dataclass(frozen=True)
class Space:
    """What a sweep searches."""

    name: str  # of a shipped space, or the stem of its file
    base: str  # recipe, or path of a .yaml recipe
    domains: dict[str, Domain]  # dotted knob → what it may be; grid_search is a choice here
    fixed: dict[str, Any]  # dotted knob → constant
    objective: str | None
    mode: str | None  # "max", "min"
    num_samples: int | None


def load(name_or_path: str) -> Space:
    """A shipped space by name, a .py file, or a .yaml file. A point of it is a mapping of its `domains`'
    knobs alone.

    Raises ConfigError for an unknown name, for code that fails, and with every mistake in the file's form.
    """
    written = files.read(name_or_path)
    searched = {name: value for name, value in written.space.items() if isinstance(value, Domain)}
    fixed = {name: value for name, value in written.space.items() if name not in searched}
    return Space(
        name=Path(name_or_path).stem,
        base=written.base,
        domains=searched,
        fixed=fixed,
        objective=written.objective,
        mode=written.mode,
        num_samples=written.num_samples,
    )


def source(name_or_path: str) -> tuple[str, str]:
    """The file of a space and its text, for keeping. Raises ConfigError where there is none."""
    path = files.find(name_or_path)
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"space {str(path)!r} cannot be read: {error}") from None


def size(space: Space) -> int | None:
    """Points of the grid; None where a knob has a range of real numbers, or of more than 1,000 whole ones."""
    points = 1
    for domain in space.domains.values():
        values = domains.values(domain)
        if values is None:
            return None
        points *= len(values)
    return points


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point. Knobs of the E-step vary slowest: what differs before the first E-step starts first, the
    rest can go on from there.

    Raises ConfigError where `size` is None.
    """
    names = sorted(space.domains, key=lambda name: not name.startswith("e_step."))
    lists: list[list[Any]] = []
    problems: list[Problem] = []
    for name in names:
        values = domains.values(space.domains[name])
        if values is None:
            message = (
                "is no list of values, which a grid needs; use tune.choice or grid_search, or draw at random"
            )
            problems.append(Problem(name, domains.words(space.domains[name]), message))
        else:
            lists.append(values)
    if problems:
        raise ConfigError(problems)
    return [dict(zip(names, values, strict=True)) for values in product(*lists)]


def draw(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` random points, real numbers with six significant digits. The same seed gives the same, and more
    of them begins with the same.

    A point of few values may come twice.
    """
    # One generator for all knobs: several of one seed would all draw the same shares of their ranges.
    generator = np.random.default_rng(seed)
    return [
        {name: _as_written(domain.sample(random_state=generator)) for name, domain in space.domains.items()}
        for _ in range(count)
    ]


def _as_written(value: Any) -> Any:
    return float(value_text(value)) if isinstance(value, float) else value


def snapped(space: Space, levels: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that snaps many points as `snap` does one; it pickles. ConfigError for under 2 levels."""
    if levels < 2:
        raise ConfigError([Problem("sweep.temperature_levels", levels, "must be 2 or more")])
    by_log = _TEMPERATURE in space.domains and domains.is_log(space.domains[_TEMPERATURE])
    return partial(_nearest, temperature_levels(space, levels), by_log)


def snap(space: Space, point: dict[str, Any], levels: int | None) -> dict[str, Any]:
    """The point with τ on the nearest of `levels` values over its range; unchanged without either."""
    return point if levels is None else snapped(space, levels)(point)


def temperature_levels(space: Space, levels: int) -> list[float]:
    """Values spread evenly over the range of τ (by their logarithms in a log-uniform one), with four
    significant digits; none without such a range.
    """
    domain = space.domains.get(_TEMPERATURE)
    if not isinstance(domain, Float) or not domains.is_continuous(domain):
        return []
    spread = np.geomspace if domains.is_log(domain) else np.linspace
    return [float(f"{value:.4g}") for value in spread(domain.lower, domain.upper, levels)]


def _nearest(values: list[float], by_log: bool, point: dict[str, Any]) -> dict[str, Any]:
    if not values or _TEMPERATURE not in point:
        return point
    measure = math.log if by_log else float
    nearest = min(values, key=lambda value: abs(measure(value) - measure(point[_TEMPERATURE])))
    return {**point, _TEMPERATURE: nearest}


def to_tune(space: Space) -> dict[str, Domain]:
    """The domains as searchers take them: a choice's lists as texts like `0.01,0.02`, which configs read."""
    return {
        name: _primitive(domain) if isinstance(domain, Categorical) else domain
        for name, domain in space.domains.items()
    }


def _primitive(domain: Categorical) -> Categorical:
    return tune.choice(
        [value_text(value) if isinstance(value, list) else value for value in domain.categories]
    )


def some_value(domain: Domain) -> Any:
    """One of the domain's values: the first, or the lower end; None for domains that cannot be searched."""
    if isinstance(domain, Categorical):
        return domain.categories[0]
    return domain.lower if isinstance(domain, Float | Integer) else None


def described(space: Space) -> list[tuple[str, str]]:
    """Each knob and its domain in words, as ("loss.temperature", "log-uniform 0.05 … 0.5")."""
    searched = [(name, domains.words(domain)) for name, domain in space.domains.items()]
    return searched + [(name, f"fixed {value_text(value)}") for name, value in space.fixed.items()]
