from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as images_of

from pcl_ray.config import RunConfig
from pcl_ray.data.colour import blur_size
from pcl_ray.data.draws import ViewDraws
from pcl_ray.data.reference_views import random_view
from pcl_ray.data.views import Views

OFF = {"min_crop": 1.0, "flip": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0}
NO_COLOUR = {"jitter": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0}
WARPED = {"shift": 0.2, "rotate": 30.0, "shear": 15.0}
MOVED = WARPED | {"erase": 0.5}
UNLIKELY = 1e-4


def config(channels: int = 3, seed: int = 0, **knobs: object) -> RunConfig:
    plain = {"image_size": 12, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    return RunConfig.model_validate(
        {"data": {"channels": channels}, "augment": {**plain, **knobs}, "seed": seed}
    )


def views(settings: RunConfig, **options: int) -> Views:
    return Views(settings, torch.device("cpu"), **options)


def pixels(count: int, channels: int = 3, height: int = 16, width: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(
        0,
        256,
        (count, height, width, channels),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def smooth(count: int, height: int, width: int) -> list[np.ndarray]:
    small = pixels(count, 3, 5, 5).numpy()
    return [
        np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        for picture in small
    ]


def alike(a: tuple[Tensor, ...], b: tuple[Tensor, ...], slack: float = 0.0) -> bool:
    return all(
        x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=slack) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 28, 224])
def test_views_are_floats_of_the_configured_size_whatever_the_image(
    version: str, channels: int, size: int
) -> None:
    engine = views(config(channels, version=version, image_size=size, blur=1.0, jitter=1.0, hue=0.5))
    for height, width in [(8, 8), (1, 1), (5, 300), (300, 5), (size, size)]:
        for made in engine.of_images(pixels(3, channels, height, width), 0, torch.arange(3)):
            assert made.shape == (3, channels, size, size)
            assert made.dtype == torch.float32
            assert made.min() >= 0
            assert made.max() <= 1 + 1e-6


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_images_views_are_the_same_in_any_batch(version: str, channels: int) -> None:
    engine, images, order = (
        views(config(channels, version=version, small_crops=2, **MOVED)),
        pixels(24, channels),
        torch.randperm(24, generator=torch.Generator().manual_seed(0)),
    )
    together = engine.of_images(images, 3, torch.arange(24))
    assert alike(tuple(part[order] for part in together), engine.of_images(images[order], 3, order), 1e-6)
    for i in range(24):
        alone = engine.of_images(images[i : i + 1], 3, torch.tensor([i]))
        assert alike(tuple(part[i : i + 1] for part in together), alone, 1e-6)


def test_query_and_key_differ_and_so_do_epochs_seeds_and_positions() -> None:
    images, places = pixels(30), torch.arange(30)
    (query, key), *others = (
        views(config(seed=seed)).of_images(images, epoch, places + first)
        for seed, epoch, first in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 30)]
    )
    for other in [key, *(part for pair in others for part in pair)]:
        assert (query - other).abs().flatten(1).amax(dim=1).gt(1e-3).sum() > 27


def test_the_same_again_is_the_same_to_the_bit() -> None:
    images, places = pixels(30), torch.arange(30)
    assert alike(views(config()).of_images(images, 2, places), views(config()).of_images(images, 2, places))


def test_what_comes_in_is_left_alone() -> None:
    engine, images, crops = (
        views(config()),
        pixels(8),
        pixels(16, 3, 12, 12).view(8, 2, 12, 12, 3).permute(0, 1, 4, 2, 3).contiguous(),
    )
    before = images.clone(), crops.clone()
    state = torch.get_rng_state()
    engine.of_images(images, 0, torch.arange(8))
    engine.of_crops(crops, 0, torch.arange(8))
    assert torch.equal(images, before[0])
    assert torch.equal(crops, before[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("knobs", [{}, MOVED, {"small_crops": 1}, {"small_crops": 4}])
def test_two_threads_make_the_same_views_as_one(
    version: str, knobs: dict[str, float], two_threads: None
) -> None:
    settings = config(version=version, image_size=32, **knobs)
    images, places = pixels(64, 3, 40, 40), torch.arange(64)
    crops = pixels(128, 3, 32, 32).view(64, 2, 32, 32, 3).permute(0, 1, 4, 2, 3).contiguous()
    small = torch.zeros(64, settings.augment.small_crops, 3, 14, 14, dtype=torch.uint8)
    several = views(settings)
    there = several.of_images(images, 1, places), several.of_crops(crops, 1, places, small)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = views(settings)
    here = alone.of_images(images, 1, places), alone.of_crops(crops, 1, places, small)
    assert all(alike(a, b, 1e-6) for a, b in zip(here, there, strict=True))


def test_a_mistake_in_a_thread_reaches_the_caller(two_threads: None) -> None:
    engine = views(config())
    with pytest.raises(ValueError):
        engine.of_images(pixels(4), 0, torch.arange(4), np.ones((4, 3)))
    assert torch.get_num_threads() == 2
    assert len(engine.of_images(pixels(4), 0, torch.arange(4))[0]) == 4


def test_large_images_made_in_pieces_are_the_same() -> None:
    images = pixels(11, 3, 30, 30)
    at_once = views(config()).of_images(images, 0, torch.arange(11))
    for numbers in (1, 3 * 30 * 30, 2 * 3 * 30 * 30 + 1, 10**6):
        in_pieces = views(config(), piece=numbers)
        assert alike(at_once, in_pieces.of_images(images, 0, torch.arange(11)), 1e-6)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_a_view_is_the_image(version: str, channels: int) -> None:
    images = pixels(20, channels, 12, 12)
    for made in views(config(channels, version=version, **OFF)).of_images(images, 0, torch.arange(20)):
        assert torch.equal(made, images.permute(0, 3, 1, 2) / 255)


def test_views_are_normalised_a_channel() -> None:
    images = pixels(5, 3, 12, 12)
    for made in views(config(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0), **OFF)).of_images(
        images, 0, torch.arange(5)
    ):
        expected = (
            images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)
        ) / torch.tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
        assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize(("flip", "lowest", "highest"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_flips_are_left_to_right(flip: float, lowest: int, highest: int) -> None:
    images = pixels(200, 3, 12, 12)
    whole = images.permute(0, 3, 1, 2) / 255
    for made in views(config(**{**OFF, "flip": flip})).of_images(images, 0, torch.arange(200)):
        flipped = (made == whole.flip(3)).flatten(1).all(dim=1)
        assert (flipped | (made == whole).flatten(1).all(dim=1)).all()
        assert lowest <= int(flipped.sum()) <= highest


@pytest.mark.parametrize(("knobs", "side"), [({}, 12), ({"small_crop_size": 9}, 9), ({"image_size": 7}, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_views_come_beside_the_others_and_change_none(
    channels: int, knobs: dict[str, int], side: int
) -> None:
    """224 px have 96: so 28 have 12, and 7 have 4, the least."""
    settings = config(channels, **{"image_size": 28, "small_crops": 3} | knobs)
    without = config(channels, **{"image_size": 28} | knobs)
    images, places = pixels(20, channels, 30, 30), torch.arange(20)
    made = views(settings).of_images(images, 5, places)
    assert len(made) == 5
    assert alike(made[:2], views(without).of_images(images, 5, places))
    small = made[2:]
    assert {view.shape for view in small} == {(20, channels, side, side)}
    assert (small[0] - small[1]).abs().flatten(1).amax(dim=1).gt(1e-3).sum() > 17


def test_small_views_are_torchvisions_crops_of_small_parts() -> None:
    settings = config(**{**OFF, "flip": 0.5, "image_size": 28, "small_crops": 2, "small_crop_max": 0.4})
    images, places = pixels(40, 3, 50, 70), torch.arange(40)
    made, engine = views(settings).of_images(images, 1, places), views(settings)
    for view in (2, 3):
        drawn = engine.draws(1, places.numpy(), view, np.tile((50, 70), (40, 1)))
        for image, box, flipped, seen in zip(images, drawn.boxes, drawn.flipped, made[view], strict=True):
            whole = image.permute(2, 0, 1) / 255
            crop = images_of.resized_crop(whole, *(int(value) for value in box), [12, 12], antialias=True)
            assert torch.allclose(seen, crop.flip(2) if flipped else crop, atol=1e-5)
            assert box[2] * box[3] < 0.42 * 50 * 70


def test_small_views_are_distributed_as_torchvisions() -> None:
    settings = usual(3, "v2", {"small_crops": 1, "small_crop_size": 12, "image_size": 24, "rotate": 20.0})
    picture = structured(3)
    images = picture.permute(1, 2, 0).expand(1000, -1, -1, -1).contiguous()
    mine = torch.cat([views(settings).of_images(images, epoch, torch.arange(1000))[2] for epoch in range(3)])
    torch.manual_seed(0)
    view = random_view(settings.augment, 3, small=True)
    ours, others = figures(mine), figures(torch.stack([view(picture) for _ in range(1000)]) / 255)
    assert [name for name in ours if stats.ks_2samp(ours[name], others[name]).pvalue < UNLIKELY] == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_crops_of_files_are_neither_cut_nor_flipped_again(version: str) -> None:
    crops = pixels(60, 3, 12, 12).view(30, 2, 12, 12, 3).permute(0, 1, 4, 2, 3).contiguous()
    made = views(config(version=version, min_crop=0.1, flip=1.0, **NO_COLOUR)).of_crops(
        crops, 0, torch.arange(30)
    )
    assert torch.equal(torch.stack(made, dim=1), crops / 255)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("knobs", [{}, MOVED])
def test_crops_of_files_get_what_images_in_memory_get(
    version: str, channels: int, knobs: dict[str, float]
) -> None:
    images, places = pixels(40, channels, 20, 20), torch.arange(40)
    crops = torch.stack(
        views(config(channels, version=version, **NO_COLOUR)).of_images(images, 2, places), dim=1
    )
    engine = views(config(channels, version=version, **knobs))
    from_crops, from_images = (
        engine.of_crops((crops * 255).round().to(torch.uint8), 2, places),
        engine.of_images(images, 2, places),
    )
    assert not alike(from_images, tuple(crops.unbind(dim=1)), 0.1)
    assert all((a - b).abs().mean() < 0.003 for a, b in zip(from_crops, from_images, strict=True))


@pytest.mark.parametrize(("height", "width"), [(48, 96), (90, 60), (64, 64)])
def test_squeezed_pictures_give_about_the_views_of_the_originals(height: int, width: int) -> None:
    originals, places = smooth(40, height, width), torch.arange(40)
    squeezed = np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((40, 40), Image.Resampling.BILINEAR))
            for picture in originals
        ]
    )
    engine, sizes = views(config()), np.tile((height, width), (40, 1))
    expected = engine.of_images(torch.from_numpy(np.stack(originals)), 0, places)
    for made, wanted in zip(
        engine.of_images(torch.from_numpy(squeezed), 0, places, sizes), expected, strict=True
    ):
        assert (made - wanted).abs().mean() < 0.008
    distorted = engine.of_images(torch.from_numpy(squeezed), 0, places)
    assert height == width or all(
        (made - wanted).abs().mean() > 0.02 for made, wanted in zip(distorted, expected, strict=True)
    )


@pytest.mark.parametrize("size", [(10, 2000), (2000, 10), (1, 1000), (1000, 1)])
def test_very_long_pictures_that_were_squeezed_have_views(size: tuple[int, int]) -> None:
    for made in views(config()).of_images(pixels(20, 3, 31, 31), 0, torch.arange(20), np.tile(size, (20, 1))):
        assert torch.isfinite(made).all()


def by_torchvision(settings: RunConfig, crop: Tensor, drawn: ViewDraws, i: int) -> Tensor:
    """What is done to the crop of one view, step by step."""
    if drawn.warps is not None:
        side, (right, down, angle, shear) = crop.shape[1], drawn.warps[i]
        moved = images_of.affine(
            images_of.pad(crop, [2 * side], padding_mode="edge"),
            float(np.degrees(angle)),
            [round(right * side), round(down * side)],
            1.0,
            [float(np.degrees(shear)), 0.0],
            images_of.InterpolationMode.BILINEAR,
        )
        crop = images_of.center_crop(moved, [side, side])
    steps = [
        images_of.adjust_brightness,
        images_of.adjust_contrast,
        images_of.adjust_saturation,
        images_of.adjust_hue,
    ]
    version, kernel = settings.augment.version, blur_size(settings.augment.image_size)
    if version == "v1" and drawn.grey[i]:
        crop = images_of.rgb_to_grayscale(crop, 3)
    for kind in drawn.orders[i].tolist():
        if len(crop) == 3 or kind < 2:
            crop = steps[kind](crop, float(drawn.hue[i] if kind == 3 else drawn.factors[i, kind]))
    if version == "v2" and drawn.grey[i]:
        crop = images_of.rgb_to_grayscale(crop, 3)
    return (
        images_of.gaussian_blur(crop, [kernel, kernel], [float(drawn.sigmas[i])] * 2)
        if version == "v2" and drawn.sigmas[i]
        else crop
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("knobs", [{}, WARPED, {"shift": 0.5}, {"rotate": 180.0}, {"shear": 45.0}])
def test_the_steps_follow_each_other_as_in_torchvisions_views(
    version: str, channels: int, knobs: dict[str, float]
) -> None:
    settings = config(channels, version=version, jitter=0.8, hue=0.5, grey=0.5, image_size=56, **knobs)
    images, places, sizes = pixels(60, channels, 70, 50), torch.arange(60), np.tile((70, 50), (60, 1))
    crops = views(config(channels, version=version, image_size=56, **NO_COLOUR)).of_images(images, 4, places)
    made = views(settings).of_images(images, 4, places)
    for view in range(2):
        drawn = views(settings).draws(4, places.numpy(), view, sizes)
        assert drawn.grey.any() == (channels == 3)
        expected = torch.stack([by_torchvision(settings, crops[view][i], drawn, i) for i in range(60)])
        # Places are rounded otherwise within a margin: where neighbours differ, hues may by more than values.
        slack = torch.quantile((made[view] - expected).abs(), 0.9999)
        assert slack < (5e-3 if knobs else 1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_rectangles_are_erased_from_views_that_are_ready(channels: int) -> None:
    normalised = {"mean": (0.3,) * channels, "std": (0.2,) * channels}
    images, places = pixels(80, channels), torch.arange(80)
    whole, erased = (
        views(config(channels, **normalised, **WARPED, erase=share)).of_images(images, 2, places)
        for share in (0.0, 0.5)
    )
    counts = []
    for before, after in zip(whole, erased, strict=True):
        kept = before == after
        assert (after[~kept] == 0).all()
        counts.append((~kept).flatten(1).any(dim=1))
    assert all(25 < int(which.sum()) < 55 for which in counts)
    assert not torch.equal(*counts)


def structured(channels: int) -> Tensor:
    """[channels, 20, 20] uint8: reddish, brighter right and below, a coarse pattern on it, greener edges."""
    down, across = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 20), indexing="ij")
    pattern = (torch.arange(20)[:, None] // 3 + torch.arange(20) // 3) % 2
    light = 0.35 + 0.25 * across + 0.15 * down + 0.25 * pattern
    planes = torch.stack([light, light * (0.45 + 0.2 * (across - 0.5).abs()), light * 0.3])[:channels]
    return (planes * 255).to(torch.uint8)


def figures(made: Tensor) -> dict[str, np.ndarray]:
    """Of views [n, channels, S, S] in 0..1."""
    half = made.shape[3] // 2
    found = {
        f"mean of channel {channel}": made[:, channel].mean(dim=(1, 2)) for channel in range(made.shape[1])
    }
    found["spread"] = made.std(dim=(1, 2, 3))
    found["contrast"] = made.amax(dim=(1, 2, 3)) - made.amin(dim=(1, 2, 3))
    found["left to right"] = (
        made[..., :half].mean(dim=(1, 2, 3)) - made[..., half:].mean(dim=(1, 2, 3))
    ) / found["spread"]
    found["top to bottom"] = (
        made[..., :half, :].mean(dim=(1, 2, 3)) - made[..., half:, :].mean(dim=(1, 2, 3))
    ) / found["spread"]
    found["fine pattern"] = (made[..., 1:] - made[..., :-1]).abs().mean(dim=(1, 2, 3)) / found["spread"]
    if made.shape[1] == 3:
        red, green, blue = made.unbind(dim=1)
        range_of_channels = made.amax(dim=1) - made.amin(dim=1)
        found["saturation"] = range_of_channels.mean(dim=(1, 2))
        found["hue"] = torch.atan2(
            3**0.5 * (green - blue).mean(dim=(1, 2)), (2 * red - green - blue).mean(dim=(1, 2))
        )
        found["hue of the left"] = torch.atan2(
            3**0.5 * (green - blue)[..., :half].mean(dim=(1, 2)),
            (2 * red - green - blue)[..., :half].mean(dim=(1, 2)),
        )
        coloured = found["saturation"] > 0.02  # others have no hue, but noise
        found["hue"], found["hue of the left"] = found["hue"][coloured], found["hue of the left"][coloured]
        found["colourless"] = (~coloured).float()
    return {name: values.double().numpy() for name, values in found.items()}


def of_the_batch(settings: RunConfig) -> Tensor:
    """Query and key views, of several epochs."""
    images, engine = (
        structured(settings.data.channels).permute(1, 2, 0).expand(1000, -1, -1, -1).contiguous(),
        views(settings),
    )
    return torch.cat(
        [part for epoch in range(3) for part in engine.of_images(images, epoch, torch.arange(1000))]
    )


@functools.cache
def one_by_one(channels: int, version: str, knobs: tuple[tuple[str, object], ...] = ()) -> Tensor:
    settings, picture = usual(channels, version, dict(knobs)), structured(channels)
    torch.manual_seed(0)
    view = random_view(settings.augment, channels)
    return torch.stack([view(picture) for _ in range(1000)]) / 255


def usual(channels: int, version: str, knobs: dict[str, object] | None = None) -> RunConfig:
    return config(channels, **{"version": version, "hue": 0.1 if version == "v2" else 0.4} | (knobs or {}))


def differences(settings: RunConfig, version: str, knobs: dict[str, object] | None = None) -> list[str]:
    """Figures in which the batch's views under `settings` and torchvision's, with only these knobs other than
    usual, differ in distribution.
    """
    expected = one_by_one(settings.data.channels, version, tuple((knobs or {}).items()))
    mine, others = figures(of_the_batch(settings)), figures(expected)
    return [name for name in mine if stats.ks_2samp(mine[name], others[name]).pvalue < UNLIKELY]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_views_are_distributed_as_torchvisions(version: str, channels: int) -> None:
    assert differences(usual(channels, version), version) == []


@pytest.mark.parametrize(
    ("channels", "version", "knobs"),
    [
        (3, "v2", {"shift": 0.3}),
        (1, "v2", {"rotate": 45.0}),
        (1, "v1", {"shear": 30.0}),
        (3, "v1", {"erase": 0.8}),
        (3, "v2", MOVED),
    ],
)
def test_moved_and_erased_views_are_distributed_as_torchvisions(
    channels: int, version: str, knobs: dict[str, object]
) -> None:
    assert differences(usual(channels, version, knobs), version, knobs) == []
    assert differences(usual(channels, version, knobs), version)


@pytest.mark.parametrize(
    ("channels", "version", "knobs"),
    [
        (3, "v2", {"hue": 0.13}),
        (3, "v2", {"jitter": 0.6}),
        (1, "v1", {"jitter": 0.55}),
        (3, "v2", {"blur": 0.35}),
        (3, "v2", {"grey": 0.3}),
        (3, "v2", {"flip": 0.62}),
        (1, "v1", {"min_crop": 0.4}),
        (3, "v2", {"version": "v1"}),
    ],
)
def test_other_knobs_would_show_in_the_distributions(
    channels: int, version: str, knobs: dict[str, object]
) -> None:
    assert differences(usual(channels, version, knobs), version)
