"""An encoder of a few thousand weights, and images for it; a smaller one, for a compiler that makes C++."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

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


def smallest(side: int, dim: int) -> Encoder:
    """All that matters to torch.compile, and little for a C++ compiler to do."""
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return Encoder(backbone, nn.Linear(4 * (side - 2) ** 2, dim))


@contextmanager
def really_compiling(folder: Path) -> Iterator[None]:
    """For torch.compile down to machine code, which goes into the folder: in this process, and without the
    compilations that find out which instructions the CPU has.
    """
    from torch._inductor import config as inductor

    with (
        mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(folder)}),
        warnings.catch_warnings(),
        inductor.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}),
    ):
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()
