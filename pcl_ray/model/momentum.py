"""The momentum encoder: a moving average of the query encoder (He et al., CVPR 2020, equation 2)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MomentumPair(nn.Module):
    """Query encoder θ and momentum encoder θ'. `update` does θ' ← m·θ' + (1 − m)·θ on parameters; buffers
    (batch-norm statistics) are each one's own.
    """

    def __init__(self, query: nn.Module, key: nn.Module, momentum: float):
        super().__init__()
        self.query, self.key, self.momentum = query, key, momentum
        for parameter in key.parameters():
            parameter.requires_grad_(False)

    @classmethod
    def of(cls, query: nn.Module, momentum: float) -> MomentumPair:
        """A pair whose momentum encoder starts as a copy of `query`."""
        return cls(query, copy.deepcopy(query), momentum)

    @torch.no_grad()
    def update(self) -> None:
        """θ' ← m·θ' + (1 − m)·θ, all parameters at once."""
        keys, queries = (
            [parameter.detach() for parameter in model.parameters()] for model in (self.key, self.query)
        )
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)
