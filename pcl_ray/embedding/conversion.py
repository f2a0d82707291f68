"""What people hand over as images: arrays, tensors, paths, bytes of encoded files, Pillow images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from pcl_ray.data.images import to_channels
from pcl_ray.data.pictures import decoding

Picture: TypeAlias = np.ndarray | torch.Tensor | str | Path | bytes | Image.Image


def as_batch(images: np.ndarray | Sequence[Picture] | Picture) -> np.ndarray | list[Picture]:
    """The images as single ones or as an array [n, H, W, channels]. Raises ValueError for other arrays."""
    if isinstance(images, torch.Tensor):
        images = of_tensor(images, "images")
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
        if not isinstance(images, Iterable):
            raise ValueError(f"a {type(images).__name__} is no image; arrays, tensors, paths, pictures are")
        return [
            of_tensor(image, f"image {number}") if isinstance(image, torch.Tensor) else image
            for number, image in enumerate(images)
        ]
    if images.dtype == object or images.dtype.kind in "US":
        return images.reshape(-1).tolist()
    if images.ndim == 2 or (images.ndim == 3 and 1 <= images.shape[2] <= 4):
        return [images]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(
            f"an array of images must be [n, H, W, channels] or [n, H, W], not {list(images.shape)}"
        )
    images = _as_uint8(images, "images")
    if 0 in images.shape[1:] and len(images):
        raise ValueError(f"images of shape {list(images.shape)} have no pixels")
    return images


def of_tensor(images: torch.Tensor, called: str) -> np.ndarray:
    """A tensor [n, channels, H, W], [channels, H, W] or [H, W], uint8 or floats in 0 … 1, as torchvision has
    images, as an array with channels last. Raises ValueError for others.
    """
    values = images.detach().cpu()
    if values.ndim not in (2, 3, 4) or (values.ndim > 2 and not 1 <= values.shape[-3] <= 4):
        raise ValueError(
            f"a tensor of {called} must be [n, channels, H, W], [channels, H, W] or [H, W], not"
            f" {list(values.shape)}"
        )
    last = values.movedim(-3, -1) if values.ndim > 2 else values
    return _as_uint8(last.float().numpy(), called) if last.is_floating_point() else last.numpy()


def _as_uint8(images: np.ndarray, called: str) -> np.ndarray:
    """Pixels 0 … 255 of uint8, or of floats in 0 … 1. Raises ValueError for others."""
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{called} must be uint8 (0 … 255) or floats in 0 … 1, not {images.dtype}")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"floats of {called} must be in 0 … 1, not {images.min():.3g} … {images.max():.3g}: give them as"
            " they are before they are normalised"
        )
    return (images * 255).round().astype(np.uint8)


def of_array(image: np.ndarray, channels: int, called: str, background: str = "white") -> np.ndarray:
    """The pixels [H, W, channels] uint8 of one image. called: what error messages call it. background: the
    colour under transparency.
    """
    image = _as_uint8(image, called)
    flat = image[..., None] if image.ndim == 2 else image
    if flat.ndim != 3 or not 1 <= flat.shape[2] <= 4 or 0 in flat.shape:
        raise ValueError(f"{called} must be [H, W] or [H, W, 1 … 4], not {list(image.shape)}")
    if flat.shape[2] in (1, 3):
        return to_channels(flat[None], channels)[0]
    picture = Image.fromarray(np.ascontiguousarray(flat))
    return decoding.as_array(picture, channels, background)  # it has transparency
