"""What the sweep's own process works with, from its beginning to its end."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from pcl_ray import tracking
from pcl_ray.runs.folder import SweepFolder
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.trials.context import SweepContext


@dataclass(frozen=True)
class SweepSession:
    """One `pcl-ray sweep`, from `start` or `resume` on."""

    folder: SweepFolder
    request: SweepRequest
    context: SweepContext  # what the trials' processes get of it
    tracker: tracking.MlflowRun | tracking.NullRun  # of the parent run
    console: Console
