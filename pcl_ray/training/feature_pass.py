"""The pass over all images that gives an E-step and the evaluation their momentum features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.data.reading import Readers
from pcl_ray.e_step import extract_features
from pcl_ray.evaluation.augmented import AugmentedViews
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import Learner
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.model.learner import precision, views_for

_BATCH = 64  # images at a time where a few are looked at


class FeaturePass:
    """Momentum features of this worker's part of the images."""

    def __init__(self, splits: DataSplits, config: RunConfig, device: torch.device, readers: Readers):
        worker: Any = {"rank": rank(), "world_size": world_size(), "device": device, "readers": readers}
        self.num_images = len(splits.train)
        self.num_holdout = splits.num_holdout
        self._config = config
        self._device = device
        self._dtype = np.dtype(config.e_step.feature_dtype)
        self._train = EvaluationLoader(splits.train, config, **worker)
        self._holdout: EvaluationLoader | None = None
        if splits.holdout is not None:
            self._holdout = EvaluationLoader(splits.holdout, config, **worker)
        self._augmented: AugmentedViews | None = None
        if config.evaluation.lidar_views:
            self._augmented = AugmentedViews(splits.train, config, device, readers)

    def train(self, learner: Learner) -> FeatureShard:
        """Features of the training images that are this worker's."""
        return self._features(learner, self._train)

    def holdout(self, learner: Learner) -> FeatureShard | None:
        """Features of the held-out images that are this worker's; None where the data have no such part."""
        return self._features(learner, self._holdout) if self._holdout is not None else None

    def lidar(self, learner: Learner) -> dict[str, float]:
        """The figures from random views; empty unless `evaluation.lidar_views` asks for them."""
        return self._augmented.figures(learner) if self._augmented is not None else {}

    def some(self, learner: Learner, rows: np.ndarray) -> np.ndarray:
        """[n, C] float32 of these training images, made by this worker alone."""
        batches = np.array_split(rows, max(1, len(rows) // _BATCH))
        return self._features(learner, self._train.batches(batches)).features.astype(np.float32, copy=False)

    def _features(self, learner: Learner, loader: Iterable[tuple[Tensor, Tensor]]) -> FeatureShard:
        with precision(self._config, self._device):  # as the keys of the M-step
            shard = extract_features(
                learner.pair.key, ((views_for(learner, views), ids) for views, ids in loader), self._device
            )
        return FeatureShard(shard.indices, shard.features.astype(self._dtype, copy=False))
