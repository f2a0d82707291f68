"""Near-duplicates: groups of images that are as close to one of them as a threshold says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ROWS = 4096  # of a block: 64 MiB of cosines
_SHARE = 0.01  # of the distance of two random images
_ROUNDING = 1e-6  # of the cosine of equal vectors


@dataclass(frozen=True, eq=False)
class DuplicateGroups:
    """Which images belong together: each to a leader, which stands for it."""

    leaders: np.ndarray  # [n] int64, the image that stands for each: itself, where it is a leader or alone
    similarity: np.ndarray  # [n] float32, the cosine to it

    def members(self) -> list[np.ndarray]:
        """The images of each group of two or more, the largest group first; in each the leader first, then
        those nearest to it.
        """
        itself = self.leaders == np.arange(len(self.leaders))
        order = np.lexsort((-self.similarity, ~itself, self.leaders))
        _, starts, sizes = np.unique(self.leaders[order], return_index=True, return_counts=True)
        several = sorted(np.flatnonzero(sizes > 1), key=lambda i: (-sizes[i], starts[i]))
        return [order[starts[i] : starts[i] + sizes[i]] for i in several]


def duplicate_groups(
    vectors_ND: np.ndarray,
    threshold: float,
    *,
    order_N: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> DuplicateGroups:
    """The groups of images whose cosine to their leader is `threshold` or more (Hartigan's leader algorithm).

    One image after the other joins the nearest leader before it, or is one itself where none is near
    enough. So images are not chained: whoever keeps the leaders has something near for all others.
    vectors_ND: unit vectors, read in blocks. order_N: the order in which images are taken, those to be kept
    first. progress: is told how many of all are done. At most N² · D / 2 products.
    """
    size = len(vectors_ND)
    order = np.arange(size) if order_N is None else order_N
    least = min(threshold, 1 - _ROUNDING)
    leaders, similarity = np.arange(size), np.ones(size, np.float32)
    before = np.empty(0, np.int64)  # the leaders of the blocks before
    for start in range(0, size, _ROWS):
        images = order[start : start + _ROWS]
        block = _on(vectors_ND[images], device)
        cosine, nearest = _nearest_of(block, before, vectors_ND)
        among = (block @ block.T).cpu().numpy()
        new: list[int] = []
        for row, image in enumerate(images):
            best, leader = cosine[row], nearest[row]
            if new:
                near = among[row, new]
                position = int(near.argmax())
                if near[position] > best:
                    best, leader = near[position], images[new[position]]
            if best >= least:
                leaders[image], similarity[image] = leader, min(best, 1)
            else:
                new.append(row)
        before = np.concatenate([before, images[new]])
        if progress:
            progress(min(start + _ROWS, size), size)
    return DuplicateGroups(leaders, similarity)


def usual_threshold(vectors_ND: np.ndarray, *, pairs: int = 20_000) -> float:
    """A hundredth of the distance 1 − cosine of two images drawn at random, taken from 1: where encoders see
    other compressions and sizes of the same picture. The median over so many pairs; 1 for fewer than 2.
    """
    size = len(vectors_ND)
    if size < 2:
        return 1.0
    draw = np.random.default_rng(0)
    left = np.sort(draw.integers(0, size, min(pairs, 8 * size)))
    right = (left + draw.integers(1, size, len(left))) % size
    cosines = [
        np.einsum("nd,nd->n", vectors_ND[left[part]], vectors_ND[right[part]])
        for part in (slice(start, start + _ROWS) for start in range(0, len(left), _ROWS))
    ]
    return 1 - _SHARE * float(1 - np.median(np.concatenate(cosines)))


def _nearest_of(block: Tensor, leaders: np.ndarray, vectors_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[b] the largest cosine to one of the leaders, −2 where there are none, and [b] which it is."""
    best = torch.full((len(block),), -2.0, device=block.device)
    which = torch.zeros(len(block), dtype=torch.int64, device=block.device)
    for start in range(0, len(leaders), _ROWS):
        ids = leaders[start : start + _ROWS]
        values, positions = (block @ _on(vectors_ND[ids], block.device).T).max(dim=1)
        nearer = values > best
        best = torch.where(nearer, values, best)
        which = torch.where(nearer, torch.from_numpy(ids).to(block.device)[positions], which)
    return best.cpu().numpy(), which.cpu().numpy()


def _on(block: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.array(block, dtype=np.float32)).to(device)
