"""What the run's pictures begin with: how the untrained encoder groups some images before the first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pcl_ray import e_step
from pcl_ray.config import RunConfig
from pcl_ray.evaluation.augmented import sampled
from pcl_ray.m_step import Learner
from pcl_ray.plan import RunPlan
from pcl_ray.snapshot import Snapshot, make_snapshot
from pcl_ray.training.feature_pass import FeaturePass

_SAMPLE = 2048
_ROWS_OF_VIEWS = 8


def untrained_snapshot(
    features: FeaturePass, learner: Learner, labels: np.ndarray | None, config: RunConfig, plan: RunPlan
) -> Snapshot:
    """A snapshot of the untrained encoder, made on one worker. K is as much smaller as the sample is; where
    even that cannot be clustered there is the map alone. Uses no random state.
    """
    rows = sampled(plan.num_images, _SAMPLE)
    sample = features.some(learner, rows)
    counts = tuple(max(2, round(count * len(rows) / plan.num_images)) for count in plan.num_clusters)
    # An untrained encoder sees all images in a narrow cone, which is no fault yet.
    loose = {
        "num_clusters": counts,
        "collapse_cone": 1.0,
        "collapse_rank": 0.0,
        "restarts": 1,
        "nested": False,
        "balance": None,
    }
    settings = config.e_step.model_copy(update=loose)
    try:
        clusters = e_step.cluster(
            sample, settings, epoch=0, temperature=config.loss.temperature, seed=config.seed
        )
    except e_step.EStepRefused:
        clusters = None
    sample_labels = None if labels is None else np.asarray(labels)[rows]
    ids = np.arange(len(rows))
    shown = make_snapshot(sample, ids, clusters, sample_labels, epoch=0, step=0, num_images=len(rows))
    note = "untrained encoder"
    if len(rows) < plan.num_images:
        note += f", {len(rows)} of {plan.num_images} images"
    return replace(shown.renumbered(rows), note=note)


def rows_of_views(num_images: int) -> np.ndarray:
    """The images whose views are shown, the same at every epoch."""
    return sampled(num_images, _ROWS_OF_VIEWS)
