"""A trial's point in the space: its values, its seed, its title, the name of its run.

Ray Tune knows a trial by its `config`. A point of a list that was made beforehand lies there under POINT;
what a searcher such as Optuna suggests lies there knob by knob.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.plan import RunPlan
from pcl_ray.support.text import value_text

POINT = "point"  # key of Tune's config under which {"values", "seed", "member"} lie
SEED_INDEX = "__trial_index__"  # Ray's own key for the number of a repetition
_SHORT = {"loss.temperature": "tau", "e_step.alpha": "a", "e_step.num_clusters": "K"}


@dataclass(frozen=True)
class TrialPoint:
    """What sets a trial apart from the others of its sweep. member: number within a population, whose values
    change as it goes on; None outside of populations.
    """

    values: Mapping[str, Any]  # dotted knob → value
    seed: int
    member: int | None = None

    def config(self, base: RunConfig) -> RunConfig:
        return with_overrides(base, {**self.values, "seed": self.seed})


def point_of(config: dict[str, Any], first_seed: int, trial_id: str = "") -> TrialPoint:
    """The point that Tune's config of a trial stands for: one of a list, whose values a population may have
    perturbed, or a searcher's suggestion.

    A member that takes over from another gets all of that one's config, its point too: which member it is,
    Tune's number of the trial says.
    """
    if POINT in config:
        listed = config[POINT]
        perturbed = {name: value for name, value in config.items() if name != POINT}
        number = trial_id.rpartition("_")[2]
        member = int(number) if listed["member"] is not None and number.isdigit() else listed["member"]
        return TrialPoint({**listed["values"], **perturbed}, listed["seed"], member)
    values = {name: value for name, value in config.items() if name != SEED_INDEX}
    return TrialPoint(values, first_seed + int(config.get(SEED_INDEX, 0)))


def title_of(point: TrialPoint, config: RunConfig, plan: RunPlan) -> str:
    """The trial as people read it, K as counts: tau0.1-a10-K29+57-s0."""
    order = {knob: number for number, knob in enumerate(_SHORT)}
    parts = []
    for name in sorted(point.values, key=lambda knob: (order.get(knob, len(_SHORT)), knob)):
        counts = "+".join(map(str, plan.num_clusters))
        value = counts if name == "e_step.num_clusters" else value_text(point.values[name])
        parts.append(f"{_SHORT.get(name, name.rpartition('.')[2])}{value}")
    parts.append(f"s{config.seed}" if point.member is None else f"s{config.seed}-p{point.member}")
    return re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(parts))[:80]


def run_name_of(sweep: str, point: TrialPoint) -> str:
    """The name of the run's folder: the same point of a sweep is the same run, whoever asks for it and how
    often. A member of a population keeps its own.
    """
    identity: Any = {**point.values, "seed": point.seed} if point.member is None else {"member": point.member}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{sweep}.{digest}"
