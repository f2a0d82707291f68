"""Colour jitter, grey and blur of a whole batch, each image with its own draws, the normalisation of their
values, and the erasing of rectangles. Images are float32 [B, channels, H, W] in 0..1.

The steps of torchvision's ColorJitter, RandomGrayscale and GaussianBlur, not rounded to 1/255 in between.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.config import AugmentConfig
from pcl_ray.data.draws import ViewDraws

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def jitter(images: Tensor, draws: ViewDraws) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order; may change `images` in place."""
    kinds = draws.orders if images.shape[1] == 3 else draws.orders[draws.orders < _SATURATION].reshape(-1, 2)
    for kind in kinds.T:
        turned = np.flatnonzero((kind == _HUE) & (draws.hue != 0))
        if len(turned):
            _turn_hue(images, turned, draws.hue[turned])
        changed = kind != _HUE
        factor = np.where(
            changed,
            np.take_along_axis(draws.factors, np.minimum(kind, _SATURATION)[:, None], axis=1)[:, 0],
            1.0,
        )
        if (factor != 1).any():
            images = _blend(images, factor, kind)
    return images


def to_grey(images: Tensor, which: np.ndarray) -> Tensor:
    """The images `which` [B] without their colours, in place."""
    rows = _on(images, np.flatnonzero(which))
    if len(rows):
        images.index_copy_(0, rows, _grey(images.index_select(0, rows)).expand(-1, 3, -1, -1))
    return images


def blur(images: Tensor, sigmas: np.ndarray, kernel_size: int) -> Tensor:
    """Gaussian blur with each image's σ [B] in px, where it is above 0; reflected at the borders; in place. A
    matrix for each image, used on both axes.
    """
    which = np.flatnonzero(sigmas > 0)
    if not len(which):
        return images
    rows, side, half = _on(images, which), images.shape[-1], kernel_size // 2
    offsets = torch.arange(-half, half + 1, device=images.device, dtype=torch.float32)
    kernels = F.softmax(-0.5 * (offsets / _on(images, sigmas[which])[:, None]) ** 2, dim=1)
    sources = torch.arange(side, device=images.device)[:, None] + offsets.long()
    sources = (side - 1 - (side - 1 - sources.abs()).abs()).reshape(1, -1).expand(len(rows), -1)  # reflected
    matrices = images.new_zeros(len(rows), side * side)
    own = torch.arange(side, device=images.device).repeat_interleave(kernel_size) * side
    matrices.scatter_add_(1, own + sources, kernels.repeat(1, side))
    matrices = matrices.view(len(rows), 1, side, side)
    images.index_copy_(0, rows, matrices @ images.index_select(0, rows) @ matrices.transpose(2, 3))
    return images


def blur_size(image_size: int) -> int:
    """A tenth of the image, odd and at least 3 (SimCLR, appendix A)."""
    return max(3, image_size // 10 // 2 * 2 + 1)


def to_floats(views: Tensor, config: AugmentConfig) -> Tensor:
    """Turns uint8 [b, channels, S, S] into float32, normalised by the configured numbers."""
    return normalise(views.float() / 255, config)


def normalise(views: Tensor, config: AugmentConfig) -> Tensor:
    """Shifts [b, channels, S, S] in 0..1 to the configured mean 0 and standard deviation 1; in place."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1).to(views.device, non_blocking=True)
        for values in (config.mean, config.std)
    )
    if views.is_cpu and views.stride(1) == 1 and views.shape[1] > 1:
        # channels last: with three numbers at a time torch would take five times as long
        mean, std = (
            part.expand_as(views[:1]).contiguous(memory_format=torch.channels_last) for part in (mean, std)
        )
    return views.sub_(mean).div_(std)


def erase(views: Tensor, erased: np.ndarray) -> Tensor:
    """Sets a rectangle of each normalised view [B, channels, S, S] to 0, the data set's mean; in place.

    erased: [B, 4] float64, height and width as shares of the side, 0 where nothing is erased, and the place
    in 0..1 along each axis. Rectangles are whole pixels, at least one, as torchvision's RandomErasing.
    """
    side = views.shape[-1]
    lengths = np.where(erased[:, :2] > 0, np.rint(erased[:, :2] * side).clip(min=1), 0)
    starts = np.floor(erased[:, 2:] * (side - lengths + 1))
    pixels = np.arange(side)
    # [B, (rows, columns), S]
    within = (pixels >= starts[:, :, None]) & (pixels < (starts + lengths)[:, :, None])
    rows, columns = _on(views, within.astype(np.float64)).unbind(dim=1)
    return views.mul_((1 - rows[:, :, None] * columns[:, None, :])[:, None])


def to_pixels(views: Tensor, config: AugmentConfig) -> Tensor:
    """Undoes `to_floats`: float [b, channels, S, S] to uint8 0..255."""
    mean, std = (
        torch.tensor(values, device=views.device).view(-1, 1, 1) for values in (config.mean, config.std)
    )
    return ((views.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _blend(images: Tensor, factor: np.ndarray, kind: np.ndarray) -> Tensor:
    """clamp(f · image + (1 − f) · base); base: black (brightness), mean grey (contrast), grey (saturation)"""
    shares = np.stack([factor, (1 - factor) * (kind == _CONTRAST), (1 - factor) * (kind == _SATURATION)])
    of_image, of_mean, of_grey = _on(images, shares[:, :, None, None, None])
    if images.shape[1] == 1:
        base = of_mean * images.mean(dim=(1, 2, 3), keepdim=True)
    else:
        grey = _grey(images)
        base = (grey * of_grey).add_(of_mean * grey.mean(dim=(1, 2, 3), keepdim=True))
    return images.mul_(of_image).add_(base).clamp_(0.0, 1.0)


def _grey(images: Tensor) -> Tensor:
    """The brightness of each pixel, [B, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _turn_hue(images: Tensor, which: np.ndarray, turns: np.ndarray) -> None:
    """Turns the hue in HSV and leaves saturation and value; in place.

    Comparisons give floats and branches are sums: on a CPU operations with booleans take five times as long.
    With g, b sorted and then r in front of the larger, the hue is |K + (second − third) / 6C|, K standing for
    how they were sorted, C the chroma.
    """
    rows = _on(images, which)
    red, green, blue = (plane.contiguous() for plane in images.index_select(0, rows).unbind(dim=1))
    larger, third = torch.maximum(green, blue), torch.minimum(green, blue)
    value, second = torch.maximum(red, larger), torch.minimum(red, larger)
    low = torch.minimum(second, third)
    chroma = value - low
    swapped, not_red = torch.lt(green, blue, out=green), torch.lt(red, larger, out=blue)
    sorting = torch.lerp(-swapped, swapped.sub(1 / 3), not_red)
    hue = sorting.addcdiv_(second.sub_(third), chroma.mul(6.0).add_(1e-12)).abs_()
    sixths = hue.add_(_on(images, turns + 1.0)[:, None, None]).frac_().mul_(6.0)
    # The chroma of red, green, blue at full saturation, in 0..1: |h − 3| − 1, 2 − |h − 2|, 2 − |h − 4|.
    turned = torch.empty_like(images[: len(rows)])
    for plane, (centre, sign, offset) in enumerate(((3.0, 1.0, -1.0), (2.0, -1.0, 2.0), (4.0, -1.0, 2.0))):
        share = (sixths - centre).abs_().mul_(sign).add_(offset).clamp_(0.0, 1.0)
        torch.addcmul(low, chroma, share, out=turned[:, plane])
    images.index_copy_(0, rows, turned)


def _on(images: Tensor, values: np.ndarray) -> Tensor:
    """The numbers on the images' device; float32 where they are floats."""
    dtype = np.float32 if values.dtype.kind == "f" else values.dtype
    numbers = torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))
    return numbers.to(images.device, non_blocking=True)
