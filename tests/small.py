"""Settings that several tests share: a run and encoder so small that an epoch takes well under a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pcl_ray import config as configs
from pcl_ray.errors import ConfigError

# What the tests' expectations were found with, whatever the recipe takes to learn well.
PLAIN_DIGITS = (
    "augment.min_crop=0.5",
    "augment.shift=0",
    "augment.rotate=0",
    "augment.shear=0",
    "encoder.head=linear",
    "encoder.head_width=null",
    "encoder.head_batch_norm=false",
    "encoder.batch_norm_parts=1",
    "loss.prototype_weight=1",
    "optimizer.weight_decay=0.0001",
    "evaluation.every_epochs=1",
)
DIGITS_RUN = (
    *PLAIN_DIGITS,
    "augment.image_size=8",
    "encoder.width=8",
    "encoder.blocks=1,1",
    "encoder.dim=16",
    "loss.queue_size=100",
    "data.limit=300",
    "train.batch_size=64",
    "train.epochs=4",
    "e_step.num_clusters=6,12",
    "e_step.warmup_epochs=1",
    "evaluation.final=[]",
    "tracking.enabled=false",
)
GREY_ENCODER: dict[str, Any] = {
    "data.channels": 1,
    "augment.mean": [0.5],
    "augment.std": [0.5],
    "encoder.backbone": "small_resnet",
    "encoder.width": 8,
    "encoder.blocks": [1, 1],
}


def config_error(overrides: list[str] | dict[str, Any], recipe: str | Path = "digits") -> ConfigError:
    """What `config.load` refuses these overrides with."""
    with pytest.raises(ConfigError) as caught:
        configs.load(recipe, overrides)
    return caught.value
