"""The knobs of a configuration one by one: their properties, what they take, and what a wrong name meant."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pcl_ray.config.run_config import RunConfig
from pcl_ray.config.sections import KnobProperties
from pcl_ray.errors import Problem
from pcl_ray.support.text import closest

_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null"}


@dataclass(frozen=True)
class Knob:
    """One knob as `--describe` prints it."""

    name: str  # dotted
    type: str
    default: Any
    allowed: str
    sentence: str


@cache
def properties(name: str) -> KnobProperties:
    """What may be done with the knob of this dotted name. Raises KeyError for an unknown one."""
    declared = fields_of(RunConfig)[name].json_schema_extra
    assert isinstance(declared, dict), f"{name} is declared without properties; see config.sections.base.knob"
    return KnobProperties(**{key: bool(value) for key, value in declared.items()})


def names() -> list[str]:
    """The dotted names of all knobs of a run, in the order of the sections."""
    return list(fields_of(RunConfig))


@cache
def text_knobs() -> frozenset[str]:
    """The knobs that take any text, or a list of texts."""
    texts = (str, str | None, tuple[str, ...])
    return frozenset(name for name, field in fields_of(RunConfig).items() if field.annotation in texts)


def describe() -> list[Knob]:
    """Every knob of a run with its type, default, range and a sentence."""
    return [knob_from(name, field) for name, field in fields_of(RunConfig).items()]


def knob_from(name: str, field: FieldInfo) -> Knob:
    """A field of a section, in words."""
    return Knob(
        name, type_text(field.annotation), field.get_default(), allowed_text(field), field.description or ""
    )


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every knob of a model of sections under its dotted name."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            fields |= {f"{name}.{leaf}": info for leaf, info in section.model_fields.items()}
        else:
            fields[name] = field
    return fields


def explain(name: str, value: Any, mistake: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> Problem:
    """One of pydantic's errors as a Problem that says what is allowed."""
    if name in fields:
        reason = mistake["msg"].removeprefix("Value error, ") if mistake["type"] == "value_error" else ""
        prefix = f"{reason}; " if reason else ""
        return Problem(name, value, f"{prefix}allowed: {allowed_text(fields[name])}")
    section = [knob.partition(".")[2] for knob in fields if knob.startswith(name + ".")]
    if section:
        return Problem(name, value, f"is a section and takes {', '.join(section)}")
    option = _closest_knob(name, fields)
    hint = f"did you mean {option!r}?" if option else "`pcl-ray train --describe` lists every knob"
    return Problem(name, value, f"unknown key; {hint}")


def _closest_knob(name: str, fields: Mapping[str, FieldInfo]) -> str | None:
    """The knob that an unknown name was meant to be. The same last word in another section counts most."""
    leaf = name.rpartition(".")[2]
    leaves = {knob: knob.rpartition(".")[2] for knob in fields}
    same = [knob for knob, other in leaves.items() if other == leaf]
    alike = [
        knob for knob, other in leaves.items() if difflib.SequenceMatcher(None, leaf, other).ratio() > 0.75
    ]
    if same:
        return same[0]
    if option := closest(name, fields, 0.7):
        return option
    return alike[0] if alike else closest(name, fields, 0.55)


def knob_of(location: list[str], fields: Mapping[str, FieldInfo]) -> list[str]:
    """Pydantic's location without the parts below a knob (union members, list positions)."""
    for length in range(1, len(location) + 1):
        if ".".join(location[:length]) in fields:
            return location[:length]
    return location


def allowed_text(field: FieldInfo) -> str:
    """What a knob takes, in words: choices and bounds."""
    rules = _rules(field)
    # A pattern means nothing to most users; the description lists what it takes.
    if any(getattr(rule, "pattern", None) for rule in rules):
        return (field.description or "").rstrip(".")
    bounds = [
        f"{sign} {getattr(rule, mark)}"
        for rule in rules
        for mark, sign in _BOUNDS
        if getattr(rule, mark, None) is not None
    ]
    described = type_text(field.annotation)
    if not bounds:
        return described
    is_list = typing.get_origin(field.annotation) is tuple
    return f"{described}{', each' if is_list else ''} {' and '.join(bounds)}"


def _rules(field: FieldInfo) -> list[Any]:
    """The bounds of a field and of the parts of its annotation."""
    rules = list(field.metadata)
    pending = list(typing.get_args(field.annotation))
    while pending:
        part = pending.pop()
        if typing.get_origin(part) is Annotated:
            for extra in part.__metadata__:
                rules += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        pending += typing.get_args(part) if typing.get_origin(part) is not Literal else []
    return rules


def type_text(annotation: Any) -> str:
    """A type in words: `whole number | null`, `list of number`, `sgd | adamw | lars`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} × {type_text(arguments[0])}"
    return _TYPES.get(annotation, str(annotation))
