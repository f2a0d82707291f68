"""What a config.json beside weights says: that of our exports, and that of a model hub (timm's)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pcl_ray.config import AugmentConfig


def read_settings(path: Path) -> dict[str, Any]:
    """The entries of a config.json; {} where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def imagenet_view(channels: int, image_size: int = 224) -> AugmentConfig:
    """The view of weights whose file says nothing of images: ImageNet's statistics, of grey images the mean
    over the colours.
    """
    usual = AugmentConfig(image_size=image_size)
    if channels == len(usual.mean):
        return usual
    mean, std = (sum(values) / len(values) for values in (usual.mean, usual.std))
    return AugmentConfig(image_size=image_size, mean=(mean,) * channels, std=(std,) * channels)


def view_of(path: Path, channels: int, image_size: int) -> AugmentConfig:
    """The view that a model hub's config.json describes, else ImageNet's."""
    usual = imagenet_view(channels, image_size)
    described = read_settings(path).get("pretrained_cfg")
    if not isinstance(described, dict):
        return usual
    try:
        return AugmentConfig(
            image_size=int(described.get("input_size", [channels, image_size])[-1]),
            mean=described.get("mean", usual.mean),
            std=described.get("std", usual.std),
        )
    except (ValueError, TypeError, IndexError):
        return usual
