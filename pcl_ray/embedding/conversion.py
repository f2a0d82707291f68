"""What people hand over as images: arrays, tensors, paths, bytes of encoded files, Pillow images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from pcl_ray.data import images as pictures

Picture: TypeAlias = np.ndarray | torch.Tensor | str | Path | bytes | Image.Image


def as_batch(images: np.ndarray | Sequence[Picture] | Picture) -> np.ndarray | list[Picture]:
    """The images as single ones or as an array [n, H, W, channels]. Raises ValueError for other arrays."""
    if isinstance(images, torch.Tensor):
        images = of_tensor(images, "images")
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
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
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (0 … 255), not {images.dtype}")
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
    if values.is_floating_point():
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"floats of {called} must be in 0 … 1, not {values.min():.3g} … {values.max():.3g}: give them"
                " as they are before they are normalised"
            )
        values = (values * 255).round().to(torch.uint8)
    return (values.movedim(-3, -1) if values.ndim > 2 else values).numpy()


def of_array(image: np.ndarray, channels: int, called: str) -> np.ndarray:
    """The pixels [H, W, channels] uint8 of one image; `called`: what error messages call it."""
    if image.dtype != np.uint8:
        raise ValueError(f"{called} must be uint8 (0 … 255), not {image.dtype}")
    flat = image[..., None] if image.ndim == 2 else image
    if flat.ndim != 3 or not 1 <= flat.shape[2] <= 4 or 0 in flat.shape:
        raise ValueError(f"{called} must be [H, W] or [H, W, 1 … 4], not {list(image.shape)}")
    if flat.shape[2] in (1, 3):
        return pictures.to_channels(flat[None], channels)[0]
    return pictures.as_array(Image.fromarray(np.ascontiguousarray(flat)), channels)  # with transparency
