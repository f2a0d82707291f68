"""Batches for one worker. What a batch holds follows from (seed, epoch, position) alone, not from how many workers or processes read.

epoch → one permutation of all images → step s takes rows s·B … → this worker's part of them → (epoch, index) → two views by (seed, epoch, index)

in memory:    pixels of the rows, prefetched in a thread for a GPU ────────────────────────────────────────→ Views.of_images
files:        loader processes: decode once, as small as suffices → two crops ─→ [b, 2, channels, S, S] uint8 → Views.of_crops
torchvision:  loader processes or none: two whole views, image by image ───────→ [b, 2, channels, S, S] uint8 → floats
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pcl_ray.config import RunConfig
from pcl_ray.data.augment import evaluation_boxes, evaluation_scale, evaluation_view, normalise, random_view, to_floats
from pcl_ray.data.draws import ViewDraws, view_draws
from pcl_ray.data.images import ArrayImages, FileImages, Images, Scale, cut
from pcl_ray.data.resample import resample
from pcl_ray.data.views import Views
from pcl_ray.errors import DataError

_READ_TIMEOUT_S = 600  # a loader process that is silent for so long has died or hangs
_POLL_S = 0.1
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """This worker's part of one step."""

    query_views: Tensor  # [b, channels, S, S] float32, normalised, on the training device
    key_views: Tensor  # [b, channels, S, S]
    indices: Tensor  # [b] int64, positions in the data set, on the CPU


@dataclass(frozen=True)
class _Raw:
    """What is read for one step, before it goes to the device."""

    pixels: Tensor  # uint8
    indices: Tensor  # [b] int64
    sizes: np.ndarray | None = None  # [b, 2] of the original images, where others

    def pin_memory(self) -> _Raw:
        return _Raw(self.pixels.pin_memory(), self.indices, self.sizes)


class TrainingLoader:
    """Two random views of every image, in another order each epoch; the incomplete last batch is dropped.

    workers: processes that decode (None: as configured, else none). Images in memory need none.
    """

    def __init__(self, images: Images, config: RunConfig, *, rank: int = 0, world_size: int = 1, device: torch.device = _CPU, workers: int | None = None):
        self._images, self._config, self._device = images, config, device
        self._sampler = _TrainingSampler(len(images), config.train.batch_size, config.seed, rank, world_size)
        self._views = Views(config, device)
        self._held = isinstance(images, ArrayImages) and config.augment.engine == "batch"
        if not self._held:
            dataset = _WholeViews(images, config) if config.augment.engine == "torchvision" else _Crops(images, config)
            self._loader = _data_loader(dataset, self._sampler, config, device, workers)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self._sampler.epoch = epoch
        if self._held:
            return self._finished(_ahead(self._from_memory(iter(self._sampler)), self._depth()), epoch)
        return self._finished(_read_by(self._loader), epoch)

    def _from_memory(self, rows: Iterator[list[tuple[int, int]]]) -> Iterator[_Raw]:
        assert isinstance(self._images, ArrayImages)
        for items in rows:
            raw = _rows_of(self._images, np.array([index for _, index in items]))
            yield raw.pin_memory() if self._device.type == "cuda" else raw

    def _depth(self) -> int:
        wanted = self._config.data.prefetch
        return wanted if wanted is not None else 2 if self._device.type == "cuda" else 0

    def _finished(self, batches: Iterator[_Raw], epoch: int) -> Iterator[Batch]:
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
    """Every image once in its evaluation view: this worker's contiguous part, as (views [b, channels, S, S] on the device, indices [b])."""

    def __init__(self, images: Images, config: RunConfig, *, rank: int = 0, world_size: int = 1, device: torch.device = _CPU, workers: int | None = None):
        mine = np.array_split(np.arange(len(images)), world_size)[rank]
        size = max(64, config.train.batch_size // world_size)
        self._images, self._augment, self._device = images, config.augment, device
        self._batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        self._view = evaluation_view(config.augment)
        if not isinstance(images, ArrayImages):
            self._loader = _data_loader(_FixedViews(images, config), self._batches, config, device, workers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not isinstance(self._images, ArrayImages):
            for raw in _read_by(self._loader):
                yield to_floats(raw.pixels.to(self._device, non_blocking=True), self._augment), raw.indices
            return
        for rows in self._batches:
            raw = _rows_of(self._images, rows)
            pixels = raw.pixels.to(self._device).permute(0, 3, 1, 2)
            yield self._evaluated(pixels, raw.sizes), raw.indices

    def _evaluated(self, pixels: Tensor, sizes: np.ndarray | None) -> Tensor:
        if sizes is None:  # one size: resized as one batch
            return to_floats(self._view(pixels), self._augment)
        kept = torch.tensor(pixels.shape[2:]) / torch.from_numpy(sizes)
        boxes = (evaluation_boxes(self._augment, torch.from_numpy(sizes)) * kept.repeat(1, 2)).to(self._device)
        return normalise(resample(pixels.float().contiguous() / 255, boxes, self._augment.image_size), self._augment)


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


class _WholeViews(Dataset[_Raw]):
    """Both views of each image, by torchvision."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.seed = images, config.seed
        self.view = random_view(config.augment, config.data.channels)

    def __getitems__(self, items: list[tuple[int, int]]) -> _Raw:
        # The views draw from torch's global generator; the training's own randomness must not depend on who augments.
        before = torch.default_generator.get_state()
        views = torch.stack([self._pair(epoch, index) for epoch, index in items])
        torch.default_generator.set_state(before)
        return _Raw(views, torch.tensor([index for _, index in items]))

    def _pair(self, epoch: int, index: int) -> Tensor:
        image = _tensor(self.images.read(index))
        torch.default_generator.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1))
        return torch.stack([self.view(image), self.view(image)])


class _Crops(Dataset[_Raw]):
    """Two crops of each file, which is decoded once, and no larger than the smaller crop needs."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.channels, self.seed = images, config.augment, config.data.channels, config.seed
        self.reduced = config.data.reduced_decoding

    def __getitems__(self, items: list[tuple[int, int]]) -> _Raw:
        return _Raw(torch.stack([self._pair(epoch, index) for epoch, index in items]), torch.tensor([index for _, index in items]))

    def _pair(self, epoch: int, index: int) -> Tensor:
        """[2, channels, S, S] uint8."""
        draws: list[ViewDraws] = []

        def place(height: int, width: int) -> float:
            size, one = np.array([[height, width]]), np.array([index])
            draws.extend(view_draws(self.augment, self.channels, self.seed, epoch, one, view, size) for view in range(2))
            return self.augment.image_size / min(view.boxes[0, 2:].min() for view in draws)

        image, reduction = _read(self.images, index, place, self.reduced)
        crops = [cut(image, view.boxes[0] / reduction, self.augment.image_size) for view in draws]
        return torch.stack([_tensor(crop[:, ::-1] if view.flipped[0] else crop) for crop, view in zip(crops, draws, strict=True)])


class _FixedViews(Dataset[_Raw]):
    """The evaluation view of each file."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.reduced = images, config.augment, config.data.reduced_decoding
        self.view = evaluation_view(config.augment)

    def __getitems__(self, indices: list[int]) -> _Raw:
        return _Raw(torch.stack([self._view(index) for index in indices]), torch.as_tensor(np.asarray(indices), dtype=torch.long))

    def _view(self, index: int) -> Tensor:
        """[channels, S, S] uint8."""
        sizes: list[tuple[int, int]] = []

        def place(height: int, width: int) -> float:
            sizes.append((height, width))
            return evaluation_scale(self.augment, height, width)

        image, reduction = _read(self.images, index, place, self.reduced)
        if reduction == 1:
            return self.view(_tensor(image))
        box = evaluation_boxes(self.augment, torch.tensor(sizes))[0].numpy()
        return _tensor(cut(image, box / reduction, self.augment.image_size, within=False))


def _read(images: Images, index: int, scale: Scale, reduced: bool) -> tuple[np.ndarray, int]:
    """A picture and by how much it was reduced: 1, 2, 4 or 8. `scale` is asked in any case: it also learns the picture's size from it."""
    if not isinstance(images, FileImages):
        pixels = images.read(index)
        scale(*pixels.shape[:2])
        return pixels, 1
    heights: list[int] = []

    def asked(height: int, width: int) -> float:
        heights.append(height)
        return max(scale(height, width), 0.0 if reduced else 1.0)

    pixels = images.read(index, asked)
    return pixels, round(heights[0] / len(pixels))


def _read_by(loader: DataLoader) -> Iterator[_Raw]:
    """Its batches; a file that does not decode is the sentence it is where no process reads, without that process's traceback."""
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__qualname__}: ")) from error


def _rows_of(images: ArrayImages, rows: np.ndarray) -> _Raw:
    """A copy: images in shared memory are read-only, and torch takes those under protest."""
    pixels = torch.from_numpy(np.take(images.pixels, rows, axis=0))
    return _Raw(pixels, torch.from_numpy(rows.astype(np.int64)), None if images.sizes is None else images.sizes[rows])


def _ahead(batches: Iterator[_Raw], depth: int) -> Iterator[_Raw]:
    """The same, of which `depth` are made ready in a thread while the one before is worked on. Ends its thread when it is left early."""
    if not depth:
        yield from batches
        return
    ready: queue.Queue[_Raw | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def put(entry: _Raw | BaseException | None) -> None:
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
        while (entry := ready.get(timeout=_READ_TIMEOUT_S)) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        left.set()
        thread.join(_READ_TIMEOUT_S)


def _tensor(pixels: np.ndarray) -> Tensor:
    """[H, W, channels] to [channels, H, W]; a copy, since images in shared memory are read-only."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8).copy())


def _data_loader(dataset: Dataset, batches: object, config: RunConfig, device: torch.device, workers: int | None) -> DataLoader:
    count = workers if workers is not None else config.data.loader_workers or 0
    # A generator of its own: the loader draws a seed at every pass, which must not come out of the training's randomness.
    options: dict[str, Any] = {"num_workers": count, "pin_memory": device.type == "cuda", "generator": torch.Generator()}
    if count:
        ahead = config.data.prefetch if config.data.prefetch is not None else 2
        options |= {
            "multiprocessing_context": "forkserver",
            "persistent_workers": True,
            "timeout": _READ_TIMEOUT_S,
            "prefetch_factor": max(ahead, 1),
        }
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_is, **options)  # type: ignore[arg-type]


def _as_is(batch: object) -> object:
    return batch
