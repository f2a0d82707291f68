from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from pcl_ray.config import AugmentConfig
from pcl_ray.data.draws import ORDERS, ViewDraws, uniforms, view_draws

MANY = 20_000
UNLIKELY = 1e-4
NAMES = [field.name for field in fields(ViewDraws)]
ALL_ON = {"shift": 0.2, "rotate": 30.0, "shear": 10.0, "erase": 0.5}


def config(**knobs: object) -> AugmentConfig:
    return AugmentConfig(image_size=8, **knobs)


def drawn(
    settings: AugmentConfig,
    *,
    channels: int = 3,
    seed: int = 0,
    epoch: int = 0,
    view: int = 0,
    count: int = MANY,
    size=(32, 32),
) -> ViewDraws:
    return view_draws(settings, channels, seed, epoch, np.arange(count), view, np.tile(size, (count, 1)))


def even(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> bool:
    return (
        values.min() >= low
        and values.max() <= high
        and stats.kstest(values, "uniform", (low, high - low)).pvalue > UNLIKELY
    )


def unrelated(a: np.ndarray, b: np.ndarray) -> bool:
    return abs(np.corrcoef(a, b)[0, 1]) < 4.5 / len(a) ** 0.5


@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    st.integers(0, 1),
)
def test_numbers_lie_in_the_unit_interval(seed: int, epoch: int, indices: list[int], view: int) -> None:
    numbers = uniforms(seed, epoch, np.array(indices), view, 50)
    assert numbers.shape == (len(indices), 50)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1


@pytest.mark.parametrize(
    "other", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**31 - 1, 0, 0, 0)]
)
def test_seed_epoch_image_and_view_each_matter(other: tuple[int, int, int, int]) -> None:
    numbers, others = (
        uniforms(seed, epoch, np.array([index]), view) for seed, epoch, index, view in [(0, 0, 0, 0), other]
    )
    assert (numbers != others).all()


def test_no_two_combinations_share_numbers() -> None:
    """Nor do seed, epoch and view stand in for each other."""
    numbers = [
        uniforms(seed, epoch, np.arange(10), view)
        for seed in range(6)
        for epoch in range(6)
        for view in range(2)
    ]
    assert len(np.unique(numbers)) == np.size(numbers)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30), st.integers(0, 100), st.integers(1, 40))
def test_an_images_numbers_do_not_depend_on_the_batch_around_it(
    indices: list[int], epoch: int, count: int
) -> None:
    together = uniforms(3, epoch, np.array(indices), 1, 40)
    for row, index in zip(together, indices, strict=True):
        assert np.array_equal(row, uniforms(3, epoch, np.array([index]), 1, 40)[0])
    assert np.array_equal(together[::-1], uniforms(3, epoch, np.array(indices[::-1]), 1, 40))
    assert np.array_equal(together[:, :count], uniforms(3, epoch, np.array(indices), 1, count))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_the_kind_of_integer_does_not_matter(kind: type) -> None:
    assert np.array_equal(uniforms(0, 0, np.arange(100).astype(kind), 0), uniforms(0, 0, np.arange(100), 0))


def test_numbers_are_even_over_the_images() -> None:
    assert all(even(column) for column in uniforms(0, 0, np.arange(MANY), 0).T)


def test_numbers_are_even_over_places_seeds_and_epochs() -> None:
    assert even(uniforms(0, 0, np.array([5]), 0, MANY)[0])
    assert even(np.array([uniforms(seed, 0, np.array([5]), 0, 1)[0, 0] for seed in range(3000)]))
    assert even(np.array([uniforms(0, epoch, np.array([5]), 0, 1)[0, 0] for epoch in range(3000)]))


def test_neighbours_are_unrelated() -> None:
    numbers = uniforms(0, 0, np.arange(MANY), 0)
    for other in (
        uniforms(1, 0, np.arange(MANY), 0),
        uniforms(0, 1, np.arange(MANY), 0),
        uniforms(0, 0, np.arange(MANY), 1),
    ):
        assert all(unrelated(a, b) for a, b in zip(numbers.T, other.T, strict=True))
    assert all(unrelated(column[:-1], column[1:]) for column in numbers.T)
    assert all(unrelated(a, b) for a, b in zip(numbers.T[:-1], numbers.T[1:], strict=True))
    assert unrelated(numbers[:-1, 1], numbers[1:, 0])


def test_pairs_of_neighbours_fill_the_square_evenly() -> None:
    numbers = (uniforms(0, 0, np.arange(MANY), 0) * 8).astype(int)
    cells = [numbers[:, :-1] * 8 + numbers[:, 1:], numbers[:-1] * 8 + numbers[1:]]
    for pairs in cells:
        assert all(stats.chisquare(np.bincount(column, minlength=64)).pvalue > UNLIKELY for column in pairs.T)


@pytest.mark.parametrize(("version", "lowest", "highest"), [("v1", 1.0, 1.0), ("v2", 0.78, 0.82)])
def test_v1_jitters_always_and_v2_four_times_in_five(version: str, lowest: float, highest: float) -> None:
    draws = drawn(config(version=version))
    changed = np.column_stack([draws.factors != 1, draws.hue != 0])
    assert lowest <= changed.any(axis=1).mean() <= highest
    assert np.array_equal(changed.any(axis=1), changed.all(axis=1))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("jitter", "hue"), [(0.4, 0.1), (1.0, 0.5), (0.1, 0.0), (0.0, 0.4), (0.0, 0.0)])
def test_factors_and_hue_are_even_over_their_ranges(version: str, jitter: float, hue: float) -> None:
    draws = drawn(config(version=version, jitter=jitter, hue=hue))
    for factors in draws.factors.T:
        assert even(factors[factors != 1], 1 - jitter, 1 + jitter) if jitter else (factors == 1).all()
    assert even(draws.hue[draws.hue != 0], -hue, hue) if hue else (draws.hue == 0).all()


def test_blurs_are_of_a_tenth_of_a_pixel_to_two() -> None:
    sigmas = drawn(config(blur=0.5)).sigmas
    assert even(sigmas[sigmas > 0], 0.1, 2.0)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flips_greys_and_blurs_are_as_frequent_as_asked(version: str, share: float) -> None:
    draws = drawn(config(version=version, flip=share, grey=share, blur=share))
    slack = 0.015 if 0 < share < 1 else 0.0
    assert abs(draws.flipped.mean() - share) <= slack
    assert abs(draws.grey.mean() - share) <= slack
    assert abs((draws.sigmas > 0).mean() - (share if version == "v2" else 0)) <= slack


def test_all_orders_are_drawn_evenly() -> None:
    assert len({tuple(order) for order in ORDERS.tolist()}) == 24
    kinds, counts = np.unique(drawn(config()).orders, axis=0, return_counts=True)
    assert np.array_equal(kinds, ORDERS)
    assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_grey_pictures_keep_what_has_no_meaning_for_them(version: str) -> None:
    settings = config(version=version, jitter=1.0, hue=0.5, grey=1.0)
    grey, coloured = drawn(settings, channels=1), drawn(settings)
    assert not grey.grey.any()
    assert (grey.hue == 0).all()
    assert (grey.factors[:, 2] == 1).all()
    assert np.array_equal(grey.factors[:, :2], coloured.factors[:, :2])
    for name in ("boxes", "flipped", "sigmas"):
        assert np.array_equal(getattr(grey, name), getattr(coloured, name))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_is_drawn_for_a_view_is_unrelated(version: str) -> None:
    """With jitter: whether there is any is shared by four of them."""
    query, key = (
        drawn(config(version=version, jitter=0.4, grey=0.5, **ALL_ON), view=view, size=(200, 200))
        for view in (0, 1)
    )
    jittered = (query.hue != 0) & (key.hue != 0)
    columns = [
        [
            part.boxes[:, 0],
            part.flipped,
            *part.factors.T,
            part.hue,
            part.orders[:, 0],
            part.grey,
            *part.warps.T,
            part.erased[:, :2].prod(axis=1),
            *part.erased.T[2:],
            *([part.sigmas] if version == "v2" else []),
        ]
        for part in (query, key)
    ]
    columns = [[column[jittered] for column in part] for part in columns]
    for i, (mine, others) in enumerate(zip(*columns, strict=True)):
        assert unrelated(mine, others)
        assert all(unrelated(mine, before) for before in columns[0][:i])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}, {"view": 1}])
def test_another_seed_epoch_or_view_gives_other_draws(changed: dict[str, int]) -> None:
    settings = config(**ALL_ON)
    first, again, other = (
        drawn(settings, count=200),
        drawn(settings, count=200),
        drawn(settings, count=200, **changed),
    )
    for name in NAMES:
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=20
    )
)
def test_draws_do_not_depend_on_the_batch_around_them(items: list[tuple[int, int, int]]) -> None:
    indices, sizes = np.array(items)[:, 0], np.array(items)[:, 1:]
    settings = config(**ALL_ON)
    together = view_draws(settings, 3, 0, 2, indices, 1, sizes)
    for i in range(len(items)):
        alone = view_draws(settings, 3, 0, 2, indices[i : i + 1], 1, sizes[i : i + 1])
        for name in NAMES:
            assert np.array_equal(getattr(together, name)[i], getattr(alone, name)[0])


@given(
    st.one_of(
        st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.tuples(st.integers(1, 9), st.integers(1, 9))
    ),
    st.floats(1e-6, 1.0),
    st.integers(0, 10**9),
)
def test_crops_are_whole_pixels_within_the_image(size: tuple[int, int], min_crop: float, first: int) -> None:
    boxes = view_draws(
        config(min_crop=min_crop), 3, 0, 0, first + np.arange(40), 0, np.tile(size, (40, 1))
    ).boxes
    assert boxes.shape == (40, 4)
    assert boxes.dtype == np.float64
    assert np.array_equal(boxes, np.floor(boxes))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3000), (1, 2), (2, 1), (3, 2)])
def test_crops_of_extreme_shapes_lie_within_the_image(size: tuple[int, int]) -> None:
    boxes = drawn(config(), count=500, size=size).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


@pytest.mark.parametrize("side", [1, 8, 28, 32, 224])
def test_square_images_stay_whole_where_crops_keep_everything(side: int) -> None:
    assert (drawn(config(min_crop=1.0), count=1000, size=(side, side)).boxes == [0, 0, side, side]).all()


def by_torchvision(size: tuple[int, int], min_crop: float, count: int) -> np.ndarray:
    torch.manual_seed(1)
    image = torch.empty(1, *size)
    return np.array(
        [RandomResizedCrop.get_params(image, [min_crop, 1.0], [3 / 4, 4 / 3]) for _ in range(count)],
        dtype=float,
    )


@pytest.mark.parametrize("min_crop", [0.08, 0.2, 0.6])
@pytest.mark.parametrize("size", [(32, 32), (300, 200), (28, 28), (60, 200), (200, 60), (7, 5)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], min_crop: float) -> None:
    """Some of the elongated images' crops come from the first try that fits, some are the centre."""
    mine, others = (
        drawn(config(min_crop=min_crop), count=6000, size=size).boxes,
        by_torchvision(size, min_crop, 3000),
    )
    figures = [
        np.column_stack(
            [
                boxes,
                boxes[:, 2] * boxes[:, 3],
                boxes[:, 2] / boxes[:, 3],
                boxes[:, 0] + boxes[:, 2] / 2,
                boxes[:, 1] + boxes[:, 3] / 2,
            ]
        )
        for boxes in (mine, others)
    ]
    for a, b in zip(*(part.T for part in figures), strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


def test_small_views_keep_a_small_share_evenly() -> None:
    settings = config(small_crops=2, small_crop_max=0.3, min_crop=0.5)
    for view, low, high in [(0, 0.5, 1.0), (1, 0.5, 1.0), (2, 0.05, 0.3), (3, 0.05, 0.3)]:
        boxes = drawn(settings, view=view, size=(2000, 2000)).boxes
        shares = boxes[:, 2] * boxes[:, 3] / 2000**2
        assert low - 0.001 < shares.min()
        assert shares.max() < high + 0.001
        if high < 1:  # larger ones do not always fit
            assert stats.kstest(shares, "uniform", (low, high - low)).pvalue > UNLIKELY


def test_small_views_change_nothing_about_the_others() -> None:
    for view in (0, 1):
        with_small, without = (
            drawn(config(small_crops=count, **ALL_ON), view=view, count=300) for count in (4, 0)
        )
        for name in NAMES:
            assert np.array_equal(getattr(with_small, name), getattr(without, name))


@pytest.mark.parametrize("size", [(10, 200), (200, 10), (1, 300), (300, 1), (31, 1024), (1, 1)])
def test_where_no_crop_fits_it_is_the_centre_as_torchvision_cuts_it(size: tuple[int, int]) -> None:
    assert np.array_equal(
        np.unique(drawn(config(), count=300, size=size).boxes, axis=0),
        np.unique(by_torchvision(size, 0.2, 30), axis=0),
    )


@pytest.mark.parametrize("size", [(60, 200), (200, 60)])
def test_the_centre_is_as_frequent_as_with_torchvision(size: tuple[int, int]) -> None:
    centre = by_torchvision((60, 6000) if size[0] < size[1] else (6000, 60), 0.2, 1)[0, 2:]
    shares = [
        (boxes[:, 2:] == centre).all(axis=1).mean()
        for boxes in (drawn(config(), count=20_000, size=size).boxes, by_torchvision(size, 0.2, 3000))
    ]
    assert 0.05 < shares[1] < 0.95
    assert abs(shares[0] - shares[1]) < 0.035


def test_the_numbers_stay_those_that_earlier_versions_drew() -> None:
    """A run that is resumed goes on with the views that it would have had."""
    numbers = uniforms(7, 3, np.array([5, 2**40]), 1)
    assert [numbers[0, 0].hex(), numbers[0, 31].hex(), numbers[1, 31].hex()] == [
        "0x1.2e052aaf4638bp-1",
        "0x1.f738ab1417093p-1",
        "0x1.b8ebfc72592c8p-2",
    ]


@pytest.mark.parametrize("knobs", [{"shift": 0.2}, {"rotate": 30.0}, {"shear": 9.0}, {"erase": 0.5}, ALL_ON])
def test_a_knob_that_is_on_changes_nothing_else_that_is_drawn(knobs: dict[str, float]) -> None:
    plain, draws = drawn(config(), count=300), drawn(config(**knobs), count=300)
    for name in NAMES[:-2]:
        assert np.array_equal(getattr(plain, name), getattr(draws, name))
    assert plain.warps is None
    assert plain.erased is None
    assert (draws.warps is None) == (set(knobs) == {"erase"})
    assert (draws.erased is None) == ("erase" not in knobs)


@pytest.mark.parametrize("knobs", [{"shift": 0.5}, {"rotate": 180.0}, {"shear": 45.0}, ALL_ON])
def test_shifts_angles_and_shears_are_even_up_to_the_largest(knobs: dict[str, float]) -> None:
    warps = drawn(config(**knobs)).warps
    assert warps is not None
    shift = knobs.get("shift", 0.0)
    angle, shear = (np.radians(knobs.get(name, 0.0)) for name in ("rotate", "shear"))
    for values, largest in zip(warps.T, (shift, shift, angle, shear), strict=True):
        assert even(values, -largest, largest) if largest else (values == 0).all()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rectangles_are_as_frequent_large_and_long_as_they_should(share: float) -> None:
    erased = drawn(config(erase=share)).erased
    assert erased is not None
    which = erased[:, 0] > 0
    assert np.array_equal(which, erased[:, 1] > 0)
    assert abs(which.mean() - share) <= (0.015 if share < 1 else 0.0)
    heights, widths = erased[which, :2].T
    assert even(heights * widths, 0.02, 0.2 + 1e-12)
    assert even(np.log(heights / widths), np.log(0.3) - 1e-12, np.log(3.3) + 1e-12)
    assert erased[which, :2].max() < 1
    assert all(even(place) for place in erased[:, 2:].T)
