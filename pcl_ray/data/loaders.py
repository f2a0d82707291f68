"""Batches for one worker. What a batch holds follows from (seed, epoch, position) alone, not from how many workers or processes read.

epoch → one permutation of all images → step s takes rows s·B … → this worker's part of them → (epoch, index) → two views by (seed, epoch, index)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pcl_ray.config import RunConfig
from pcl_ray.data.augment import evaluation_view, random_view, to_floats
from pcl_ray.data.images import ArrayImages, Images

_READ_TIMEOUT_S = 600  # a loader process that is silent for so long has died or hangs


@dataclass(frozen=True)
class Batch:
    """This worker's part of one step."""

    query_views: Tensor  # [b, channels, S, S] float32, normalised
    key_views: Tensor  # [b, channels, S, S]
    indices: Tensor  # [b] int64, positions in the data set

    def pin_memory(self) -> Batch:
        return Batch(self.query_views.pin_memory(), self.key_views.pin_memory(), self.indices.pin_memory())


class TrainingLoader:
    """Two random views of every image, in another order each epoch; the incomplete last batch is dropped."""

    def __init__(self, images: Images, config: RunConfig, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False):
        self._sampler = _TrainingSampler(len(images), config.train.batch_size, config.seed, rank, world_size)
        self._loader = _data_loader(_Views(images, config), self._sampler, config.data.loader_workers, pin_memory)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self._sampler.epoch = epoch
        return iter(self._loader)


class EvaluationLoader:
    """Every image once in its evaluation view: this worker's contiguous part, as (views [b, channels, S, S], indices [b])."""

    def __init__(self, images: Images, config: RunConfig, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False):
        mine = np.array_split(np.arange(len(images)), world_size)[rank]
        size = max(64, config.train.batch_size // world_size)
        batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        self._loader = _data_loader(_FixedView(images, config), batches, config.data.loader_workers, pin_memory)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._loader)


class _TrainingSampler(Sampler[list[tuple[int, int]]]):
    """(epoch, index) pairs: loader processes live through all epochs and learn the epoch from the pair."""

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.here = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch  # read now and not at the first batch: another epoch may be asked for before
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        batches = (order[step * self.batch_size : (step + 1) * self.batch_size][self.here] for step in range(len(self)))
        return ([(epoch, int(row)) for row in rows] for rows in batches)


class _Views(Dataset[Batch]):
    def __init__(self, images: Images, config: RunConfig):
        self.images, self.seed, self.augment = images, config.seed, config.augment
        self.view = random_view(config.augment, config.data.channels)

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        # The views draw from torch's global generator; the training's own randomness must not depend on who augments.
        before = torch.default_generator.get_state()
        pairs = [self._pair(epoch, index) for epoch, index in items]
        torch.default_generator.set_state(before)
        query_views, key_views = (to_floats(torch.stack(views), self.augment) for views in zip(*pairs, strict=True))
        return Batch(query_views, key_views, torch.tensor([index for _, index in items]))

    def _pair(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        image = _tensor(self.images.read(index))
        torch.default_generator.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1))
        return self.view(image), self.view(image)


class _FixedView(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment = images, config.augment
        self.view = evaluation_view(config.augment)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if isinstance(self.images, ArrayImages):  # one size: resized as one batch
            views = self.view(torch.from_numpy(self.images.pixels[indices]).permute(0, 3, 1, 2))
        else:
            views = torch.stack([self.view(_tensor(self.images.read(index))) for index in indices])
        return to_floats(views, self.augment), torch.as_tensor(np.asarray(indices), dtype=torch.long)


def _tensor(pixels: np.ndarray) -> Tensor:
    """[H, W, channels] to [channels, H, W]; a copy, since images in shared memory are read-only."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8).copy())


def _data_loader(dataset: Dataset, batches: object, workers: int, pin_memory: bool) -> DataLoader:
    # A generator of its own: the loader draws a seed at every pass, which must not come out of the training's randomness.
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory, "generator": torch.Generator()}
    if workers:
        options |= {"multiprocessing_context": "forkserver", "persistent_workers": True, "timeout": _READ_TIMEOUT_S}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_is, **options)  # type: ignore[arg-type]


def _as_is(batch: object) -> object:
    return batch
