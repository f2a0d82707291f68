"""An encoder of a few thousand weights, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor

from pcl_ray.config import EncoderConfig
from pcl_ray.model import Encoder
from pcl_ray.model.encoder import build

SMALL = EncoderConfig(backbone="small_resnet", width=4, blocks=(1, 1), dim=6)
WIDE_HEAD = SMALL.model_copy(update={"stem_stride": 2, "head_width": 20, "head_batch_norm": True})


def built(seed: int = 0, config: EncoderConfig = SMALL, channels: int = 1) -> Encoder:
    torch.manual_seed(seed)
    return build(config, channels)


def images(n: int = 3, channels: int = 1, side: int = 16) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))
