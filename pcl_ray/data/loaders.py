"""Batches for one worker. What one holds follows from (seed, epoch, position), not from who reads it.

epoch → one permutation of all images → step s takes rows s·B … → this worker's part of them → (epoch, index)
→ two views and small ones by (seed, epoch, index)

in memory:    pixels of the rows, prefetched in a thread for a GPU ─────────────────────→ Views.of_images
files:        loader processes: decode once, as small as suffices → its crops ─┬→ uint8 → Views.of_crops
torchvision:  loader processes or none: whole views, image by image ───────────┘→ uint8 → floats
                                                                [b, 2, channels, S, S]
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data.colour import normalise, to_floats
from pcl_ray.data.evaluation_view import evaluation_boxes, evaluation_view
from pcl_ray.data.images import ArrayImages, Images
from pcl_ray.data.reading import READ_TIMEOUT_S, CropPairs, EvaluationViews, RawBatch, Readers, ReferencePairs
from pcl_ray.data.resample import resample
from pcl_ray.data.views import Views
from pcl_ray.plan import batches_ahead

_POLL_S = 0.1
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """This worker's part of one step."""

    query_views: Tensor  # [b, channels, S, S] float32, normalised, on the training device
    key_views: Tensor  # [b, channels, S, S]
    indices: Tensor  # [b] int64, positions in the data set, on the CPU
    small_views: tuple[Tensor, ...] = ()  # each [b, channels, s, s]: `augment.small_crops` of them


class TrainingLoader:
    """Random views of each image, reshuffled each epoch, full batches only. `readers` are for files."""

    def __init__(
        self,
        images: Images,
        config: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        readers: Readers | None = None,
    ):
        self._num_images, self._config = len(images), config
        self._rank, self._world_size = rank, world_size
        self._source: _PairSource
        if config.augment.engine == "torchvision":
            self._source = _ReferenceSource(images, config, device, readers)
        elif isinstance(images, ArrayImages):
            self._source = _MemorySource(images, config, device)
        else:
            self._source = _FileSource(images, config, device, readers)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from this step on; it ends with the last complete one."""
        rows = _order(epoch, self._num_images, self._config, self._rank, self._world_size)
        return self._source.batches(epoch, islice(rows, first_step, None))

    def views(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The views that the images at these rows [b] have in `epoch`, batch by batch."""
        return self._source.batches(epoch, steps)


class _PairSource(Protocol):
    """Makes the views of images, out of what they are held in."""

    def batches(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The views that the images at these rows [b] have in `epoch`."""
        ...


class _MemorySource:
    """Images in memory: copied in a thread, ahead, where training waits for a GPU; views on the device."""

    def __init__(self, images: ArrayImages, config: RunConfig, device: torch.device):
        self._images, self._device = images, device
        self._views = Views(config, device)
        prefetches = config.data.prefetch is not None or device.type == "cuda"
        self._depth = batches_ahead(config) if prefetches else 0

    def batches(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        for raw in _ahead(self._read(steps), self._depth):
            views = self._views.of_images(raw.pixels, epoch, raw.indices, raw.sizes)
            yield _batch(views, raw.indices)

    def _read(self, steps: Iterable[np.ndarray]) -> Iterator[RawBatch]:
        for rows in steps:
            raw = _rows_of(self._images, rows)
            yield raw.pin_memory() if self._device.type == "cuda" else raw


class _FileSource:
    """Images in files: loader processes cut the crops out of each, the colours change on the device."""

    def __init__(self, images: Images, config: RunConfig, device: torch.device, readers: Readers | None):
        self._views = Views(config, device)
        self._readers = readers or Readers(config, device)
        self._which = self._readers.add(CropPairs(images, config))

    def batches(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        return (
            _batch(self._views.of_crops(raw.pixels, epoch, raw.indices, raw.small), raw.indices)
            for raw in self._readers.batches(self._which, _with_epoch(epoch, steps))
        )


class _ReferenceSource:
    """Any images, whose views torchvision makes one by one (`augment.engine: torchvision`)."""

    def __init__(self, images: Images, config: RunConfig, device: torch.device, readers: Readers | None):
        self._augment, self._device = config.augment, device
        self._readers = readers or Readers(config, device)
        self._which = self._readers.add(ReferencePairs(images, config))

    def batches(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        return (self._batch(raw) for raw in self._readers.batches(self._which, _with_epoch(epoch, steps)))

    def _batch(self, raw: RawBatch) -> Batch:
        views: list[Tensor] = []
        for part in (raw.pixels, raw.small):
            if part is not None:
                floats = to_floats(part.to(self._device, non_blocking=True), self._augment)
                views += floats.unbind(dim=1)
        return _batch(views, raw.indices)


def _batch(views: Sequence[Tensor], indices: Tensor) -> Batch:
    """The views of one step: query, key, and then small ones."""
    return Batch(views[0], views[1], indices, tuple(views[2:]))


class EvaluationLoader:
    """This worker's contiguous part, `rows` [n], each image once: evaluation views [b, channels, S, S],
    indices [b].
    """

    def __init__(
        self,
        images: Images,
        config: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        readers: Readers | None = None,
    ):
        self.rows = np.array_split(np.arange(len(images)), world_size)[rank]
        self._size = max(64, config.train.batch_size // world_size)
        self._images, self._augment, self._device = images, config.augment, device
        self._view = evaluation_view(config.augment)
        if not isinstance(images, ArrayImages):
            self._readers = readers or Readers(config, device)
            self._which = self._readers.add(EvaluationViews(images, config))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.of(self.rows)

    def of(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for the images of these rows [n], which may be any of the data set, in their order."""
        return self.batches(rows[start : start + self._size] for start in range(0, len(rows), self._size))

    def batches(self, lists: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for these batches of rows [b]."""
        if not isinstance(self._images, ArrayImages):
            for raw in self._readers.batches(self._which, [rows.tolist() for rows in lists]):
                yield to_floats(raw.pixels.to(self._device, non_blocking=True), self._augment), raw.indices
            return
        for rows in lists:
            raw = _rows_of(self._images, rows)
            pixels = raw.pixels.to(self._device).permute(0, 3, 1, 2)
            yield self._views_of(pixels, raw.sizes), raw.indices

    def _views_of(self, pixels: Tensor, sizes: np.ndarray | None) -> Tensor:
        """The views of images in memory [b, channels, H, W], which may have been squeezed out of `sizes`."""
        if sizes is None:  # one size: resized as one batch
            return to_floats(self._view(pixels), self._augment)
        squeezed = torch.tensor(pixels.shape[2:]) / torch.from_numpy(sizes)
        boxes = evaluation_boxes(self._augment, torch.from_numpy(sizes)) * squeezed.repeat(1, 2)
        floats = pixels.float().contiguous() / 255
        views = resample(floats, boxes.to(self._device), self._augment.image_size)
        return normalise(views, self._augment)


def _order(
    epoch: int, num_images: int, config: RunConfig, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """This worker's rows [b] of every step of an epoch."""
    order, size = np.random.default_rng([config.seed, epoch]).permutation(num_images), config.train.batch_size
    part = slice(rank * size // world_size, (rank + 1) * size // world_size)
    return (order[start : start + size][part] for start in range(0, num_images - size + 1, size))


def _with_epoch(epoch: int, steps: Iterable[np.ndarray]) -> Iterator[list[tuple[int, int]]]:
    """The rows as items (epoch, row): loader processes live through all epochs, and learn it from them."""
    return ([(epoch, row) for row in rows.tolist()] for rows in steps)


def _rows_of(images: ArrayImages, rows: np.ndarray) -> RawBatch:
    """The images at these rows. A copy: those in shared memory are read-only, which torch warns of."""
    pixels = torch.from_numpy(images.rows(rows))
    sizes = None if images.sizes is None else images.sizes[rows]
    return RawBatch(pixels, torch.from_numpy(rows.astype(np.int64)), sizes)


def _ahead(batches: Iterator[RawBatch], depth: int) -> Iterator[RawBatch]:
    """The same batches, `depth` of them made ahead in a thread, which ends if the iteration is left early."""
    if not depth:
        yield from batches
        return
    ready: queue.Queue[RawBatch | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def put(entry: RawBatch | BaseException | None) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=_POLL_S)
                return

    def fill() -> None:
        try:
            for batch in batches:
                if left.is_set():
                    return
                put(batch)
            put(None)
        except BaseException as error:  # carried to whoever takes
            put(error)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get(timeout=READ_TIMEOUT_S)) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        left.set()
        thread.join(READ_TIMEOUT_S)
