"""Labels of images that may have several: all that an image shows, of which the first is its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The labels of N images, one list after the other. An image without labels has an empty list."""

    labels: np.ndarray  # [L] int64, numbers of classes
    starts: np.ndarray  # [N + 1] int64: image i has labels[starts[i] : starts[i + 1]]

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> LabelSets:
        """The label sets of as many images as there are lists."""
        flat = [label for labels in lists for label in labels]
        starts = np.cumsum([0, *map(len, lists)])
        return cls(np.array(flat, dtype=np.int64), starts.astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, index: int) -> np.ndarray:
        """The labels of one image, int64."""
        return self.labels[self.starts[index] : self.starts[index + 1]]

    def take(self, indices: np.ndarray) -> LabelSets:
        """Those of the images at these positions, in this order."""
        counts = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], np.cumsum(counts)])
        positions = np.repeat(self.starts[:-1][indices] - starts[:-1], counts) + np.arange(starts[-1])
        return LabelSets(self.labels[positions], starts)

    def only(self, wanted_N: np.ndarray) -> LabelSets:
        """The same images, with the labels of those left out whose entry in wanted_N [N] bool is false."""
        counts = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(np.where(wanted_N, counts, 0))])
        return LabelSets(self.labels[np.repeat(wanted_N, counts)], starts)

    def matrix(self, num_classes: int) -> np.ndarray:
        """[N, num_classes] bool: whether an image has a label."""
        shown = np.zeros((len(self), num_classes), dtype=bool)
        shown[np.repeat(np.arange(len(self)), np.diff(self.starts)), self.labels] = True
        return shown

    def as_bytes(self) -> bytes:
        """The same bytes on any machine, for fingerprints."""
        return self.starts.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes()


def label_bytes(labels: np.ndarray | None, label_sets: LabelSets | None) -> list[bytes]:
    """What a fingerprint takes of labels."""
    first = b"" if labels is None else labels.astype("<i8").tobytes()
    return [first] if label_sets is None else [first, label_sets.as_bytes()]
