"""The images that an encoder is evaluated on, and what of them takes part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import Images
from pcl_ray.errors import DataError
from pcl_ray.evaluation.labelled import fixed_sample

_UNLABELLED_IMAGES = 25_600  # where none has a label: as many as RankMe is measured on


@dataclass(frozen=True, eq=False)
class MultiLabels:
    """Which classes are on each image, where there may be several: 1 it is, 0 it is not, −1 left out."""

    bank_BL: np.ndarray  # [B, L] int8
    queries_QL: np.ndarray  # [Q, L] int8
    # [B] bool: the part of the bank that the data set itself sets apart for choices; None: it has none
    validation_B: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class EvaluationImages:
    """A bank that classifiers learn from, and queries that they are judged by.

    bank_labels, query_labels: int64, −1 for an image without; None where no image has one. multi: of a data
    set with several labels an image, which then has no others.
    """

    name: str
    bank: Images
    queries: Images | None
    multi: MultiLabels | None = None

    @classmethod
    def of_splits(
        cls, name: str, splits: DataSplits, *, bank_images: int = 0, query_images: int = 0
    ) -> EvaluationImages:
        """The labelled images of both parts, or a sample of the training part where it has no labels.

        bank_images, query_images: a fixed sample of so many where there are more; 0: all.
        """
        bank = _part(splits.train, bank_images)
        if bank is None:
            everything = len(splits.train)
            rows = fixed_sample(everything, min(everything, bank_images or _UNLABELLED_IMAGES))
            bank = splits.train.take(rows)
        queries = None if splits.holdout is None else _part(splits.holdout, query_images)
        return cls(name, bank, queries)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.bank.class_names

    @property
    def bank_labels(self) -> np.ndarray | None:
        return self.bank.labels

    @property
    def query_labels(self) -> np.ndarray | None:
        return None if self.queries is None else self.queries.labels

    @property
    def num_classes(self) -> int:
        """Classes that the bank's labels have; 0 where it has none."""
        if self.multi is not None:
            return self.multi.bank_BL.shape[1]
        labels = self.bank_labels
        return 0 if labels is None else len(np.unique(labels[labels >= 0]))

    def several_labels(self) -> MultiLabels | None:
        """The labels where images have several: all of them, although `bank_labels` has the first alone."""
        parts = [part for part in (self.bank, self.queries) if part is not None]
        if self.multi is not None or all(part.label_sets is None for part in parts) or len(parts) < 2:
            return self.multi
        return MultiLabels(*(_label_matrix(part, len(self.class_names)) for part in parts))

    def for_references(self, queries: int) -> EvaluationImages:
        """The same with at most so many queries, a fixed sample."""
        if self.queries is None or len(self.queries) <= queries:
            return self
        rows = fixed_sample(len(self.queries), queries)
        multi = self.multi
        if multi is not None:
            multi = replace(multi, queries_QL=multi.queries_QL[rows])
        return replace(self, queries=self.queries.take(rows), multi=multi)

    def check_single_labels(self, protocol: str, *, queries: bool) -> None:
        """Raises DataError, in one sentence, where the protocol lacks labels."""
        if self.multi is not None:
            raise DataError(
                f"{protocol} needs one label an image; the images of {self.name} have several: low-shot takes"
                " them"
            )
        labels = self.bank_labels
        if labels is None or not (labels >= 0).any():
            raise DataError(
                f"{protocol} needs labels, and the images of {self.name} have none: folders need one folder a"
                " class, arrays a `labels`"
            )
        if self.num_classes < 2:
            only = self.class_names[int(labels[labels >= 0][0])] if self.class_names else ""
            raise DataError(
                f"{protocol} needs two classes or more; all labelled images of {self.name} are of one"
                f" ({only!r})"
            )
        if queries and self.query_labels is None:
            raise DataError(
                f"{protocol} needs held-out images with labels, and {self.name} has none: data.holdout=0.2"
                " sets a fifth apart, --leave-one-out does without for knn"
            )


def _label_matrix(images: Images, classes: int) -> np.ndarray:
    """[N, classes] int8, 1 for each label of an image."""
    if images.label_sets is not None:
        return images.label_sets.matrix(classes).astype(np.int8)
    assert images.labels is not None, "of these, only the first labels are taken"
    return (images.labels[:, None] == np.arange(classes)).astype(np.int8)


def _part(images: Images, count: int) -> Images | None:
    """The labelled images, or a fixed sample of them; None where there are none."""
    if images.labels is None:
        return None
    rows = np.flatnonzero(images.labels >= 0)
    if not len(rows):
        return None
    if count:
        rows = rows[fixed_sample(len(rows), count)]
    return images if len(rows) == len(images) else images.take(rows)
