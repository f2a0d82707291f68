from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcl_ray.config import AugmentConfig
from pcl_ray.data.reference_views import random_view

OFF = {"min_crop": 1.0, "flip": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0}


def config(size: int = 8, **knobs: object) -> AugmentConfig:
    return AugmentConfig(image_size=size, **knobs)


def image(channels: int = 3, height: int = 12, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def views(settings: AugmentConfig, picture: Tensor, count: int = 40) -> list[Tensor]:
    torch.manual_seed(0)
    view = random_view(settings, len(picture))
    return [view(picture) for _ in range(count)]


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 28, 224])
def test_views_have_the_configured_size_whatever_the_image(version: str, channels: int, size: int) -> None:
    settings = config(size, version=version, blur=1.0, jitter=1.0, hue=0.5)
    for height, width in [(8, 8), (1, 1), (5, 300), (300, 5), (size, size)]:
        for view in views(settings, image(channels, height, width), 4):
            assert view.shape == (channels, size, size)
            assert view.dtype == torch.uint8


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_differ_and_follow_from_torchs_seed(version: str, channels: int) -> None:
    settings, picture = config(version=version), image(channels)
    first = views(settings, picture)
    assert len({view.numpy().tobytes() for view in first}) > 35
    assert all(torch.equal(a, b) for a, b in zip(first, views(settings, picture), strict=True))


def test_the_image_itself_is_left_alone() -> None:
    picture = image()
    before = picture.clone()
    views(config(), picture)
    assert torch.equal(picture, before)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_a_view_is_the_image(version: str, channels: int) -> None:
    picture = image(channels, 8, 8)
    assert all(torch.equal(view, picture) for view in views(config(8, version=version, **OFF), picture))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("flip", "lowest", "highest"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_flips_are_left_to_right_and_as_frequent_as_asked(
    version: str, flip: float, lowest: int, highest: int
) -> None:
    picture = image(1, 8, 8)
    seen = views(config(8, **{**OFF, "version": version, "flip": flip}), picture, 200)
    flipped = sum(torch.equal(view, picture.flip(2)) for view in seen)
    assert flipped + sum(torch.equal(view, picture) for view in seen) == 200
    assert lowest <= flipped <= highest


def test_grey_drops_the_colours_and_nothing_else() -> None:
    seen = views(config(8, **{**OFF, "grey": 0.5}), image(3, 8, 8), 100)
    grey = [view for view in seen if torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])]
    assert 25 < len(grey) < 75
    assert all(torch.equal(view, image(3, 8, 8)) for view in seen if not torch.equal(view[0], view[1]))


@pytest.mark.parametrize(("version", "blurred"), [("v1", False), ("v2", True)])
def test_only_v2_blurs(version: str, blurred: bool) -> None:
    picture = image(3, 8, 8)
    seen = views(config(8, **{**OFF, "version": version, "blur": 1.0}), picture, 10)
    assert [torch.equal(view, picture) for view in seen] == [not blurred] * 10
    if blurred:
        assert all(view.float().std() < picture.float().std() for view in seen)


@pytest.mark.parametrize(("version", "lowest", "highest"), [("v1", 100, 100), ("v2", 65, 95)])
def test_v1_jitters_always_and_v2_four_times_in_five(version: str, lowest: int, highest: int) -> None:
    picture = image(3, 8, 8)
    seen = views(config(8, **{**OFF, "version": version, "jitter": 0.4}), picture, 100)
    assert lowest <= sum(not torch.equal(view, picture) for view in seen) <= highest


def test_hue_alone_turns_the_colours_but_not_grey_images() -> None:
    settings = config(8, **{**OFF, "version": "v1", "hue": 0.4})
    assert not torch.equal(views(settings, image(3, 8, 8), 1)[0], image(3, 8, 8))
    assert torch.equal(views(settings, image(1, 8, 8), 1)[0], image(1, 8, 8))


def test_crops_keep_at_least_the_configured_share() -> None:
    """On a ramp the span of the values in a view tells how wide the crop was."""
    ramp = torch.arange(0, 256, dtype=torch.uint8).expand(1, 256, 256).contiguous()
    wide = [
        float(view.max()) - float(view.min())
        for view in views(config(64, **{**OFF, "min_crop": 0.8}), ramp, 100)
    ]
    narrow = [
        float(view.max()) - float(view.min())
        for view in views(config(64, **{**OFF, "min_crop": 0.05}), ramp, 100)
    ]
    assert min(wide) > 255 * (0.8 * 3 / 4) ** 0.5 - 8
    assert min(narrow) < 255 * 0.5 < max(narrow)
