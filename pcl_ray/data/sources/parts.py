"""What every source of encoded images gives: a training and a held-out part, with notes on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pcl_ray.data.images import NO_LABEL, EncodedImages
from pcl_ray.data.label_sets import LabelSets
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.data.pictures.looks import BadImage


@dataclass(frozen=True)
class EncodedParts:
    """The images of both parts, before any is decoded."""

    train: EncodedImages
    holdout: EncodedImages | None = None
    damaged: tuple[BadImage, ...] = ()  # what is left out already: files of lists, shards in part
    notes: tuple[str, ...] = ()  # one sentence each

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of images of both parts."""
        return len(self.train), len(self.holdout) if self.holdout is not None else 0

    def with_options(self, options: DecodingOptions) -> EncodedParts:
        """The same images, decoded otherwise."""
        holdout = None if self.holdout is None else self.holdout.with_options(options)
        return replace(self, train=self.train.with_options(options), holdout=holdout)


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes in order: as numbers where all are whole numbers, else as texts."""
    distinct = set(labels)
    if all(label.removeprefix("-").isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def numbered(
    lists: Sequence[Sequence[str]], class_names: Sequence[str]
) -> tuple[np.ndarray, LabelSets | None]:
    """The first label of each image [N] as the number of its class, NO_LABEL where it has none that is among
    the classes; and all of them, where an image has more than one.
    """
    number = {name: i for i, name in enumerate(class_names)}
    numbers = [[number[label] for label in dict.fromkeys(labels) if label in number] for labels in lists]
    first = np.array([labels[0] if labels else NO_LABEL for labels in numbers], dtype=np.int64)
    several = any(len(labels) > 1 for labels in numbers)
    return first, LabelSets.of_lists(numbers) if several else None
