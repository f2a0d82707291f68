"""A trial's place in the space, its name and its title."""

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

_SHORT = {"loss.temperature": "tau", "e_step.alpha": "a", "e_step.num_clusters": "K"}


@dataclass(frozen=True)
class Point:
    """One trial's place in the space. member: of a population, whose values change as it goes on; else
    None.
    """

    values: Mapping[str, Any]  # dotted knob → value
    seed: int
    member: int | None = None

    def config(self, base: RunConfig) -> RunConfig:
        return with_overrides(base, {**self.values, "seed": self.seed})


def title_of(point: Point, config: RunConfig, plan: RunPlan) -> str:
    """tau0.1-a10-K29+57-s0: what sets the trial apart, K as counts."""
    parts = []
    for name in sorted(
        point.values, key=lambda knob: (list(_SHORT).index(knob) if knob in _SHORT else len(_SHORT), knob)
    ):
        value = (
            "+".join(map(str, plan.num_clusters))
            if name == "e_step.num_clusters"
            else value_text(point.values[name])
        )
        parts.append(f"{_SHORT.get(name, name.rpartition('.')[2])}{value}")
    parts.append(f"s{config.seed}" if point.member is None else f"s{config.seed}-p{point.member}")
    return re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(parts))[:80]


def run_name_of(sweep: str, point: Point) -> str:
    """The run folder's name: the same point of a sweep is the same run, whoever asks for it and how often. A
    member of a population keeps its own.
    """
    identity: Any = {**point.values, "seed": point.seed} if point.member is None else {"member": point.member}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{sweep}.{digest}"
