"""The evaluation view: the same fixed part of an image each time, for the E-step, figures and serving.

Images are uint8 here.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.config import AugmentConfig
from pcl_ray.data.pictures.decoding import Scale, cut, decode_reduced

_CROP_FROM = 64  # px: from this size on, evaluation cuts the centre out of a somewhat larger image
# CPUs on which torch resizes whole numbers as exactly as floats, and faster.
_RESIZES_BYTES = ("AVX2", "AVX512"), ("aarch64", "arm64")


def evaluation_view(config: AugmentConfig) -> nn.Module:
    """The whole image at the training size; from 64 px on the centre of the image scaled to 8/7 of it. Takes
    [..., channels, H, W].
    """
    size = config.image_size
    if size < _CROP_FROM:
        return _Squeeze(size)
    # torchvision takes two seconds to import: only where it is needed
    from torchvision.transforms import InterpolationMode, v2

    return v2.Compose(
        [
            v2.Resize(size * 8 // 7, interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(size),
        ]
    )


class _Squeeze(nn.Module):
    """Images [..., channels, H, W] to squares, bilinear with antialiasing, as torchvision's Resize."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        *before, height, width = images.shape
        if (height, width) == (self.size, self.size):
            return images
        if not images.numel():
            return images.new_empty((*before, self.size, self.size))
        pixels = images.reshape(-1, *images.shape[-3:])
        as_floats = not (images.is_floating_point() or _resizes_bytes(images))
        resized = F.interpolate(
            pixels.float() if as_floats else pixels,
            size=[self.size, self.size],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        if as_floats:
            resized = resized.round_().to(images.dtype)
        return resized.reshape(*before, self.size, self.size)


def _resizes_bytes(images: Tensor) -> bool:
    capabilities, machines = _RESIZES_BYTES
    return (images.device.type, images.dtype) == ("cpu", torch.uint8) and (
        torch.compiler.is_compiling()
        or torch.backends.cpu.get_cpu_capability() in capabilities
        or platform.machine() in machines
    )


def evaluation_boxes(config: AugmentConfig, sizes: Tensor) -> Tensor:
    """The part of sizes [B, 2] that `evaluation_view` shows: top, left, height, width, [B, 4] float32 px."""
    size, sizes = config.image_size, sizes.double()
    if size < _CROP_FROM:
        return torch.cat([torch.zeros_like(sizes), sizes], dim=1).float()
    shorter = size * 8 // 7
    # to whole pixels, and then the middle of them, as torchvision does it
    resized = (sizes * (shorter / sizes.amin(dim=1, keepdim=True)) + 1e-9).floor()
    corners = ((resized - size) / 2).round() * sizes / resized
    return torch.cat([corners, size * sizes / resized], dim=1).float()


def evaluation_scale(config: AugmentConfig, height: int, width: int) -> float:
    """The share of its size at which an image suffices for `evaluation_view`."""
    size = config.image_size
    if size < _CROP_FROM:
        return max(size / height, size / width)
    return size * 8 / 7 / min(height, width)


def view_of_file(
    decode: Callable[[Scale], np.ndarray], config: AugmentConfig, view: nn.Module, *, reduced: bool
) -> Tensor:
    """The evaluation view [channels, S, S] uint8 of a picture that is decoded now.

    decode: as `FileImages.read`, or `decoding.decode` of one file. view: `evaluation_view(config)`. reduced:
    whether a JPEG may be decoded no larger than the view needs, which is several times faster.
    """
    picture = decode_reduced(
        decode, lambda height, width: evaluation_scale(config, height, width), reduced=reduced
    )
    if picture.reduced_by == 1:
        return view(as_tensor(picture.pixels))
    box = evaluation_boxes(config, torch.tensor([picture.size]))[0].numpy()
    return as_tensor(cut(picture.pixels, box / picture.reduced_by, config.image_size, within=False))


def as_tensor(pixels: np.ndarray) -> Tensor:
    """[H, W, channels] to [channels, H, W]; a copy, since images in shared memory are read-only."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8).copy())
