"""The labelled images that accuracies are measured with, and their features.

A bank of training images votes on the classes of queries, which are held out. Where there are many of either,
a fixed sample stands for all: the features of 60,000 images by a ResNet-50 are 246 MB as float16, those of
all of ImageNet would be 5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pcl_ray.config import EvaluationConfig
from pcl_ray.errors import DataError
from pcl_ray.evaluation.labels import class_numbers

_SEED = 20210505  # of no run's seed: all runs on the same images are measured with the same sample


@dataclass(frozen=True, eq=False)
class LabelledSample:
    """Which images take part: positions in the training and in the held-out part, rising. Both are empty
    where either part has no label.
    """

    bank_B: np.ndarray  # [B] int64
    queries_Q: np.ndarray  # [Q] int64

    @classmethod
    def of(
        cls, labels_N: np.ndarray | None, holdout_labels: np.ndarray | None, settings: EvaluationConfig
    ) -> LabelledSample:
        """The sample of these labels (None, or −1 for an image without), the same in every process."""
        bank, queries = _with_label(labels_N), _with_label(holdout_labels)
        if not len(bank) or not len(queries):
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        return cls(
            bank[fixed_sample(len(bank), settings.bank_images)],
            queries[fixed_sample(len(queries), settings.query_images)],
        )

    @property
    def reference_queries(self) -> np.ndarray:
        """[R] positions among the queries, rising, of those that reference lines are measured on: all, or
        2,000 of them. The bank is always the whole one, so that the line estimates what all queries would
        give.
        """
        return fixed_sample(len(self.queries_Q), EvaluationConfig.REFERENCE_QUERIES)

    def for_references(self) -> LabelledSample:
        """The whole bank, and the queries that reference lines are measured on."""
        return LabelledSample(self.bank_B, self.queries_Q[self.reference_queries])


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Features of a bank and of queries with their labels, in the order of a `LabelledSample`."""

    bank_BD: np.ndarray  # float32, float16 or uint8, of any length
    bank_labels_B: np.ndarray  # [B] int64, none negative
    queries_QD: np.ndarray
    query_labels_Q: np.ndarray  # [Q] int64, none negative

    @classmethod
    def of(cls, bank: Any, bank_labels: Any, queries: Any, query_labels: Any) -> LabelledFeatures:
        """The images that have a label, of features [N, D] and labels [N] as people have them: arrays,
        tensors or lists; numbers or texts (`labels.class_numbers`).

        Raises DataError, in one sentence, where nothing can be measured: no label in one of the parts, one
        class only, features that are not finite, lengths that do not fit.
        """
        arrays = [_features(bank, bank_labels, "bank"), _features(queries, query_labels, "query")]
        if arrays[0].shape[1] != arrays[1].shape[1]:
            raise DataError(
                f"bank features have {arrays[0].shape[1]} numbers an image and query features"
                f" {arrays[1].shape[1]}: both have to come from one encoder"
            )
        names, numbers = class_numbers(bank_labels, query_labels)
        has_label = [part >= 0 for part in numbers]
        for part, which in zip(("bank", "query"), has_label, strict=True):
            if not which.any():
                raise DataError(f"none of the {len(which)} {part} images has a label")
        if len(np.unique(numbers[0][has_label[0]])) < 2:
            only = names[numbers[0][has_label[0]][0]]
            raise DataError(
                f"all labelled images of the bank are of one class ({only!r}): there is nothing to tell apart"
            )
        return cls(
            arrays[0][has_label[0]],
            numbers[0][has_label[0]],
            arrays[1][has_label[1]],
            numbers[1][has_label[1]],
        )

    @property
    def num_classes(self) -> int:
        """Classes of bank and queries together, counted by the largest number."""
        return int(max(self.bank_labels_B.max(initial=-1), self.query_labels_Q.max(initial=-1))) + 1


def fixed_sample(total: int, count: int) -> np.ndarray:
    """[min(total, count)] int64, rising: all of 0 … total − 1, or one out of each of `count` equal ranges,
    drawn by a fixed seed.

    Ranges, because images often lie sorted by class; drawn, because every tenth image may be one class.
    """
    if total <= count:
        return np.arange(total)
    starts = np.arange(count + 1) * total // count
    within = np.random.default_rng(_SEED).random(count)
    return starts[:-1] + (within * np.diff(starts)).astype(np.int64)


def _with_label(labels: np.ndarray | None) -> np.ndarray:
    """The positions of the images that have a label."""
    return np.empty(0, np.int64) if labels is None else np.flatnonzero(np.asarray(labels) >= 0)


def _features(features: Any, labels: Any, part: str) -> np.ndarray:
    """Features as an array [N, D]. Raises DataError."""
    array = np.asarray(features.detach().float().cpu() if isinstance(features, Tensor) else features)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{part} features are {array.dtype} of shape {list(array.shape)}: numbers [N, D] are needed"
        )
    count = len(labels) if labels is not None else 0
    if count != len(array):
        reason = f"{count} labels" if labels is not None else "no labels"
        raise DataError(f"there are {len(array)} {part} features and {reason}: one label each is needed")
    if not np.isfinite(array).all():
        raise DataError(f"some {part} features are not finite: the encoder has diverged")
    return array
