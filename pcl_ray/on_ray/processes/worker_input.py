"""What every worker of a run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_ray.on_ray.connection import SharedData
from pcl_ray.training.training_task import TrainingTask


@dataclass(frozen=True)
class WorkersEnd:
    """How workers end that have not failed. problem: why the run cannot go on, "" where it can. paused: at
    the end of an epoch, for another number of workers.
    """

    problem: str = ""
    paused: bool = False


@dataclass(frozen=True)
class WorkerInput:
    """The task, and whom a worker of it talks to."""

    task: TrainingTask
    data: SharedData
    e_step_actor: Any  # handle of an EStepActor
    board: Any  # handle of an EventBoard
    positions: Path  # where the workers of this start record where they are
    e_step_shards: tuple[Any, ...] = ()  # handles of EStepShards, in mode sharded
