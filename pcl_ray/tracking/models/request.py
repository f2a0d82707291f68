"""What is to be recorded as models, and what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pcl_ray.config import RunConfig
from pcl_ray.config.figures import KNN_TOP1

STEP_TAG = "pcl_ray.step"


@dataclass(frozen=True)
class ModelRequest:
    """A checkpoint that is to become models of a run.

    metrics: the run's figures of this step, which become the models' too. register_as: also make the embedder
    a version of this registered model. objective: the figure by which versions are compared, more is better.
    """

    run_id: str
    experiment_id: str
    checkpoint: Path
    config: RunConfig
    metrics: Mapping[str, float]
    step: int
    register_as: str | None = None
    objective: str = KNN_TOP1.name


@dataclass(frozen=True)
class LoggedModels:
    """Where the models are: URIs that `mlflow.pyfunc.load_model` takes. summary: what was done, in words."""

    summary: str
    embedder: str
    encoder: str | None  # None: its graph could not be exported
    version: str | None = None  # in the registry
