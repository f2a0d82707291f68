"""The knobs of a sweep, named `sweep.…`: given as options of `pcl-ray sweep`, or as KEY=VALUE like others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from pcl_ray.config import Section, knobs
from pcl_ray.errors import Problem

PREFIX = "sweep."


class SweepConfig(Section):
    """How the space is searched, how trials are compared, when the sweep ends."""

    objective: str | None = Field(
        None,
        description=(
            "Metric that trials are compared by; null: the space's, else eval/knn_top1 with labels,"
            " eval/rankme without."
        ),
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="Whether more or less of it is better; null: as the metric has it."
    )
    samples: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Configurations to try, with optuna and random; null: the space's number, else 20.",
    )
    search: Literal["auto", "optuna", "random", "grid"] = Field(
        "auto",
        description=(
            "optuna (TPE), random, or grid (every combination); auto: grid for a space of at most 64"
            " combinations without samples, else optuna."
        ),
    )
    scheduler: Literal["none", "asha", "median", "pbt"] = Field(
        "none",
        description=(
            "What stops weak trials early (asha, median), or lets them go on from strong ones with other"
            " values (pbt)."
        ),
    )
    seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="Runs of each configuration, with the seeds seed, seed + 1, …; ranked by their mean.",
    )
    with_recipe: bool = Field(
        True,
        description=(
            "The recipe's own values are tried as well, first, to tell what the others gain; not with pbt."
        ),
    )
    concurrency: int | None = Field(
        None, ge=1, le=4096, description="Trials at a time; null: as many as the cluster holds."
    )
    budget_s: float | None = Field(
        None, gt=0, description="Seconds after which no more is trained; the sweep can be resumed."
    )
    shared_warmup: bool = Field(
        True,
        description=(
            "Trials alike in all that acts before the first E-step start from one warm-up, trained once."
        ),
    )
    temperature_levels: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="Search τ on so many values only, so that trials can share warm-ups; null: continuously.",
    )
    search_seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the search itself.")
    reduction_factor: float = Field(
        3.0, ge=2, le=100, description="asha: one of so many trials goes on at each rung."
    )
    perturb_epochs: int | None = Field(
        None,
        ge=1,
        description="pbt: epochs between two comparisons; null: a tenth of the run, at least one E-step.",
    )
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="pbt: share of the population that goes on from as many of the best."
    )
    test_share: float = Field(
        0.5,
        ge=0,
        le=0.9,
        description="Share of the held-out images that no trial is compared by, for one figure at the end.",
    )
    min_rank: float = Field(
        5.0,
        ge=0,
        description=(
            "Objectives without labels: trials of a lower effective rank (RankMe) count as collapsed and rank"
            " last."
        ),
    )
    max_cluster_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The same for a largest cluster that holds more than this share of the images.",
    )
    max_empty_share: float = Field(
        0.2, ge=0, le=1, description="The same for more than this share of clusters that are empty."
    )
    failures: int = Field(
        4,
        ge=1,
        description="Trials that fail one after the other, none succeeding between, which end the sweep.",
    )
    process_failures: int = Field(
        2,
        ge=0,
        le=1000,
        description="How often a trial whose process was lost goes on from its last checkpoint.",
    )


def read(values: Mapping[str, Any]) -> tuple[SweepConfig, list[Problem]]:
    """The settings from `sweep.…` values, and the mistakes in them; a wrong value leaves a knob's default."""
    given = {name.removeprefix(PREFIX): value for name, value in values.items()}
    try:
        return SweepConfig.model_validate(given), []
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    fields = {f"{PREFIX}{name}": field for name, field in SweepConfig.model_fields.items()}
    problems = {}
    for mistake in mistakes:
        leaf = str(mistake["loc"][0])
        problems.setdefault(leaf, knobs.explain(PREFIX + leaf, given.get(leaf), mistake, fields))
    rest = {name: value for name, value in given.items() if name not in problems}
    return SweepConfig.model_validate(rest), list(problems.values())


def describe() -> list[knobs.Knob]:
    """Every knob of a sweep with its type, default, range and a sentence."""
    return [knobs.knob_from(f"{PREFIX}{name}", field) for name, field in SweepConfig.model_fields.items()]
