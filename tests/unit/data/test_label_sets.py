from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.data.images import NO_LABEL, ArrayImages
from pcl_ray.data.label_sets import LabelSets

LISTS = st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=8)


def lists_of(sets: LabelSets) -> list[list[int]]:
    return [sets.of(i).tolist() for i in range(len(sets))]


@given(LISTS, st.data())
def test_what_lists_do(lists: list[list[int]], data: st.DataObject) -> None:
    sets = LabelSets.of_lists(lists)
    assert lists_of(sets) == lists
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9)) if lists else []
    assert lists_of(sets.take(np.array(chosen, dtype=np.int64))) == [lists[i] for i in chosen]
    wanted = data.draw(st.lists(st.booleans(), min_size=len(lists), max_size=len(lists)))
    only = sets.only(np.array(wanted, dtype=bool))
    assert lists_of(only) == [own if keep else [] for own, keep in zip(lists, wanted, strict=True)]
    matrix = [[label in own for label in range(5)] for own in lists]
    assert sets.matrix(5).tolist() == matrix


def test_they_stay_with_their_images() -> None:
    sets = LabelSets.of_lists([[0, 1], [1], [2, 0]])
    images = ArrayImages(
        np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 2]), ("a", "b", "c"), label_sets=sets
    )
    turned = images.take(np.array([2, 0]))
    assert turned.label_sets is not None
    assert lists_of(turned.label_sets) == [[2, 0], [0, 1]]
    hidden = images.with_labels(np.array([NO_LABEL, 1, 2]))
    assert hidden.label_sets is not None
    assert lists_of(hidden.label_sets) == [[], [1], [2, 0]]


def test_the_fingerprint_knows_them() -> None:
    plain = ArrayImages(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1]))
    others = [
        ArrayImages(plain.pixels, plain.labels, label_sets=LabelSets.of_lists(lists))
        for lists in ([[0], [1]], [[0, 1], [1]], [[0], [1, 0]])
    ]
    assert len({images.fingerprint for images in (plain, *others)}) == 4
