"""The result of one check of a machine."""

from __future__ import annotations

from dataclasses import dataclass

from pcl_ray.tracking.reachability import Level as Level


@dataclass(frozen=True)
class Check:
    """How it is, in a sentence, and what to do about it ("" where nothing is to be done)."""

    name: str
    level: Level
    message: str
    advice: str = ""
