"""The passes over images that give an E-step, the evaluation and the reference lines their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data.colour import to_pixels
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.data.reading import Readers
from pcl_ray.e_step import extract_features, extract_with_backbone
from pcl_ray.evaluation import LabelledSample
from pcl_ray.evaluation.augmented import AugmentedViews
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import Learner
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.model.learner import precision, views_for
from pcl_ray.training.e_step_shards import (
    BANK,
    BANK_HEAD,
    BANK_PIXELS,
    QUERIES,
    QUERIES_HEAD,
    QUERIES_PIXELS,
    TRAIN,
)

_BATCH = 64  # images at a time where a few are looked at
_PIXEL_SIDE = 32  # larger views are averaged down to this before their pixels are compared


class FeaturePass:
    """Momentum features of this worker's part of the images: of the head for the E-step, and for the
    evaluation of a labelled sample those of the backbone, too.
    """

    def __init__(self, splits: DataSplits, config: RunConfig, device: torch.device, readers: Readers):
        worker: Any = {"rank": rank(), "world_size": world_size(), "device": device, "readers": readers}
        self.num_images = len(splits.train)
        self._config = config
        self._device = device
        self._dtype = np.dtype(config.e_step.feature_dtype)
        self._train = EvaluationLoader(splits.train, config, **worker)
        holdout_labels = splits.holdout.labels if splits.holdout is not None else None
        self._sample = LabelledSample.of(splits.train.labels, holdout_labels, config.evaluation)
        self._holdout: EvaluationLoader | None = None
        if splits.holdout is not None and len(self._sample.queries_Q):
            self._holdout = EvaluationLoader(splits.holdout, config, **worker)
        self._augmented: AugmentedViews | None = None
        if config.evaluation.lidar_views:
            self._augmented = AugmentedViews(splits.train, config, device, readers)

    @property
    def sample_sizes(self) -> tuple[int, int]:
        """How many images the labelled sample has, over all workers: in its bank, and queries."""
        return len(self._sample.bank_B), len(self._sample.queries_Q)

    @property
    def reference_sizes(self) -> tuple[int, int]:
        """The same of the sample that reference lines are measured on."""
        sample = self._sample.for_references()
        return len(sample.bank_B), len(sample.queries_Q)

    def train(self, learner: Learner, *, labelled: bool = False) -> dict[str, FeatureShard]:
        """Features of the training images that are this worker's, by the name of their part. labelled: with
        them those of the labelled sample, of the bank from the same pass.
        """
        bank = self._sample.bank_B
        if not labelled or not len(bank):
            batches = self._batches(learner, self._train)
            with precision(self._config, self._device):  # as the keys of the M-step
                shard = extract_features(learner.pair.key, batches, self._device)
            return {TRAIN: self._converted(shard)}
        rows = bank[np.isin(bank, self._train.rows)]
        head, backbone = self._both(learner, self._train, rows)
        positions = np.searchsorted(bank, rows)
        of_bank = FeatureShard(positions, head.features[np.searchsorted(head.indices, rows)])
        return {
            TRAIN: head,
            BANK: FeatureShard(positions, backbone.features),
            BANK_HEAD: of_bank,
        } | self._queries(learner)

    def labelled(self, learner: Learner) -> dict[str, FeatureShard]:
        """Features of the labelled sample alone, from a pass over its images; {} where there is none."""
        bank = self._sample.bank_B
        if not len(bank):
            return {}
        return self._of_sample(learner, self._train, bank, (BANK, BANK_HEAD)) | self._queries(learner)

    def references(self, learner: Learner) -> dict[str, FeatureShard]:
        """The backbone's features and the pixels of the images that reference lines are measured on; {} where
        there are none. Views of more than 32 pixels a side are averaged down to that, uint8 [n, D].
        """
        sample = self._sample.for_references()
        if self._holdout is None:
            return {}
        shards: dict[str, FeatureShard] = {}
        for loader, rows, of_backbone, of_pixels in (
            (self._train, sample.bank_B, BANK, BANK_PIXELS),
            (self._holdout, sample.queries_Q, QUERIES, QUERIES_PIXELS),
        ):
            pixels: list[Tensor] = []
            positions = _own_part(len(rows))
            batches = self._with_pixels(loader.of(rows[positions]), pixels)
            _, backbone = self._both(learner, batches, rows[positions])
            whole = torch.cat(pixels).numpy() if pixels else np.empty((0, 0), np.uint8)
            shards[of_backbone] = FeatureShard(positions, backbone.features)
            shards[of_pixels] = FeatureShard(positions, whole)
        return shards

    def lidar(self, learner: Learner) -> dict[str, float]:
        """The figures from random views; empty unless `evaluation.lidar_views` asks for them."""
        return self._augmented.figures(learner) if self._augmented is not None else {}

    def some(self, learner: Learner, rows: np.ndarray) -> np.ndarray:
        """[n, C] float32 of these training images, made by this worker alone."""
        batches = self._train.batches(np.array_split(rows, max(1, len(rows) // _BATCH)))
        with precision(self._config, self._device):
            shard = extract_features(learner.pair.key, self._batches(learner, batches), self._device)
        return self._converted(shard).features.astype(np.float32, copy=False)

    def _queries(self, learner: Learner) -> dict[str, FeatureShard]:
        assert self._holdout is not None, "a sample has queries"
        queries = self._sample.queries_Q
        return self._of_sample(learner, self._holdout, queries, (QUERIES, QUERIES_HEAD))

    def _of_sample(
        self, learner: Learner, loader: EvaluationLoader, rows: np.ndarray, names: tuple[str, str]
    ) -> dict[str, FeatureShard]:
        """The backbone's features and the head's of this worker's part of these rows, by these names."""
        positions = _own_part(len(rows))
        head, backbone = self._both(learner, loader.of(rows[positions]), rows[positions])
        shards = FeatureShard(positions, backbone.features), FeatureShard(positions, head.features)
        return dict(zip(names, shards, strict=True))

    def _both(
        self, learner: Learner, loader: Iterable[tuple[Tensor, Tensor]], rows: np.ndarray
    ) -> tuple[FeatureShard, FeatureShard]:
        """The head's features of all images, and the backbone's of those of `rows`."""
        encoder: Any = learner.pair.key
        with precision(self._config, self._device):
            head, backbone = extract_with_backbone(
                encoder, self._batches(learner, loader), self._device, rows
            )
        return self._converted(head), backbone

    def _batches(
        self, learner: Learner, loader: Iterable[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return ((views_for(learner, views), ids) for views, ids in loader)

    def _with_pixels(
        self, batches: Iterable[tuple[Tensor, Tensor]], pixels: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches; of each, the pixels [b, D] are added to `pixels`."""
        for views, ids in batches:
            small = to_pixels(views, self._config.augment)
            if max(small.shape[2:]) > _PIXEL_SIDE:
                averaged = F.adaptive_avg_pool2d(small.float(), _PIXEL_SIDE)
                small = averaged.round().to(torch.uint8)
            pixels.append(small.flatten(1).cpu())
            yield views, ids

    def _converted(self, shard: FeatureShard) -> FeatureShard:
        return FeatureShard(shard.indices, shard.features.astype(self._dtype, copy=False))


def _own_part(count: int) -> np.ndarray:
    """This worker's part of 0 … count − 1."""
    return np.array_split(np.arange(count), world_size())[rank()]
