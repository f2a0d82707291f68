"""Reads space files, Python modules or YAML. Both come out alike, with all mistakes in their form at once."""

from __future__ import annotations

import runpy
import traceback
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from ray import tune
from ray.tune.search.sample import Domain

from pcl_ray.config import plain_yaml
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support.text import closest, suggestion, suggestion_sentence
from pcl_ray.sweep.space import domains


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Written(_Strict):
    """What a space file says. space: dotted knob → domain, constant, or what `checks` refuses."""

    base: str = Field(min_length=1)
    space: dict[str, Any]
    objective: str | None = None
    mode: Literal["max", "min"] | None = None
    num_samples: int | None = Field(None, ge=1)


class _Domain(_Strict):
    """A knob's domain as YAML has it."""

    @abstractmethod
    def domain(self) -> Domain:
        """The same domain as Ray Tune has it."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> _Domain:
        domain = self.domain()
        if reason := domains.wrong(domain) or domains.repeated(domain):
            raise ValueError(reason)
        return self


class _Range(_Domain):
    type: Literal["uniform", "loguniform"]
    low: float
    high: float

    def domain(self) -> Domain:
        _above_0(self.type, self.low)
        return (tune.loguniform if self.type == "loguniform" else tune.uniform)(self.low, self.high)


class _Whole(_Domain):
    type: Literal["randint", "lograndint"]
    low: int
    high: int  # not reached, as in Ray Tune

    def domain(self) -> Domain:
        _above_0(self.type, self.low)
        return (tune.lograndint if self.type == "lograndint" else tune.randint)(self.low, self.high)


def _above_0(kind: str, low: float) -> None:
    if kind.startswith("log") and not low > 0:
        raise ValueError(f"low must be above 0 in a {kind} range")


class _Steps(_Domain):
    type: Literal["quniform"]
    low: float
    high: float
    q: float = Field(gt=0)

    def domain(self) -> Domain:
        return tune.quniform(self.low, self.high, self.q)


class _Values(_Domain):
    type: Literal["choice", "grid"]
    values: list[Any]

    def domain(self) -> Domain:
        return tune.choice(self.values)


_TAGS = {
    "uniform": "range",
    "loguniform": "range",
    "randint": "whole",
    "lograndint": "whole",
    "quniform": "steps",
    "choice": "values",
    "grid": "values",
}


def _tag(value: object) -> str | None:
    return _TAGS.get(str(value.get("type"))) if isinstance(value, Mapping) else "constant"


_Entry = Annotated[
    Annotated[_Range, Tag("range")]
    | Annotated[_Whole, Tag("whole")]
    | Annotated[_Steps, Tag("steps")]
    | Annotated[_Values, Tag("values")]
    | Annotated[Any, Tag("constant")],
    Discriminator(
        _tag,
        custom_error_type="type",
        custom_error_message=(
            f"a mapping needs `type`: {', '.join(_TAGS)}; a knob has its dotted name, as in loss.temperature"
        ),
    ),
]


class _WrittenYaml(Written):
    space: dict[str, _Entry]


def shipped() -> list[str]:
    """The spaces that come with the package."""
    names = (entry.name for entry in resources.files("tune_spaces").iterdir())
    return sorted(
        name.removesuffix(".py") for name in names if name.endswith(".py") and name != "__init__.py"
    )


def read(name_or_path: str) -> Written:
    """A shipped space by name, a .py or a .yaml file. Raises ConfigError with every mistake in its form."""
    path = find(name_or_path)
    return _read_python(path) if path.suffix == ".py" else _read_yaml(path)


def find(name_or_path: str) -> Path:
    """The file of a space. Raises ConfigError where there is none."""
    path = Path(name_or_path)
    if path.suffix in (".py", ".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"space file {name_or_path!r} does not exist")
        return path
    if name_or_path in shipped():
        return Path(str(resources.files("tune_spaces") / f"{name_or_path}.py"))
    hint = suggestion_sentence(name_or_path, shipped())
    raise ConfigError(
        f"unknown space {name_or_path!r}.{hint} Shipped: {', '.join(shipped())}; or give the path of a .py or"
        " .yaml file"
    )


def _read_python(path: Path) -> Written:
    constants = {name: value for name, value in _run(path).items() if name.isupper()}
    expected = {name.upper() for name in Written.model_fields}
    missing, others = expected - constants.keys(), constants.keys() - expected
    # Those that are like no missing name may be helpers of the space.
    misspelt = {name: meant for name in others if (meant := closest(name, missing, 0.75))}
    problems = [
        Problem(name, constants[name], f"unknown name; did you mean {meant!r}?")
        for name, meant in misspelt.items()
    ]
    tree = {name.lower(): value for name, value in constants.items() if name in expected}
    if isinstance(tree.get("space"), dict):
        tree["space"] = {name: domains.of(value) for name, value in tree["space"].items()}
    try:
        written = Written.model_validate(tree)
    except ValidationError as error:
        wrong = [_problem(mistake, str.upper) for mistake in error.errors(include_url=False)]
        raise ConfigError(
            problems + [problem for problem in wrong if problem.name not in misspelt.values()]
        ) from None
    if problems:
        raise ConfigError(problems)
    return written


def _run(path: Path) -> dict[str, Any]:
    """The names that the module defines. Raises ConfigError, with the line, where its code fails."""
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        line = error.lineno if isinstance(error, SyntaxError) and not lines else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"space {where}: {type(error).__name__}: {' '.join(message.split())}") from None


def _read_yaml(path: Path) -> Written:
    try:
        tree = plain_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"space {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"space {path} must be a mapping with base and space, not {type(tree).__name__}")
    try:
        written = _WrittenYaml.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            [_problem(mistake, str.lower) for mistake in error.errors(include_url=False)]
        ) from None
    space = {
        name: domains.of(entry.domain() if isinstance(entry, _Domain) else entry)
        for name, entry in written.space.items()
    }
    return Written.model_validate({**dict(written), "space": space})


def _problem(mistake: Mapping[str, Any], cased: Callable[[str], str]) -> Problem:
    """One of pydantic's errors under the name that the file has for it."""
    first, *rest = (str(part) for part in mistake["loc"])
    # rest[1]: which kind of domain
    name = ".".join([rest[0], *rest[2:]]) if first == "space" and rest else cased(first)
    if mistake["type"] == "missing":
        return Problem(name, None, "is missing")
    if mistake["type"] == "extra_forbidden":
        expected = _Steps.model_fields.keys() | _Values.model_fields.keys() if rest else Written.model_fields
        hint = suggestion(rest[-1] if rest else first, expected, start="; ")
        return Problem(name, mistake["input"], f"unknown key{hint}")
    return Problem(name, mistake["input"], mistake["msg"].removeprefix("Value error, "))
