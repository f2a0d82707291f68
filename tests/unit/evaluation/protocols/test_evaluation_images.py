"""Several labels an image, as the low-shot SVM takes them."""

from __future__ import annotations

import numpy as np

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import NO_LABEL, ArrayImages
from pcl_ray.data.label_sets import LabelSets
from pcl_ray.evaluation.protocols.images import EvaluationImages


def arrays(lists: list[list[int]], *, several: bool) -> ArrayImages:
    first = np.array([own[0] if own else NO_LABEL for own in lists])
    sets = LabelSets.of_lists(lists) if several else None
    return ArrayImages(np.zeros((len(lists), 4, 4, 1), np.uint8), first, ("a", "b", "c"), label_sets=sets)


def test_all_labels_count_and_images_without_any_take_no_part() -> None:
    splits = DataSplits(arrays([[0, 2], [], [1], [2, 1]], several=True), arrays([[2], [0]], several=False))
    images = EvaluationImages.of_splits("some", splits)
    several = images.several_labels()
    assert several is not None
    assert several.bank_BL.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert several.queries_QL.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert several.bank_BL.dtype == np.int8
    assert images.bank_labels is not None
    assert images.bank_labels.tolist() == [0, 1, 2]  # other protocols take the first
    assert images.for_references(1).several_labels().queries_QL.shape == (1, 3)  # type: ignore[union-attr]


def test_of_one_label_an_image_there_are_not_several() -> None:
    splits = DataSplits(arrays([[0], [1]], several=False), arrays([[1], [0]], several=False))
    assert EvaluationImages.of_splits("some", splits).several_labels() is None
    only_bank = DataSplits(arrays([[0, 1], [1]], several=True), None)
    assert EvaluationImages.of_splits("some", only_bank).several_labels() is None
