"""Exchange between workers. Without a process group the rank is 0 of 1 and everything is the identity."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """The number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, 0 … world_size() − 1."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def all_gather(rows: Tensor) -> Tensor:
    """The rows [B, …] of every worker, in rank order: [world · B, …]. No gradient flows through it."""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows)
    return gathered


@torch.no_grad()
def all_gather_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`all_gather` of several tensors of as many rows each, of any types, in one message."""
    if world_size() == 1:
        return tensors
    count = len(tensors[0])
    parts = [rows.reshape(count, -1).contiguous().view(torch.uint8) for rows in tensors]
    gathered = all_gather(torch.cat(parts, dim=1)).split([part.shape[1] for part in parts], dim=1)
    return tuple(
        part.contiguous().view(rows.dtype).reshape(-1, *rows.shape[1:])
        for part, rows in zip(gathered, tensors, strict=True)
    )


@torch.no_grad()
def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of a tensor over all workers, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def any_worker(flag: bool, device: torch.device) -> bool:
    """Whether it is true on one worker at least; all get the same answer."""
    if world_size() == 1:
        return flag
    shared = torch.tensor([int(flag)], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)


def _float_buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def flat_buffers(module: nn.Module) -> Tensor:
    """[n], the floating-point buffers (batch-norm statistics) one after the other."""
    buffers = _float_buffers(module)
    return torch.cat([buffer.flatten() for buffer in buffers]) if buffers else torch.zeros(0)


@torch.no_grad()
def fill_buffers(module: nn.Module, flat: Tensor) -> None:
    """Copies `flat_buffers` of a module like this one back, in place."""
    buffers = _float_buffers(module)
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Averages floating-point buffers (batch-norm statistics) over workers, so all evaluate with the same."""
    if world_size() == 1:
        return
    if len(flat := flat_buffers(module)):
        fill_buffers(module, mean_over_workers(flat))


@torch.no_grad()
def encode_shuffled(
    encoder: Callable[[Tensor], Tensor], images: Tensor, seed: int, *, parts: int = 1
) -> Tensor:
    """Shuffle-BN (MoCo, section 3.3): encodes [B, …] in batches mixed over workers, [B, C] in the old order.

    So the keys' batch statistics do not give the positive away. All workers draw one permutation from `seed`.
    parts: in so many the encoder normalises each worker's batch. One worker with several mixes them, by the
    permutation of that many workers.
    """
    if world_size() * parts == 1:
        return encoder(images)
    all_images, count = all_gather(images), len(images)
    order = torch.randperm(len(all_images), generator=torch.Generator().manual_seed(seed))
    order = order.to(images.device, non_blocking=True)
    own_part = order.view(world_size(), count)[rank()]
    features = all_gather(encoder(all_images[own_part]))
    restored = torch.empty_like(features)
    restored[order] = features
    return restored[rank() * count : (rank() + 1) * count]
