"""The two random views of an image, one image after the other by torchvision, and the fixed view for
evaluation.

Images are uint8 tensors [channels, H, W] until `to_floats`. The random views are the slow reference
(`augment.engine: torchvision`): `views.py` makes whole batches of the same distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from pcl_ray.config import AugmentConfig

_CROP_FROM = 64  # px: from this size on, evaluation cuts the centre out of a somewhat larger image


def random_view(config: AugmentConfig, channels: int) -> nn.Module:
    """v1 (MoCo's first set, PCL v1) or v2 (SimCLR's, PCL v2). Steps that change nothing on grey images are
    left out.

    All randomness comes from torch's global generator.
    """
    colour = channels == 3
    strength = config.jitter
    jitter = v2.ColorJitter(strength, strength, strength if colour else 0, config.hue if colour else 0)
    grey = [v2.RandomGrayscale(config.grey)] if colour and config.grey else []
    crop = v2.RandomResizedCrop(config.image_size, scale=(config.min_crop, 1.0), antialias=True)
    flip = [v2.RandomHorizontalFlip(config.flip)] if config.flip else []
    jittered: list[nn.Module] = []
    if strength or (colour and config.hue):
        jittered = [jitter] if config.version == "v1" else [v2.RandomApply([jitter], p=0.8)]
    match config.version:
        case "v1":
            return v2.Compose([crop, *grey, *jittered, *flip])
        case "v2":
            blur = (
                [v2.RandomApply([v2.GaussianBlur(blur_size(config.image_size), (0.1, 2.0))], p=config.blur)]
                if config.blur
                else []
            )
            return v2.Compose([crop, *jittered, *grey, *blur, *flip])


def evaluation_view(config: AugmentConfig) -> nn.Module:
    """The whole image at the training size; from 64 px on the centre of the image scaled to 8/7 of it. Takes
    [..., channels, H, W].
    """
    size = config.image_size
    if size < _CROP_FROM:
        return v2.Resize((size, size), antialias=True)
    return v2.Compose(
        [
            v2.Resize(size * 8 // 7, interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(size),
        ]
    )


def evaluation_boxes(config: AugmentConfig, sizes: Tensor) -> Tensor:
    """What `evaluation_view` shows of images of these sizes [B, 2]: top, left, height, width in px, [B, 4]
    float32.
    """
    size, sizes = config.image_size, sizes.double()
    if size < _CROP_FROM:
        return torch.cat([torch.zeros_like(sizes), sizes], dim=1).float()
    shorter = size * 8 // 7
    # to whole pixels, and then the middle of them, as torchvision does it
    resized = (sizes * (shorter / sizes.amin(dim=1, keepdim=True)) + 1e-9).floor()
    return torch.cat(
        [((resized - size) / 2).round() * sizes / resized, size * sizes / resized], dim=1
    ).float()


def evaluation_scale(config: AugmentConfig, height: int, width: int) -> float:
    """At which share of its size an image suffices for `evaluation_view`."""
    size = config.image_size
    return max(size / height, size / width) if size < _CROP_FROM else size * 8 / 7 / min(height, width)


def to_floats(views: Tensor, config: AugmentConfig) -> Tensor:
    """uint8 [b, channels, S, S] to normalised float32, by the configured mean and standard deviation."""
    return normalise(views.float() / 255, config)


def normalise(views: Tensor, config: AugmentConfig) -> Tensor:
    """[b, channels, S, S] in 0..1 to mean 0 and standard deviation 1 by the configured numbers; changes
    `views`.
    """
    mean, std = (
        torch.tensor(values).view(-1, 1, 1).to(views.device, non_blocking=True)
        for values in (config.mean, config.std)
    )
    return views.sub_(mean).div_(std)


def blur_size(image_size: int) -> int:
    """A tenth of the image, odd and at least 3 (SimCLR, appendix A)."""
    return max(3, image_size // 10 // 2 * 2 + 1)
