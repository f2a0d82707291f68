"""Random unit features, in groups or none, and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def features(n: int, dim: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def labels(n: int, classes: int = 4, seed: int = 0, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, classes, (n,), generator=torch.Generator().manual_seed(seed))


def mixture(n: int = 3000, dim: int = 12, groups: int = 60, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=draw)
    return F.normalize(centres[torch.arange(n) % groups] + 0.5 * torch.randn(n, dim, generator=draw), dim=1)


def with_twins(base: Tensor, twins: int, n: int) -> Tensor:
    """[n, C]: copies of the points of `base`; of the first `twins`, one copy differs in the last place of one
    number: too little for k-means to tell them apart.
    """
    data = base[torch.arange(n) % len(base)]
    at = data[:twins].abs().argmin(dim=1)
    data[torch.arange(twins), at] = torch.nextafter(data[torch.arange(twins), at], torch.tensor(9.0))
    return data
