from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as images_of

from pcl_ray.data.resample import resample, warp


def pictures(count: int, channels: int = 3, height: int = 20, width: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, side: int) -> Tensor:
    return images_of.resize(pictures(count, 3, 6, 6), [side, side], antialias=True)


def whole_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(count):
        h, w = (int(torch.randint(1, side + 1, (1,), generator=generator)) for side in (height, width))
        top, left = (
            int(torch.randint(0, room + 1, (1,), generator=generator)) for room in (height - h, width - w)
        )
        boxes.append([top, left, h, w])
    return torch.tensor(boxes, dtype=torch.float32)


def by_torchvision(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    parts = zip(images, boxes.int().tolist(), strict=True)
    return torch.stack(
        [images_of.resized_crop(image, *box, [size, size], antialias=True) for image, box in parts]
    )


def same(a: Tensor, b: Tensor, slack: float = 1e-5) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=slack)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 16, 28, 64])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 45), (100, 7), (16, 16)])
def test_views_are_what_torchvision_makes_of_each_image(
    channels: int, size: int, height: int, width: int
) -> None:
    images, boxes = pictures(30, channels, height, width), whole_boxes(30, height, width)
    assert same(resample(images, boxes, size), by_torchvision(images, boxes, size))


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(4, 40), st.sampled_from([1, 3]), st.integers(0, 10**6)
)
def test_any_image_box_and_size_are_as_with_torchvision(
    height: int, width: int, size: int, channels: int, seed: int
) -> None:
    images, boxes = pictures(6, channels, height, width, seed), whole_boxes(6, height, width, seed)
    assert same(resample(images, boxes, size), by_torchvision(images, boxes, size))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [7, 8, 40])
def test_flipped_views_are_the_views_from_right_to_left(channels: int, size: int) -> None:
    images, boxes = pictures(16, channels), whole_boxes(16, 20, 30)
    flipped = torch.arange(16) % 3 == 0
    straight = resample(images, boxes, size)
    assert same(
        resample(images, boxes, size, flipped),
        torch.where(flipped[:, None, None, None], straight.flip(3), straight),
        1e-6,
    )
    assert torch.equal(resample(images, boxes, size, torch.zeros(16, dtype=torch.bool)), straight)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_of_an_image_at_its_size_is_the_image(channels: int) -> None:
    images, whole = pictures(5, channels, 12, 12), torch.tensor([0.0, 0.0, 12.0, 12.0]).repeat(5, 1)
    assert torch.equal(resample(images, whole, 12), images)
    assert torch.equal(resample(images, whole, 12, torch.ones(5, dtype=torch.bool)), images.flip(3))


def test_a_box_at_the_views_size_is_cut_out_exactly() -> None:
    images = pictures(4)
    assert torch.equal(
        resample(images, torch.tensor([[3.0, 5.0, 8.0, 8.0]]).repeat(4, 1), 8), images[:, :, 3:11, 5:13]
    )


def test_what_lies_outside_the_box_does_not_matter() -> None:
    images, boxes = pictures(10), whole_boxes(10, 20, 30)
    others = pictures(10, seed=1)
    for image, other, (top, left, height, width) in zip(images, others, boxes.int().tolist(), strict=True):
        other[:, top : top + height, left : left + width] = image[:, top : top + height, left : left + width]
    assert torch.equal(resample(images, boxes, 9), resample(others, boxes, 9))


def test_an_images_view_does_not_depend_on_the_batch_around_it() -> None:
    images, boxes = pictures(9), whole_boxes(9, 20, 30)
    flipped = torch.arange(9) % 2 == 0
    together = resample(images, boxes, 12, flipped)
    for i in range(9):
        assert same(
            together[i : i + 1], resample(images[i : i + 1], boxes[i : i + 1], 12, flipped[i : i + 1]), 1e-6
        )


def test_images_and_boxes_are_left_alone() -> None:
    images, boxes = pictures(4), whole_boxes(4, 20, 30)
    before = images.clone(), boxes.clone()
    resample(images, boxes, 8, torch.ones(4, dtype=torch.bool))
    assert torch.equal(images, before[0])
    assert torch.equal(boxes, before[1])


@given(
    st.floats(0, 19),
    st.floats(0, 29),
    st.floats(1.01, 20),
    st.floats(1.01, 30),
    st.sampled_from([4, 9, 33]),
    st.booleans(),
)
def test_an_image_of_one_colour_stays_so(
    top: float, left: float, height: float, width: float, size: int, flipped: bool
) -> None:
    colour = torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1)
    box = torch.tensor([[min(top, 20 - height), min(left, 30 - width), height, width]]).clamp(min=0)
    view = resample(colour.expand(1, 3, 20, 30).contiguous(), box, size, torch.tensor([flipped]))
    assert same(view, colour.expand(1, 3, size, size))


def test_boxes_of_one_pixel_show_that_pixel() -> None:
    images = pictures(6)
    boxes = torch.tensor([[0, 0], [19, 29], [0, 29], [19, 0], [7, 11], [3, 28]]).float()
    views = resample(images, torch.cat([boxes, torch.ones(6, 2)], dim=1), 5, torch.arange(6) % 2 == 0)
    for image, (row, column), view in zip(images, boxes.int().tolist(), views, strict=True):
        assert same(view, image[:, row, column, None, None].expand(3, 5, 5), 1e-6)


def test_images_of_one_pixel() -> None:
    images = pictures(3, 3, 1, 1)
    assert same(
        resample(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1), 6), images.expand(3, 3, 6, 6)
    )


@pytest.mark.parametrize("size", [4, 10, 16])
def test_a_fraction_of_a_pixel_lies_between_whole_ones(size: int) -> None:
    """Of a picture that grows brighter to the right and downwards."""
    ramp = (torch.arange(40)[:, None] * 40 + torch.arange(40)).view(1, 1, 40, 40) / 1640
    steps = torch.linspace(0, 1, 11)
    boxes = torch.tensor([5.0, 7.0, 20.0, 20.0]).repeat(11, 1)
    for axis in (0, 1):
        moved = boxes.clone()
        moved[:, axis] += steps
        views = resample(ramp.repeat(11, 1, 1, 1), moved, size)
        assert (views[1:] >= views[:-1] - 1e-6).all()
        assert (views[-1] > views[0]).all()


@pytest.mark.parametrize("shrunk", [2, 3, 4])
def test_a_box_scaled_with_the_image_shows_about_the_same(shrunk: int) -> None:
    large = smooth(40, 96)
    small = images_of.resize(large, [96 // shrunk] * 2, antialias=True)
    boxes = whole_boxes(40, 96, 96)
    boxes = boxes[boxes[:, 2:].amin(dim=1) > 24]
    count = len(boxes)
    assert count > 15
    near, far = resample(large[:count], boxes, 16), resample(small[:count], boxes / shrunk, 16)
    assert (near - far).abs().mean() < 0.01
    assert (near - far).abs().max() < 0.2


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, 1.0, 1.0),
        (3.6, 8.7, 0.3, 0.3),
        (3.0, 4.0, 5.0, 0.4),
        (3.0, 4.1, 0.05, 5.0),
        (19.9, 29.9, 0.1, 0.1),
    ],
)
def test_boxes_without_the_centre_of_a_pixel_show_one_beside_it(box: tuple[float, ...]) -> None:
    """As of a very long picture that was squeezed into a square."""
    image = pictures(1)
    view = resample(image, torch.tensor([box]), 6)
    assert torch.isfinite(view).all()
    top, left, height, width = box
    rows, columns = (
        slice(max(int(start) - 1, 0), int(start + length) + 2)
        for start, length in ((top, height), (left, width))
    )
    near = image[:, :, rows, columns].flatten(2)
    assert (view.flatten(2) >= near.amin(dim=2, keepdim=True) - 1e-6).all()
    assert (view.flatten(2) <= near.amax(dim=2, keepdim=True) + 1e-6).all()


def warped_by_torchvision(view: Tensor, right: float, down: float, angle: float, shear: float) -> Tensor:
    """Within a margin that repeats the edge, so wide that nothing comes from outside it."""
    side = view.shape[-1]
    wide = images_of.pad(view, [3 * side], padding_mode="edge")
    moved = images_of.affine(
        wide,
        angle=float(np.degrees(angle)),
        translate=[round(right * side), round(down * side)],
        scale=1.0,
        shear=[float(np.degrees(shear)), 0.0],
        interpolation=images_of.InterpolationMode.BILINEAR,
    )
    return images_of.center_crop(moved, [side, side])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 9, 28])
@pytest.mark.parametrize(
    "largest", [(0.5, 0.5, 0, 0), (0, 0, 180, 0), (0, 0, 0, 45), (0.2, 0.2, 30, 15), (0.5, 0.5, 180, 45)]
)
def test_views_are_warped_as_torchvision_warps_each(
    largest: tuple[float, ...], side: int, channels: int
) -> None:
    """float32 rounds places in the margin, and near the edge of a pixel it shows."""
    views = pictures(40, channels, side, side)
    draw = np.random.default_rng(side)
    warps = draw.uniform(-1, 1, (40, 4)) * (*largest[:2], *np.radians(largest[2:]))
    expected = torch.stack(
        [warped_by_torchvision(view, *row) for view, row in zip(views, warps, strict=True)]
    )
    assert same(warp(views, warps), expected, 1e-3)


def test_nothing_drawn_leaves_a_view_as_it_is() -> None:
    views = pictures(5, 3, 16, 16)
    assert same(warp(views, np.zeros((5, 4))), views, 1e-5)
    assert torch.equal(views, pictures(5, 3, 16, 16))


@pytest.mark.parametrize(("right", "down"), [(0.25, 0.0), (-0.25, 0.5), (0.0, -0.125)])
def test_a_shift_moves_whole_pixels_and_repeats_the_edge(right: float, down: float) -> None:
    views = pictures(3, 1, 8, 8)
    rows, columns = ((torch.arange(8) - round(8 * by)).clamp(0, 7) for by in (down, right))
    assert same(warp(views, np.tile([right, down, 0.0, 0.0], (3, 1))), views[:, :, rows][..., columns], 1e-5)


def test_a_quarter_turn_is_clockwise() -> None:
    views = pictures(2, 3, 7, 7)
    assert same(warp(views, np.tile([0, 0, np.pi / 2, 0], (2, 1))), views.rot90(-1, (2, 3)), 1e-5)


@pytest.mark.parametrize("brightness", [0.0, 0.4, 1.0])
def test_an_even_background_stays_even(brightness: float) -> None:
    views = torch.full((50, 1, 12, 12), brightness)
    warps = np.random.default_rng(0).uniform(-1, 1, (50, 4)) * (0.5, 0.5, np.pi, np.pi / 4)
    assert same(warp(views, warps), views, 1e-6)
