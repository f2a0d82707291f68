from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as images_of

from pcl_ray.config import AugmentConfig
from pcl_ray.data.colour import blur, blur_size, erase, jitter, to_floats, to_grey
from pcl_ray.data.draws import ORDERS, ViewDraws, view_draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STEPS = [
    images_of.adjust_brightness,
    images_of.adjust_contrast,
    images_of.adjust_saturation,
    images_of.adjust_hue,
]


def pictures(count: int, channels: int = 3, side: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def draws(count: int, **parts: np.ndarray) -> ViewDraws:
    """That change nothing but what is given."""
    nothing = {
        "boxes": np.zeros((count, 4)),
        "flipped": np.zeros(count, dtype=bool),
        "factors": np.ones((count, 3)),
        "hue": np.zeros(count),
        "orders": np.tile(np.arange(4), (count, 1)),
        "grey": np.zeros(count, dtype=bool),
        "sigmas": np.zeros(count),
    }
    return ViewDraws(**{**nothing, **parts})


def by_torchvision(image: Tensor, drawn: ViewDraws, i: int) -> Tensor:
    for kind in drawn.orders[i].tolist():
        amount = float(drawn.hue[i] if kind == HUE else drawn.factors[i, kind])
        image = STEPS[kind](image, amount) if len(image) == 3 or kind < SATURATION else image
    return image


def same(a: Tensor, b: Tensor, slack: float = 1e-5) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=slack)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_each_step_is_torchvisions_with_a_factor_of_its_own(kind: int, channels: int) -> None:
    images, factors = pictures(21, channels), np.ones((21, 3))
    factors[:, kind] = np.linspace(0, 2, 21)
    changed = jitter(images.clone(), draws(21, factors=factors))
    for i in range(21):
        expected = (
            images[i] if channels == 1 and kind == SATURATION else STEPS[kind](images[i], factors[i, kind])
        )
        assert same(changed[i], expected)


def test_hues_turn_as_with_torchvision() -> None:
    images, turns = pictures(21), np.linspace(-0.5, 0.5, 21)
    changed = jitter(images.clone(), draws(21, hue=turns))
    for i in range(21):
        assert same(changed[i], images_of.adjust_hue(images[i], turns[i]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("strength", "hue"), [(0.4, 0.1), (1.0, 0.5)])
def test_every_image_is_changed_in_its_own_order(
    channels: int, version: str, strength: float, hue: float
) -> None:
    settings, count = AugmentConfig(image_size=12, version=version, jitter=strength, hue=hue), 120
    drawn = view_draws(settings, channels, 0, 0, np.arange(count), 0, np.full((count, 2), 12))
    assert len(np.unique(drawn.orders, axis=0)) == 24
    images = pictures(count, channels)
    changed = jitter(images.clone(), drawn)
    for i in range(count):
        assert same(changed[i], by_torchvision(images[i], drawn, i))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_order_matters(channels: int) -> None:
    image = pictures(1, channels).repeat(24, 1, 1, 1)
    drawn = draws(24, factors=np.tile([1.8, 0.5, 1.7], (24, 1)), hue=np.full(24, 0.2), orders=ORDERS)
    changed = jitter(image.clone(), drawn)
    assert all(same(changed[i], by_torchvision(image[i], drawn, i)) for i in range(24))
    alike = sum(same(a, b) for a, b in itertools.combinations(changed, 2))
    # of grey ones: 12 orders with brightness before contrast, and 12 with it after
    assert alike == (132 if channels == 1 else 0)


@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.integers(4, 9),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_any_batch_is_changed_as_by_torchvision(
    first: int, count: int, channels: int, side: int, strength: float, hue: float
) -> None:
    settings = AugmentConfig(image_size=side, jitter=strength, hue=hue)
    drawn = view_draws(settings, channels, 0, 0, first + np.arange(count), 0, np.full((count, 2), side))
    images = pictures(count, channels, side, first)
    changed = jitter(images.clone(), drawn)
    assert all(same(changed[i], by_torchvision(images[i], drawn, i)) for i in range(count))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_nothing_is_drawn_for_keep_every_bit(channels: int) -> None:
    left = np.arange(20) % 2 == 0
    images = pictures(20, channels)
    images[0, :, 0, :4] = torch.tensor([0.0, 1.0, 1e-30, 1 - 2**-24])
    drawn = view_draws(
        AugmentConfig(image_size=12, version="v1", jitter=0.8, hue=0.3),
        channels,
        0,
        0,
        np.arange(20),
        0,
        np.full((20, 2), 12),
    )
    drawn = draws(
        20,
        factors=np.where(left[:, None], 1.0, drawn.factors),
        hue=np.where(left, 0.0, drawn.hue),
        orders=drawn.orders,
    )
    changed = jitter(images.clone(), drawn)
    assert torch.equal(changed[left], images[left])
    assert all(not torch.equal(changed[i], images[i]) for i in np.flatnonzero(~left))
    assert torch.equal(jitter(images.clone(), draws(20)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_changed_the_same_in_any_batch(channels: int) -> None:
    images = pictures(15, channels)
    drawn = view_draws(AugmentConfig(image_size=12), channels, 0, 0, np.arange(15), 0, np.full((15, 2), 12))
    together = jitter(images.clone(), drawn)
    for i in range(15):
        parts = {name: value[i : i + 1] for name, value in vars(drawn).items() if value is not None}
        assert torch.equal(jitter(images[i : i + 1].clone(), ViewDraws(**parts))[0], together[i])


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_stay_within_their_range(channels: int) -> None:
    drawn = view_draws(
        AugmentConfig(image_size=12, version="v1", jitter=1.0, hue=0.5),
        channels,
        0,
        0,
        np.arange(200),
        0,
        np.full((200, 2), 12),
    )
    changed = jitter(pictures(200, channels), drawn)
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    assert torch.isfinite(changed).all()


def palette() -> Tensor:
    """[1, 3, 9, 14]: mixtures of 0, a little, half, nearly all and all of red, green and blue, with ties."""
    return (
        torch.tensor([*itertools.product([0.0, 1 / 255, 0.5, 254 / 255, 1.0], repeat=3), (0.3, 0.3, 0.3)])
        .T.reshape(1, 3, 9, 14)
        .contiguous()
    )


@pytest.mark.parametrize("turn", [-0.5, -1 / 3, -0.1, 1e-4, 1 / 6, 0.25, 1 / 3, 0.5])
def test_greys_primaries_and_ties_turn_as_with_torchvision(turn: float) -> None:
    changed = jitter(palette(), draws(1, hue=np.array([turn])))
    assert same(changed[0], images_of.adjust_hue(palette()[0], turn), 2e-5)


def test_a_third_of_a_turn_takes_red_to_green_to_blue() -> None:
    primaries = torch.eye(3).view(1, 3, 3, 1)
    assert same(jitter(primaries.clone(), draws(1, hue=np.array([1 / 3]))), primaries.roll(1, dims=1))
    assert same(jitter(primaries.clone(), draws(1, hue=np.array([-1 / 3]))), primaries.roll(-1, dims=1))


def test_greys_have_no_hue_to_turn() -> None:
    grey = torch.linspace(0, 1, 101).view(1, 1, 101, 1).expand(1, 3, 101, 1).contiguous()
    for turn in (-0.5, -0.2, 0.01, 0.4):
        assert torch.equal(jitter(grey.clone(), draws(1, hue=np.array([turn]))), grey)


def test_a_turn_and_back_gives_the_colours_again() -> None:
    images, turns = pictures(9), np.linspace(-0.45, 0.5, 9)
    assert same(jitter(jitter(images.clone(), draws(9, hue=turns)), draws(9, hue=-turns)), images)


def test_chosen_images_lose_their_colours_and_the_others_nothing() -> None:
    images, which = pictures(10), np.arange(10) % 3 == 1
    changed = to_grey(images.clone(), which)
    assert torch.equal(changed[~which], images[~which])
    assert same(changed[which], images_of.rgb_to_grayscale(images[which], 3))
    assert torch.equal(changed[which][:, :1].expand(-1, 3, -1, -1), changed[which])


@pytest.mark.parametrize("channels", [1, 3])
def test_none_chosen_leaves_every_image_alone(channels: int) -> None:
    images = pictures(4, channels)
    assert torch.equal(to_grey(images.clone(), np.zeros(4, dtype=bool)), images)
    assert torch.equal(blur(images.clone(), np.zeros(4), 3), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 28, 33, 64, 100])
def test_blurs_are_torchvisions_with_a_width_of_their_own(channels: int, size: int) -> None:
    images, sigmas, kernel = pictures(12, channels, size), np.linspace(0.1, 2.0, 12), blur_size(size)
    changed = blur(images.clone(), sigmas, kernel)
    for i in range(12):
        assert same(changed[i], images_of.gaussian_blur(images[i], [kernel, kernel], [float(sigmas[i])] * 2))


@given(
    st.integers(4, 30),
    st.integers(1, 14),
    st.lists(st.one_of(st.just(0.0), st.floats(0.1, 2.0)), min_size=1, max_size=8),
    st.sampled_from([1, 3]),
)
def test_blurs_of_any_kernel_leave_the_others_alone(
    side: int, half: int, sigmas: list[float], channels: int
) -> None:
    kernel = 2 * min(half, side - 1) + 1
    images = pictures(len(sigmas), channels, side)
    changed = blur(images.clone(), np.array(sigmas), kernel)
    for before, after, sigma in zip(images, changed, sigmas, strict=True):
        if sigma:
            assert same(after, images_of.gaussian_blur(before, [kernel, kernel], [sigma, sigma]))
        else:
            assert torch.equal(before, after)


def test_a_blurred_image_of_one_colour_stays_so() -> None:
    assert same(
        blur(torch.full((3, 3, 20, 20), 0.7), np.array([0.1, 1.0, 2.0]), 5),
        torch.full((3, 3, 20, 20), 0.7),
        1e-6,
    )


def test_a_blurred_point_is_symmetric_and_keeps_its_mass() -> None:
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    (seen,) = blur(point, np.array([1.5]), 7)[0]
    assert float(seen.sum()) == pytest.approx(1, abs=1e-6)
    assert same(seen, seen.T, 1e-7)
    assert same(seen, seen.flip(0), 1e-7)
    assert (seen > 0).sum() == 49


@pytest.mark.parametrize(("channels", "side"), [(3, 8), (3, 1), (1, 8)])
def test_floats_do_not_depend_on_how_pixels_lie_in_memory(channels: int, side: int) -> None:
    config = AugmentConfig(mean=(0.3, 0.5, 0.7)[:channels], std=(0.1, 0.2, 0.3)[:channels])
    pixels = torch.randint(0, 256, (5, channels, side, side), dtype=torch.uint8)
    last = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(to_floats(last, config), to_floats(pixels, config))
    assert torch.equal(to_floats(last[:0], config), to_floats(pixels[:0], config))


def test_floats_are_normalised_a_channel() -> None:
    settings = AugmentConfig(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    batch = torch.tensor([0, 51, 255, 0], dtype=torch.uint8).view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    floats = to_floats(batch, settings)
    assert floats.dtype == torch.float32
    assert floats.shape == (2, 3, 2, 2)
    for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        expected = torch.tensor([(value / 255 - mean) / std for value in (0, 51, 255, 0)]).view(2, 2)
        assert torch.allclose(floats[:, channel], expected.expand(2, 2, 2), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 28, 33])
def test_a_rectangle_of_each_view_becomes_the_mean(channels: int, side: int) -> None:
    views = pictures(60, channels, side) - 2.0  # nowhere 0
    drawn = view_draws(AugmentConfig(erase=0.7), channels, 0, 0, np.arange(60), 0, np.full((60, 2), side))
    assert drawn.erased is not None
    erased = erase(views.clone(), drawn.erased)
    for before, after, (tall, wide, down, right) in zip(views, erased, drawn.erased.tolist(), strict=True):
        expected = before.clone()
        if tall:
            height, width = max(round(tall * side), 1), max(round(wide * side), 1)
            top, left = int(down * (side - height + 1)), int(right * (side - width + 1))
            assert top + height <= side
            assert left + width <= side
            for row in range(top, top + height):
                expected[:, row, left : left + width] = 0
        assert torch.equal(after, expected)
    assert 10 < int((erased == views).flatten(1).all(dim=1).sum()) < 30


def test_rectangles_reach_every_edge() -> None:
    places = np.array([[0.0, 0.0], [0.0, 1 - 2**-53], [1 - 2**-53, 0.0], [1 - 2**-53, 1 - 2**-53]])
    erased = erase(torch.ones(4, 1, 10, 10), np.column_stack([np.full((4, 2), 0.3), places]))
    assert (erased == 0).sum(dim=(1, 2, 3)).tolist() == [9] * 4
    corners = [erased[i, 0, -(i // 2), -(i % 2)] for i in range(4)]
    assert corners == [0] * 4
