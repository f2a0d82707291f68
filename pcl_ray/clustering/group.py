"""The processes that share a clustering: each holds some points, all decide by the same reduced numbers.

All of `clustering` is written once, for a shard and its group; a group of one process exchanges nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """One process alone: every exchange is the identity."""

    rank = 0
    size = 1

    def sum(self, *tensors: Tensor) -> None:
        """Adds tensors up over the group, in place. Exact for whole numbers or one grid: `points.Points`."""

    def max(self, value: float) -> float:
        """The largest of the processes' values."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """[n, …] of every process, which may differ in n, one after the other in rank order."""
        return rows


class TorchGroup(Group):
    """The processes of a torch.distributed group: gloo on CPUs, NCCL on GPUs. `device` holds its tensors."""

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | None = None):
        self._group = group
        self._device = device or torch.device("cpu")
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, *tensors: Tensor) -> None:
        # One message instead of several: latency costs more than length. Float64 is exact for these sums.
        packed = torch.cat([tensor.detach().to(self._device, torch.float64).flatten() for tensor in tensors])
        dist.all_reduce(packed, group=self._group)
        for tensor, part in zip(tensors, packed.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def max(self, value: float) -> float:
        moved = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(moved, op=dist.ReduceOp.MAX, group=self._group)
        return float(moved)

    def gather(self, rows: Tensor) -> Tensor:
        counts = torch.zeros(self.size, dtype=torch.long)
        counts[self.rank] = len(rows)
        self.sum(counts)
        longest = int(counts.max())
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=self._device)
        padded[: len(rows)] = rows.to(self._device)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]).to(
            rows.device
        )
