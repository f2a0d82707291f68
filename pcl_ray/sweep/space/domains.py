"""The domain of one knob, which is Ray Tune's: mistakes, values and words. Imports Ray, as `spaces` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import (
    Categorical,
    Domain,
    Float,
    Function,
    Integer,
    LogUniform,
    Normal,
    Quantized,
)

from pcl_ray.support.text import value_text

_COUNTABLE = 1000  # an integer range of more values is searched, not tried out


def of(written: Any) -> Any:
    """What SPACE has for a knob: its domain, where it is one, else the constant. A grid becomes a choice, and
    all values become plain Python.

    Grids do not stay grids, because sampling one gives an error object instead of a value.
    """
    if isinstance(written, Mapping) and list(written) == ["grid_search"]:
        values = written["grid_search"]
        if isinstance(values, list | tuple | np.ndarray):
            return tune.choice(plain(values))
    if isinstance(written, Categorical):
        return tune.choice(plain(written.categories))
    return plain(written)


def plain(value: Any) -> Any:
    """The value in Python's numbers and lists: recipes, MLflow and Optuna take no numpy numbers or tuples."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def wrong(domain: Domain) -> str | None:
    """Why the domain cannot be searched and what to write instead, in a sentence; None if it is all right."""
    match domain:
        case Categorical():
            return _wrong_choice(domain)
        case Float() | Integer():
            return _wrong_range(domain)
        case Function():
            return (
                "a value computed from others (tune.sample_from) cannot be searched; give each knob a range"
                " of its own, or list its values in tune.choice"
            )
        case _:
            return (
                f"{type(domain).__name__} is not known here; use tune.uniform, loguniform, quniform, randint,"
                " lograndint, choice or grid_search"
            )


def _wrong_choice(domain: Categorical) -> str | None:
    if not domain.categories:
        return "has no values; list at least one"
    if any(isinstance(value, Domain | Mapping) for value in domain.categories):
        return "its values must be constants; give each knob a range of its own"
    return None


def repeated(domain: Domain) -> str | None:
    """Which values a choice lists twice, in a sentence; `0.01` and `[0.01]` are the same."""
    if not isinstance(domain, Categorical):
        return None
    counts = Counter(map(value_text, domain.categories))
    repetitions = [text for text, count in counts.items() if count > 1]
    return f"lists {'; '.join(repetitions)} more than once" if repetitions else None


def _wrong_range(domain: Float | Integer) -> str | None:
    lower, upper = domain.lower, domain.upper
    step = _step(domain)
    if isinstance(_sampler(domain), Normal):
        return "a normal distribution has no ends; use tune.uniform or tune.loguniform"
    if step is not None and (isinstance(domain, Integer) or is_log(domain)):
        return "steps are kept by tune.quniform only, not by every search; list the values in tune.choice"
    has_whole_ends = isinstance(lower, int | np.integer) and isinstance(upper, int | np.integer)
    if isinstance(domain, Integer) and not has_whole_ends:
        return f"a range of whole numbers has whole ends, not {lower!r} and {upper!r}"
    if not np.isfinite(lower) or not np.isfinite(upper):
        return "needs two finite ends"
    if not lower < upper:
        return f"its lower end {value_text(lower)} must be below its upper end {value_text(upper)}"
    if step is not None and not step > 0:
        return "its step must be above 0"
    return None


def values(domain: Domain) -> list[Any] | None:
    """All values; None for a range of real numbers, or of more than 1,000 whole ones."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer) and domain.upper - domain.lower <= _COUNTABLE:
        return list(range(domain.lower, domain.upper))
    return None


def edges(domain: Domain) -> list[Any]:
    """The values that show whether all are legal: those of a choice, both ends of a range."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    assert isinstance(domain, Float | Integer)
    last = _last(domain)
    return [domain.lower] if last == domain.lower else [domain.lower, last]


def _last(domain: Float | Integer) -> Any:
    """The largest value. Ray's integer ranges end before `upper`."""
    if isinstance(domain, Integer) and isinstance(domain.upper, int | np.integer):
        return domain.upper - 1
    return domain.upper


def is_continuous(domain: Domain | None) -> bool:
    """Whether the domain is a range of real numbers without steps."""
    return isinstance(domain, Float) and _step(domain) is None


def is_log(domain: Domain) -> bool:
    """Whether the domain is a range in which equal factors are equally likely."""
    return isinstance(_sampler(domain), LogUniform)


def words(domain: Domain) -> str:
    """The domain in words: `log-uniform 0.05 … 0.5`, `one of 1, 3, 10`."""
    if isinstance(domain, Categorical):
        texts = [value_text(value) for value in domain.categories]
        separator = "; " if any("," in text for text in texts) else ", "
        return f"one of {separator.join(texts) or 'nothing'}"
    if isinstance(domain, Function):
        return "computed from others"
    if not isinstance(domain, Float | Integer) or isinstance(_sampler(domain), Normal):
        return type(_sampler(domain)).__name__.strip("_").lower()
    kind = "log-uniform" if is_log(domain) else "uniform"
    if isinstance(domain, Integer):
        kind += " whole numbers"
    steps = f" in steps of {value_text(_step(domain))}" if _step(domain) is not None else ""
    return f"{kind} {value_text(domain.lower)} … {value_text(_last(domain))}{steps}"


def _sampler(domain: Domain) -> Any:
    sampler = domain.get_sampler()
    return sampler.sampler if isinstance(sampler, Quantized) else sampler


def _step(domain: Domain) -> float | None:
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None
