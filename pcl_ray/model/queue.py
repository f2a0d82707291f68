"""The queue of negatives: the last R momentum features (MoCo)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """A ring of features, `keys` [R, C], at first random unit vectors. A batch of any size wraps around."""

    keys: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.pointer = 0  # the next row to write; a Python number, so that no step waits for the device

    @torch.no_grad()
    def enqueue(self, keys_BC: Tensor) -> None:
        """Writes the batch over the oldest keys; of one larger than the queue only the last R rows stay."""
        size = len(self.keys)
        newest = keys_BC[-size:].to(self.keys.dtype)
        start = (self.pointer + len(keys_BC) - len(newest)) % size
        first = min(len(newest), size - start)
        self.keys[start : start + first] = newest[:first]
        self.keys[: len(newest) - first] = newest[first:]
        self.pointer = (start + len(newest)) % size

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.pointer = int(state["pointer"])
