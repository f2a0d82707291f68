"""A run and a sweep as the overview shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pcl_ray.config import RunConfig


@dataclass(frozen=True)
class RunEntry:
    """One run. epochs: done. figures: the last value of each. data: what tells its images from others'."""

    name: str
    state: str
    began: float  # seconds since 1970
    config: RunConfig
    data: str
    epochs: int
    num_clusters: tuple[int, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    sweep: str = ""
    mlflow_run_id: str = ""
    has_report: bool = False
    has_pictures: bool = False


@dataclass(frozen=True)
class SweepEntry:
    """One sweep. best: of its leaderboard, the value of the objective, None where there is none yet."""

    name: str
    state: str
    began: float
    data: str
    objective: str = ""
    best: float | None = None
    trials: int = 0
    mlflow_run_id: str = ""
    has_report: bool = False
