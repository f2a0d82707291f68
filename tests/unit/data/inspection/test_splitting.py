from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.data.inspection import splitting


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 99))
def test_copies_stay_on_one_side(count: int, groups: int, share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    group = np.unique(generator.integers(0, groups, count), return_inverse=True)[1]
    order, wanted = generator.permutation(count), round(count * share)
    held = splitting.holdout_of(order, wanted, group)
    assert splitting.separated(held, group) == 0
    assert held.sum() <= wanted
    first = np.isin(np.arange(count), order[:wanted])
    untouched = [number for number in np.unique(group) if not (held | first)[group == number].any()]
    left = wanted - int(held.sum())
    assert all((group == number).sum() > left for number in untouched)  # none of them would have fitted


def test_without_copies_it_is_the_random_choice() -> None:
    order = np.random.default_rng(1).permutation(50)
    held = splitting.holdout_of(order, 10, np.arange(50))
    assert sorted(np.flatnonzero(held)) == sorted(order[:10])


def test_a_pair_on_both_sides_goes_to_the_training_part_and_the_next_one_takes_its_place() -> None:
    order = np.array([4, 0, 2, 1, 3, 5])
    group = np.array([0, 1, 2, 3, 0, 4])  # 4 and 0 would be held out together …
    assert np.flatnonzero(splitting.holdout_of(order, 2, group)).tolist() == [0, 4]
    # … but only one of them fits
    assert np.flatnonzero(splitting.holdout_of(order, 1, group)).tolist() == [2]


@pytest.mark.parametrize(("held", "expected"), [([1, 0, 0, 0], 1), ([1, 1, 0, 0], 0), ([1, 0, 1, 0], 1)])
def test_separated_ones_are_counted(held: list[int], expected: int) -> None:
    assert splitting.separated(np.array(held, bool), np.array([0, 0, 1, 2])) == expected
