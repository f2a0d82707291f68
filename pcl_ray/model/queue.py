"""The queue of negatives: the last R momentum features (MoCo), and whose they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """A ring of features, `keys` [R, C], at first random unit vectors. A batch of any size wraps around.

    `indices` [R] int64: the image of each key; −1 for a random one, and for those of checkpoints that had no
    indices yet. `groups` [R] int64: the group of that image (`image_groups`) in the clusters that the keys
    were last grouped by; not part of the state, for clusters change.
    """

    keys: Tensor
    indices: Tensor
    groups: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("indices", torch.full((size,), -1))
        self.register_buffer("groups", torch.full((size,), -1), persistent=False)
        self.pointer = 0  # the next row to write; a Python number, so that no step waits for the device
        self.register_load_state_dict_pre_hook(_without_indices)

    @torch.no_grad()
    def enqueue(
        self, keys_BC: Tensor, indices_B: Tensor | None = None, groups_B: Tensor | None = None
    ) -> None:
        """Writes the batch over the oldest keys; of one larger than the queue only the last R rows stay.

        indices_B: [B] the images, None for images that are nobody's. groups_B: [B] their groups; None where
        no step asks for groups before the next `regroup`.
        """
        size = len(self.keys)
        count = min(len(keys_BC), size)
        start = (self.pointer + len(keys_BC) - count) % size
        first = min(count, size - start)
        if indices_B is None:
            indices_B = self.indices.new_full((len(keys_BC),), -1)
        for ring, rows in ((self.keys, keys_BC), (self.indices, indices_B), (self.groups, groups_B)):
            if rows is not None:
                newest = rows[len(rows) - count :].to(ring.dtype)
                ring[start : start + first] = newest[:first]
                ring[: count - first] = newest[first:]
        self.pointer = (start + count) % size

    @torch.no_grad()
    def regroup(self, assignments_N: Tensor) -> None:
        """Groups the keys by other clusters, `assignments_N` [N] int64 on the CPU, of which only the rows of
        the queue's images are read. Waits for the device.
        """
        self.groups.copy_(image_groups(self.indices.cpu(), assignments_N))

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.pointer = int(state["pointer"])


def image_groups(indices: Tensor, assignments_N: Tensor) -> Tensor:
    """[R] int64, the group that each image forms with its likes: its cluster; an image without a cluster is a
    group of its own, −2 − index. −1 for what is no image of the N: nobody's group.
    """
    present = (indices >= 0) & (indices < len(assignments_N))
    clusters = assignments_N[torch.where(present, indices, 0)]
    return torch.where(present, torch.where(clusters < 0, -2 - indices, clusters), -1)


def _without_indices(module: KeyQueue, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Completes the state of a queue that was written before queues had indices."""
    state.setdefault(f"{prefix}indices", torch.full_like(module.indices, -1))
