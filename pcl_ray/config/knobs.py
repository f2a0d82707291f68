"""The knobs of a configuration in words: their names, what they take, and what a wrong name was meant to
be.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pcl_ray.errors import Problem
from pcl_ray.support.text import closest


@dataclass(frozen=True)
class Knob:
    name: str
    type: str
    default: Any
    allowed: str
    sentence: str


def knob_from(name: str, field: FieldInfo) -> Knob:
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
        said = mistake["msg"].removeprefix("Value error, ") if mistake["type"] == "value_error" else ""
        return Problem(name, value, (f"{said}; " if said else "") + f"allowed: {allowed_text(fields[name])}")
    if any(known.startswith(name + ".") for known in fields):
        knobs = [known.partition(".")[2] for known in fields if known.startswith(name + ".")]
        return Problem(name, value, f"is a section and takes {', '.join(knobs)}")
    leaf = name.rpartition(".")[2]
    same_leaf = [known for known in fields if known.rpartition(".")[2] == leaf]
    near_leaf = [
        known
        for known in fields
        if difflib.SequenceMatcher(None, leaf, known.rpartition(".")[2]).ratio() > 0.75
    ]
    meant = next(iter(same_leaf), None) or closest(name, fields, 0.7)
    meant = meant or next(iter(near_leaf), None) or closest(name, fields, 0.55)
    hint = f"did you mean {meant!r}?" if meant else "`pcl-ray train --describe` lists every knob"
    return Problem(name, value, f"unknown key; {hint}")


def knob_of(location: list[str], fields: Mapping[str, FieldInfo]) -> list[str]:
    """Pydantic's location without the parts below a knob (union members, list positions)."""
    for length in range(1, len(location) + 1):
        if ".".join(location[:length]) in fields:
            return location[:length]
    return location


def allowed_text(field: FieldInfo) -> str:
    """What a knob takes, in words: choices and bounds."""
    lists = typing.get_origin(field.annotation) is tuple
    # means nothing to most; the description lists what it takes
    if any(getattr(rule, "pattern", None) for rule in _rules(field)):
        return (field.description or "").rstrip(".")
    bounds = [
        f"{sign} {getattr(rule, mark)}"
        for rule in _rules(field)
        for mark, sign in _BOUNDS
        if getattr(rule, mark, None) is not None
    ]
    described = type_text(field.annotation)
    if not bounds:
        return described
    return f"{described}{', each' if lists else ''} {' and '.join(bounds)}"


_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def _rules(field: FieldInfo) -> list[Any]:
    found = list(field.metadata)
    pending = list(typing.get_args(field.annotation))
    while pending:
        part = pending.pop()
        if typing.get_origin(part) is Annotated:
            for extra in part.__metadata__:
                found += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        pending += typing.get_args(part) if typing.get_origin(part) is not Literal else []
    return found


def type_text(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in arguments)
    if origin is tuple:
        return (
            f"list of {type_text(arguments[0])}"
            if arguments[-1] is Ellipsis
            else f"{len(arguments)} × {type_text(arguments[0])}"
        )
    return {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null"}.get(
        annotation, str(annotation)
    )
