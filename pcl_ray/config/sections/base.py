"""How a section of the configuration and its knobs are declared: default, properties, sentence, bounds."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pcl_ray.config import plain_yaml


class Section(BaseModel):
    """A frozen group of knobs. Unknown names are mistakes; numbers and lists may be written as texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: object, info: Any) -> object:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (annotation, *typing.get_args(annotation)):
            raise ValueError("true/false given")
        if annotation == tuple[str, ...]:
            return _texts(value)
        return numbers(value) if _takes_list(annotation) and value not in _words(annotation) else value


def _takes_list(annotation: Any) -> bool:
    """Whether the values of a field are lists, or may be."""
    if typing.get_origin(annotation) is tuple:
        return True
    return not isinstance(annotation, type) and any(map(_takes_list, typing.get_args(annotation)))


def _words(annotation: Any) -> list[Any]:
    """The words that a field takes beside its lists; those within lists are none."""
    if typing.get_origin(annotation) is tuple:
        return []
    return [
        word
        for part in typing.get_args(annotation)
        if typing.get_origin(part) is typing.Literal
        for word in typing.get_args(part)
    ]


def numbers(value: object) -> object:
    """The list in a text or number: command lines and sweep spaces write `250`, `0.02` and `250,500`."""
    if isinstance(value, str):
        try:
            return [plain_yaml.load(part) for part in value.strip("[] ").split(",")]
        except ValueError:
            return value  # it is no list of numbers, and pydantic says so
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _texts(value: object) -> object:
    """The list in a text, which command lines write as `a,b`."""
    if isinstance(value, str):
        text = value.strip()
        # the brackets around a list, not those of a pattern such as [ab]*.png
        if text.startswith("[") and text.find("]") == len(text) - 1:
            text = text[1:-1]
        return [part.strip() for part in text.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


@dataclass(frozen=True, kw_only=True)
class KnobProperties:
    """What may be done with a knob, and what depends on it. Nothing has a default: a new knob must say it."""

    changeable_on_resume: bool  # it says where and how a run is computed and shown, not what is computed
    # Changed in a fork, weights, queue or optimizer state would not fit, or a step would be another number of
    # images: then the figures before and after have no common axis.
    fixed_in_fork: bool
    # Trials that are alike in all of these share one warm-up. A knob that acts early and is declared late
    # makes trials go on from a state that they would not have had: a wrong result.
    acts_before_first_e_step: bool
    perturbable: bool  # a population (pbt) may change it while a member trains
    scales_the_loss: bool  # the losses of runs with other values are not comparable
    changes_figures: bool  # false where no figure of a run can depend on it


def knob(default: Any, properties: KnobProperties, sentence: str, **bounds: Any) -> Any:
    """A field of a section. bounds: pydantic's ge, gt, le, lt, min_length, pattern."""
    extra: dict[str, Any] = {"description": sentence, "json_schema_extra": asdict(properties), **bounds}
    return Field(default, **extra)


# The kinds of knobs. A new knob takes the one whose comment is true of it, or `replace`s what differs.

# How the weights are learned, from the first step on.
TRAINING = KnobProperties(
    changeable_on_resume=False,
    fixed_in_fork=False,
    acts_before_first_e_step=True,
    perturbable=False,
    scales_the_loss=False,
    changes_figures=True,
)
# The shape of the weights and of the optimizer's state.
WEIGHTS = replace(TRAINING, fixed_in_fork=True)
# What the losses of all steps are computed from.
VIEWS = replace(TRAINING, scales_the_loss=True)
# Which images there are, how many make a step, and how many negatives they are compared with.
IMAGES = replace(VIEWS, fixed_in_fork=True)
# Where image files are and who reads them.
READING = replace(VIEWS, changeable_on_resume=True)
# Where and by how many processes a run is computed, and how it is measured.
MACHINERY = replace(TRAINING, changeable_on_resume=True)
# How features are clustered: without effect before the first E-step.
CLUSTERING = replace(TRAINING, acts_before_first_e_step=False)
# How prototypes enter the loss.
PROTOTYPES = replace(CLUSTERING, scales_the_loss=True)
# Where clusterings are computed and when checkpoints are written: the warm-up is the same without it.
LATE_MACHINERY = replace(CLUSTERING, changeable_on_resume=True)
# What is recorded of a run.
RECORDING = replace(LATE_MACHINERY, changes_figures=False)
