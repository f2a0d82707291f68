from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcl_ray.config import AugmentConfig
from pcl_ray.data.evaluation_view import evaluation_view


def config(size: int = 8, **knobs: object) -> AugmentConfig:
    return AugmentConfig(image_size=size, **knobs)


def image(channels: int = 3, height: int = 12, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("size", [8, 28, 63, 64, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_evaluation_view_is_fixed_and_needs_no_randomness(size: int, channels: int) -> None:
    view = evaluation_view(config(size))
    for height, width in [(8, 8), (5, 90), (90, 5), (300, 200)]:
        picture = image(channels, height, width)
        state = torch.get_rng_state()
        first = view(picture)
        assert first.shape == (channels, size, size)
        assert first.dtype == torch.uint8
        assert torch.equal(first, view(picture))
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_small_evaluation_views_are_torchvisions(dtype: torch.dtype) -> None:
    from torchvision.transforms import v2

    ours, theirs = evaluation_view(config(28)), v2.Resize((28, 28), antialias=True)
    for shape in [(1, 28, 28), (3, 40, 31), (1, 5, 90), (2, 3, 17, 28), (2, 2, 4, 64, 64), (0, 3, 9, 9)]:
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        assert torch.equal(ours(pixels), theirs(pixels))


def test_cpus_that_cannot_resize_bytes_round_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import v2

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    picture = image(3, 31, 40)
    assert torch.equal(evaluation_view(config(28))(picture), v2.Resize((28, 28), antialias=True)(picture))


def test_small_evaluation_views_hold_the_whole_image() -> None:
    picture = image(1, 8, 8)
    assert torch.equal(evaluation_view(config(8))(picture), picture)


def test_large_evaluation_views_are_the_centre() -> None:
    """An image of 8/7 of the size with a border: the border is cut off, the rest is as it was."""
    picture = image(3, 256, 256)
    picture[:, :16], picture[:, -16:], picture[:, :, :16], picture[:, :, -16:] = 0, 0, 0, 0
    assert torch.equal(evaluation_view(config(224))(picture), picture[:, 16:-16, 16:-16])
    tall = evaluation_view(config(224))(torch.cat([picture, picture], dim=1))  # the shorter side is scaled
    assert tall.shape == (3, 224, 224)


@pytest.mark.parametrize("size", [8, 64])
def test_evaluation_views_of_a_batch_are_those_of_its_images(size: int) -> None:
    batch = torch.stack([image(3, 20, 30, seed) for seed in range(4)])
    view = evaluation_view(config(size))
    assert torch.equal(view(batch), torch.stack([view(picture) for picture in batch]))


def test_the_image_itself_is_left_as_it_was() -> None:
    picture = image()
    before = picture.clone()
    evaluation_view(config())(picture)
    assert torch.equal(picture, before)
