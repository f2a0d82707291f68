"""Random unit features and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def features(n: int, dim: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def labels(n: int, classes: int = 4, seed: int = 0, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, classes, (n,), generator=torch.Generator().manual_seed(seed))
