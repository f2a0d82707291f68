"""What people hand over as images: arrays, paths, bytes of encoded files, Pillow images, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from pcl_ray.data import images as pictures

Picture: TypeAlias = np.ndarray | str | Path | bytes | Image.Image


def as_batch(images: np.ndarray | Sequence[Picture] | Picture) -> np.ndarray | list[Picture]:
    """The images as single ones or as an array [n, H, W, channels]. Raises ValueError for other arrays."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
        return list(images)
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
