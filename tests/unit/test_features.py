from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.features import FeatureShard, assemble


def shard(indices: list[int], width: int = 3) -> FeatureShard:
    """The feature of image i is (i, i, …): a misplaced row shows."""
    ids = np.array(indices, dtype=np.int64)
    return FeatureShard(ids, np.repeat(ids[:, None], width, axis=1).astype(np.float32))


@given(st.data())
def test_any_split_with_repeats_gives_each_image_once_in_order(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30), label="images")
    order = data.draw(st.permutations(range(n)))
    repeats = data.draw(st.lists(st.integers(0, n - 1), max_size=10), label="repeats")
    held = list(order) + repeats
    workers = data.draw(st.integers(1, 6), label="workers")
    owner = data.draw(st.lists(st.integers(0, workers - 1), min_size=len(held), max_size=len(held)))
    # some may be empty
    shards = [
        shard([i for i, w in zip(held, owner, strict=True) if w == worker]) for worker in range(workers)
    ]
    features = assemble(iter(shards), n)
    assert features.dtype == np.float32
    assert features.tolist() == [[i] * 3 for i in range(n)]


def test_a_repeated_image_is_taken_once_and_not_summed() -> None:
    features = assemble([shard([0, 1, 2]), shard([2, 1, 1])], 3)
    assert features[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shards", "n", "parts"),
    [
        ([[0, 1, 5]], 5, ["0..5", "0..4"]),
        ([[-1, 0, 1]], 2, ["-1..1", "0..1"]),
        ([[0, 4]], 5, ["3 of 5", "[1, 2, 3]"]),
        ([[9]], 10, ["9 of 10", "[0, 1, 2, 3, 4]"]),
        ([], 4, ["no features", "4 images"]),
        ([[]], 4, ["no features", "4 images"]),
    ],
    ids=["above", "below", "gap", "many missing", "no shards", "empty shard"],
)
def test_refusals_name_the_numbers(shards: list[list[int]], n: int, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        assemble([shard(indices) for indices in shards], n)
    for part in parts:
        assert part in str(caught.value)


def test_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        assemble([shard([0, 1]), shard([2], width=4)], 3)


@pytest.mark.parametrize(
    "features", [np.zeros((2, 3), np.float32), np.zeros(3, np.float32), np.zeros((3, 2, 2), np.float32)]
)
def test_a_shard_needs_one_index_a_row(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        FeatureShard(np.arange(3), features)
