"""What a run is to train, as its workers are given it. Without torch, which drivers need late or never."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan


@dataclass(frozen=True)
class TrainingTask:
    """One run to train, from its newest checkpoint to its last epoch."""

    config: RunConfig
    plan: RunPlan
    run_dir: str
    warmup_copy: str | None = None  # folder that gets a copy of the state before the first E-step
    first_look: bool = False  # show how the untrained encoder groups the images

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return epoch_files.folder_of(Path(self.run_dir))


def longest_wait(config: RunConfig) -> float:
    """Seconds that a worker may have to wait for another: rank 0 may be in an E-step and then in a step."""
    return config.resources.step_timeout_s + config.e_step.timeout_s


def longest_silence(config: RunConfig) -> float:
    """Seconds without any event after which a run is lost."""
    return longest_wait(config) + config.resources.start_timeout_s
