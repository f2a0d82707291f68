"""Batches for one worker. What a batch holds follows from (seed, epoch, position) alone, not from how many
workers or processes read.

epoch → one permutation of all images → step s takes rows s·B … → this worker's part of them → (epoch, index)
→ two views by (seed, epoch, index)

in memory:    pixels of the rows, prefetched in a thread for a GPU ─────────────────────→ Views.of_images
files:        loader processes: decode once, as small as suffices → two crops ─┬→ uint8 → Views.of_crops
torchvision:  loader processes or none: two whole views, image by image ───────┘→ uint8 → floats
                                                                [b, 2, channels, S, S]
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data.augment import evaluation_boxes, evaluation_view, normalise, to_floats
from pcl_ray.data.images import ArrayImages, Images
from pcl_ray.data.reading import READ_TIMEOUT_S, Crops, FixedViews, Raw, Readers, WholeViews
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


class TrainingLoader:
    """Two random views of every image, in another order each epoch; the incomplete last batch is dropped.
    Images in memory need no `readers`.
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
        self._images, self._config, self._device, self._place = images, config, device, (rank, world_size)
        self._views = Views(config, device)
        self._held = isinstance(images, ArrayImages) and config.augment.engine == "batch"
        if not self._held:
            self._readers = readers or Readers(config, device)
            self._which = self._readers.add(
                WholeViews(images, config)
                if config.augment.engine == "torchvision"
                else Crops(images, config)
            )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return self.views(epoch, _order(epoch, len(self._images), self._config, *self._place))

    def views(self, epoch: int, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The two views that the images at these rows [b] have in `epoch`, batch by batch."""
        if self._held:
            return self._finished(_ahead(self._from_memory(steps), self._depth()), epoch)
        # Loader processes live through all epochs and learn the epoch from the pair.
        return self._finished(
            self._readers.batches(self._which, ([(epoch, row) for row in rows.tolist()] for rows in steps)),
            epoch,
        )

    def _from_memory(self, steps: Iterable[np.ndarray]) -> Iterator[Raw]:
        assert isinstance(self._images, ArrayImages)
        for rows in steps:
            raw = _rows_of(self._images, rows)
            yield raw.pin_memory() if self._device.type == "cuda" else raw

    def _depth(self) -> int:
        wanted = self._config.data.prefetch is not None or self._device.type == "cuda"
        return batches_ahead(self._config) if wanted else 0

    def _finished(self, batches: Iterator[Raw], epoch: int) -> Iterator[Batch]:
        for raw in batches:
            if self._config.augment.engine == "torchvision":
                both = to_floats(raw.pixels.to(self._device, non_blocking=True), self._config.augment)
                query_views, key_views = both[:, 0], both[:, 1]
            elif self._held:
                query_views, key_views = self._views.of_images(raw.pixels, epoch, raw.indices, raw.sizes)
            else:
                query_views, key_views = self._views.of_crops(raw.pixels, epoch, raw.indices)
            yield Batch(query_views, key_views, raw.indices)


class EvaluationLoader:
    """Every image once in its evaluation view: this worker's contiguous part, as (views [b, channels, S, S]
    on the device, indices [b]).
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
        mine = np.array_split(np.arange(len(images)), world_size)[rank]
        size = max(64, config.train.batch_size // world_size)
        self._images, self._augment, self._device = images, config.augment, device
        self._batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        self._view = evaluation_view(config.augment)
        if not isinstance(images, ArrayImages):
            self._readers = readers or Readers(config, device)
            self._which = self._readers.add(FixedViews(images, config))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches(self._batches)

    def batches(self, lists: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for the images of these rows [b], which may be any of the data set."""
        if not isinstance(self._images, ArrayImages):
            for raw in self._readers.batches(self._which, [rows.tolist() for rows in lists]):
                yield to_floats(raw.pixels.to(self._device, non_blocking=True), self._augment), raw.indices
            return
        for rows in lists:
            raw = _rows_of(self._images, rows)
            pixels = raw.pixels.to(self._device).permute(0, 3, 1, 2)
            yield self._evaluated(pixels, raw.sizes), raw.indices

    def _evaluated(self, pixels: Tensor, sizes: np.ndarray | None) -> Tensor:
        if sizes is None:  # one size: resized as one batch
            return to_floats(self._view(pixels), self._augment)
        kept = torch.tensor(pixels.shape[2:]) / torch.from_numpy(sizes)
        boxes = (evaluation_boxes(self._augment, torch.from_numpy(sizes)) * kept.repeat(1, 2)).to(
            self._device
        )
        return normalise(
            resample(pixels.float().contiguous() / 255, boxes, self._augment.image_size), self._augment
        )


def _order(
    epoch: int, num_images: int, config: RunConfig, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """This worker's rows [b] of every step of an epoch."""
    order, size = np.random.default_rng([config.seed, epoch]).permutation(num_images), config.train.batch_size
    here = slice(rank * size // world_size, (rank + 1) * size // world_size)
    return (order[start : start + size][here] for start in range(0, num_images - size + 1, size))


def _rows_of(images: ArrayImages, rows: np.ndarray) -> Raw:
    """A copy: images in shared memory are read-only, and torch takes those under protest."""
    pixels = torch.from_numpy(np.take(images.pixels, rows, axis=0))
    return Raw(
        pixels, torch.from_numpy(rows.astype(np.int64)), None if images.sizes is None else images.sizes[rows]
    )


def _ahead(batches: Iterator[Raw], depth: int) -> Iterator[Raw]:
    """The same, of which `depth` are made ready in a thread while the one before is worked on. Ends its
    thread when it is left early.
    """
    if not depth:
        yield from batches
        return
    ready: queue.Queue[Raw | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def put(entry: Raw | BaseException | None) -> None:
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
