"""Batch norm over parts of a worker's batch: in one process what several workers do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PartwiseEncoder(nn.Module):
    """An encoder as it trains with batch norm over parts: images [B, …] to features [B, C] in `parts` passes.

    The parts follow each other in the batch and are as equal as B allows. Each is normalised by its own
    statistics. Running statistics take one step a batch, the mean of the parts' steps, as workers average
    theirs. On a CPU, whole passes take less time than layers that split the batch and join it again.
    """

    def __init__(self, encoder: nn.Module, parts: int):
        super().__init__()
        self.encoder, self.parts = encoder, parts

    def forward(self, images: Tensor) -> Tensor:
        # Past autograd, which would take the change of a buffer for that of a value that backward needs:
        # in training, gradients are those by the batch's statistics.
        running = [buffer.data for buffer in self.encoder.buffers() if buffer.is_floating_point()]
        before, mean = ([value.clone() for value in running] for _ in range(2))
        features = []
        for number, part in enumerate(images.tensor_split(self.parts), start=1):
            _assign(running, before)
            features.append(self.encoder(part))
            if running:
                torch._foreach_lerp_(mean, running, 1 / number)
        _assign(running, mean)
        return torch.cat(features)


def _assign(values: list[Tensor], new: list[Tensor]) -> None:
    if values:  # torch takes no empty lists
        torch._foreach_copy_(values, new)
