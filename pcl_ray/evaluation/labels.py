"""Labels of any kind as class numbers, and how well clusters agree with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pcl_ray.errors import DataError

NO_CLASS = -1  # of an image without a label


def agreement(assignments_N: Tensor | np.ndarray, labels_N: Tensor | np.ndarray) -> dict[str, float]:
    """The figures ami, nmi, ari (chance level 0 for ami and ari, perfect 1) and purity (0..1) of a
    clustering; empty where fewer than two images have labels.

    ami and ari are adjusted for chance: only they compare clusterings with different K. All labelled images
    count: in a sample, most of many small clusters would hold one image or none, which flatters nmi and
    purity.
    """
    from sklearn import metrics  # takes a second, which runs without labels need not wait for

    assignments, labels = np.asarray(assignments_N), np.asarray(labels_N)
    labelled = np.flatnonzero((labels >= 0) & (assignments >= 0))
    if len(labelled) < 2:
        return {}
    assignments, labels = assignments[labelled], labels[labelled]
    table: Any = metrics.cluster.contingency_matrix(labels, assignments, sparse=True)
    return {
        "ami": float(metrics.adjusted_mutual_info_score(labels, assignments)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, assignments)),
        "ari": float(metrics.adjusted_rand_score(labels, assignments)),
        "purity": float(table.max(axis=0).toarray().sum() / table.sum()),
    }


def class_numbers(*parts: Any) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the classes, in their order, and the class numbers [N] int64 of each part, NO_CLASS for an
    image without a label. All parts share the numbers.

    A part is an array, tensor or sequence of whole numbers or of texts. A negative number, NaN, None and ""
    mean that an image has no label. Raises DataError for anything else, and where a part has numbers and
    another texts.
    """
    flat = [_values(part) for part in parts]
    labelled = [value for part in flat for value in part if not _is_missing(value)]
    kinds = {isinstance(value, str) for value in labelled}
    if len(kinds) > 1:
        raise DataError("some labels are numbers and some are texts; all images need labels of one kind")
    names = sorted(set(labelled))
    number = {name: i for i, name in enumerate(names)}
    numbers = [
        np.array([NO_CLASS if _is_missing(value) else number[value] for value in part], dtype=np.int64)
        for part in flat
    ]
    return tuple(map(str, names)), numbers


def _values(labels: Any) -> Sequence[Any]:
    """The labels as whole numbers, texts and None."""
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.ndim != 1:
        raise DataError(
            f"labels of shape {list(array.shape)} cannot be used: one label an image is needed, [N]"
        )
    if array.dtype.kind in "iubUS":
        values: list[Any] = array.tolist()
        return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    return [_value(value) for value in array.tolist()]


def _value(label: Any) -> int | str | None:
    if label is None or isinstance(label, int | str):
        return label
    if isinstance(label, float) and (math.isnan(label) or label.is_integer()):
        return None if math.isnan(label) else int(label)
    raise DataError(f"the label {label!r} is neither a whole number nor a text")


def _is_missing(label: int | str | None) -> bool:
    return label is None or label == "" or (not isinstance(label, str) and label < 0)
