"""What all trials of a sweep have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.space.settings import SweepConfig


@dataclass(frozen=True)
class SweepContext:
    """The same for every trial, whose process sets its environment by `home` and `tracking_environment`."""

    sweep: str  # its name
    base: RunConfig
    settings: SweepConfig
    objective: Objective
    num_images: int
    num_holdout: int
    fingerprint: str
    home: str  # PCL_RAY_HOME
    parent_run_id: str | None  # of the sweep in MLflow
    class_names: tuple[str, ...] = ()  # () without labels
    # of the sweep's process, with its passwords: never on a disk
    tracking_environment: dict[str, str] = field(default_factory=dict, repr=False)

    def plan(self, config: RunConfig) -> RunPlan:
        return plans.make(config, self.num_images, self.num_holdout)
