"""LiDAR, from random views of a sample: whether views of one image lie closer than those of others."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.config.figures import LIDAR, LIDAR_SECONDS
from pcl_ray.data.images import Images
from pcl_ray.data.loaders import TrainingLoader
from pcl_ray.data.reading import Readers
from pcl_ray.e_step import extract_features
from pcl_ray.evaluation.unlabelled import lidar
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.model.learner import Learner, precision, views_for

_FIRST_EPOCH = 2**31 - 1  # the views are those of epochs from here on, which no training reaches


class AugmentedViews:
    """Momentum features of `evaluation.lidar_views` training views of `evaluation.lidar_images` images.

    Images and views are the same at every evaluation; each worker makes those of its part of the images.
    """

    def __init__(self, images: Images, config: RunConfig, device: torch.device, readers: Readers):
        self._config, self._device = config, device
        large = with_overrides(config, {"augment.small_crops": 0})  # query and key views are what is used
        self._loader = TrainingLoader(images, large, device=device, readers=readers)
        self._passes = -(-config.evaluation.lidar_views // 2)
        sample = sampled(len(images), config.evaluation.lidar_images)
        self._rows = np.array_split(sample, world_size())[rank()]
        size = max(64, config.train.batch_size // world_size())
        self._batches = [self._rows[start : start + size] for start in range(0, len(self._rows), size)]

    def figures(self, learner: Learner) -> dict[str, float]:
        """The figures eval/lidar, unless features are not finite, and perf/lidar_seconds. All workers have to
        call it, and get the same figure.
        """
        start = time.perf_counter()
        group = TorchGroup(device=learner.device) if world_size() > 1 else Group()
        value = lidar(group.gather(self.features(learner)))
        figures = {LIDAR.name: value} if math.isfinite(value) else {}
        return figures | {LIDAR_SECONDS.name: time.perf_counter() - start}

    def features(self, learner: Learner) -> Tensor:
        """The features [n, Q, C] float32 on the CPU, of this worker's n images in rising order."""
        features = np.empty((len(self._rows), 2 * self._passes, self._config.encoder.dim), dtype=np.float32)
        for number in range(self._passes):
            for batch in self._loader.views(_FIRST_EPOCH + number, self._batches):
                rows = np.searchsorted(self._rows, batch.indices.numpy())
                for view, views in enumerate((batch.query_views, batch.key_views)):
                    # as the E-step's; around the encoder alone, since views are made in float32
                    with precision(self._config, self._device):
                        shard = extract_features(
                            learner.pair.key, [(views_for(learner, views), batch.indices)], self._device
                        )
                    features[rows, 2 * number + view] = shard.features
        return torch.from_numpy(features)


def sampled(num_images: int, count: int) -> np.ndarray:
    """Indices [min(count, N)] int64, spread evenly over the N images, rising."""
    count = min(count, num_images)
    return np.arange(count) * num_images // count
