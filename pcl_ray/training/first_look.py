"""What is looked at before the first step: how the untrained encoder groups some images, and the reference
lines that trained encoders are held against; and the views of a few images, then and later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from pcl_ray import e_step
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import REFERENCE_SECONDS, REFERENCES
from pcl_ray.data.colour import to_pixels
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import TrainingLoader
from pcl_ray.evaluation.augmented import sampled
from pcl_ray.m_step import Learner
from pcl_ray.model.distributed import world_size
from pcl_ray.plan import RunPlan
from pcl_ray.snapshot import Snapshot, make_snapshot
from pcl_ray.training.e_step_schedule import EStep
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.events import Event
from pcl_ray.training.feature_pass import FeaturePass
from pcl_ray.training.worker_checkpoints import EpochRecord

_SAMPLE = 2048
_ROWS_OF_VIEWS = 8


def reference_lines(attempt: str, features: FeaturePass, learner: Learner, e_step: EStep) -> dict[str, float]:
    """The kNN accuracy of raw pixels and of the untrained encoder's backbone, and the seconds of measuring
    them; {} where there are no labels or no held-out images. All workers call it, before the first step.

    Bank, neighbours and temperature are those of eval/knn_top1; of more than 2,000 queries a fixed sample of
    2,000 takes part. Raises RunFailed, on all workers, where there is no answer.
    """
    bank, queries = features.reference_sizes
    if not bank:
        return {}
    start = time.perf_counter()
    shards = features.references(learner)
    request = EStepRequest(0, False, False, world_size(), features.num_images, bank, queries, references=True)
    answer = e_step.begin(f"{attempt}/references", request, shards, None).wait()
    return answer.metrics | {REFERENCE_SECONDS.name: time.perf_counter() - start}


def references_in(history: Sequence[EpochRecord]) -> dict[str, float]:
    """The reference lines that a run has on record, by their names; {} where it has none."""
    for record in history:
        lines = {line.name: record.metrics[line.name] for line in REFERENCES if line.name in record.metrics}
        if lines:
            return lines
    return {}


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


def _rows_of_views(num_images: int) -> np.ndarray:
    """The images whose views are shown, the same at every epoch."""
    return sampled(num_images, _ROWS_OF_VIEWS)


def views_event(
    batches: TrainingLoader, epoch: int, step: int, splits: DataSplits, config: RunConfig
) -> Event:
    """The views of a few images in this epoch (−1: in the first, before it), as the network sees them but for
    the normalisation; small ones are enlarged.
    """
    (batch,) = batches.views(max(epoch, 0), [_rows_of_views(len(splits.train))])
    side = config.augment.image_size
    small = [F.interpolate(views, (side, side)) for views in batch.small_views]
    shown = torch.stack([batch.query_views, batch.key_views, *small], dim=1).cpu()
    pixels = to_pixels(shown, config.augment).permute(0, 1, 3, 4, 2)
    return Event("views", epoch + 1, step, views=pixels.numpy())
