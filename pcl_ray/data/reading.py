"""What is read of images one by one, and the loader processes that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcl_ray.config import RunConfig
from pcl_ray.data.draws import ViewDraws, view_draws
from pcl_ray.data.evaluation_view import as_tensor, evaluation_view, view_of_file
from pcl_ray.data.images import EncodedImages, Images
from pcl_ray.data.pictures.decoding import Scale, cut, decode_reduced
from pcl_ray.errors import DataError
from pcl_ray.plan import batches_ahead, small_crop_size

READ_TIMEOUT_S = 600  # a loader process that is silent for so long has died or hangs


@dataclass(frozen=True)
class RawBatch:
    """What is read for one step, before it goes to the device."""

    pixels: Tensor  # uint8
    indices: Tensor  # [b] int64
    sizes: np.ndarray | None = None  # [b, 2] of the original images, where `pixels` have other ones
    small: Tensor | None = None  # [b, n, channels, s, s] uint8, crops or views beside those in `pixels`

    def pin_memory(self) -> RawBatch:
        small = None if self.small is None else self.small.pin_memory()
        return RawBatch(self.pixels.pin_memory(), self.indices, self.sizes, small)


class Readers:
    """The loader processes for everything that a worker reads; they start with the first pass and stay.

    workers: how many (None: as configured, else none: then this process reads).
    """

    def __init__(self, config: RunConfig, device: torch.device, workers: int | None = None):
        self._config, self._device = config, device
        self._workers = workers if workers is not None else config.data.loader_workers or 0
        self._reads: list[Callable[[list[Any]], RawBatch]] = []
        self._pass = _Pass()
        self._loader: DataLoader | None = None

    def add(self, read: Callable[[list[Any]], RawBatch]) -> int:
        """Takes a further way to read a list of items, and gives back the number that `batches` takes.

        The processes know all of them before the first pass.
        """
        assert self._loader is None, "the loader processes have started"
        self._reads.append(read)
        return len(self._reads) - 1

    def batches(self, which: int, items: Iterable[list[Any]]) -> Iterator[RawBatch]:
        """Reads each of the lists, in the way of this number. With processes, one pass at a time.

        Raises DataError for a file that does not decode.
        """
        if self._loader is None:
            self._loader = self._build_loader()
        self._pass.lists = ([(which, item) for item in entry] for entry in items)
        return _with_plain_errors(iter(self._loader))

    def _build_loader(self) -> DataLoader:
        # Has its own generator: the loader draws a seed each pass, which must not come from the training's.
        options: dict[str, Any] = {
            "num_workers": self._workers,
            "pin_memory": self._device.type == "cuda",
            "generator": torch.Generator(),
        }
        if self._workers:
            options |= {
                "multiprocessing_context": "forkserver",
                "persistent_workers": True,
                "timeout": READ_TIMEOUT_S,
                "prefetch_factor": max(batches_ahead(self._config), 1),
            }
        return DataLoader(_Items(self._reads), batch_sampler=self._pass, collate_fn=_as_is, **options)  # type: ignore[arg-type]


class _Pass:
    """The lists of items of the next pass: torch asks for them once at its beginning."""

    lists: Iterable[list[tuple[int, Any]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        return iter(self.lists)


class _Items(Dataset[RawBatch]):
    """Items (way to read, item) as a data set of torch."""

    def __init__(self, reads: list[Callable[[list[Any]], RawBatch]]):
        self.reads = reads

    def __getitems__(self, items: list[tuple[int, Any]]) -> RawBatch:
        return self.reads[items[0][0]]([item for _, item in items])


def _with_plain_errors(batches: Iterator[RawBatch]) -> Iterator[RawBatch]:
    """The batches; a file that does not decode gives the usual sentence, not a process's traceback."""
    try:
        yield from batches
    except DataError as error:
        last_line = str(error).strip().splitlines()[-1]
        kind = f"{DataError.__module__}.{DataError.__qualname__}: "
        raise DataError(last_line.removeprefix(kind)) from error


class ReferencePairs:
    """Both views of each image and its small ones, by torchvision."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.seed = images, config.seed
        from pcl_ray.data.reference_views import random_view  # torchvision, two seconds

        self.view = random_view(config.augment, config.data.channels)
        self.small_view = random_view(config.augment, config.data.channels, small=True)
        self.small_crops = config.augment.small_crops

    def __call__(self, items: list[tuple[int, int]]) -> RawBatch:
        """The views of items (epoch, index)."""
        # The views draw from torch's global generator; the training's randomness must not depend on that.
        before = torch.default_generator.get_state()
        views = [self._views(epoch, index) for epoch, index in items]
        torch.default_generator.set_state(before)
        return _raw_batch(views, items)

    def _views(self, epoch: int, index: int) -> list[Tensor]:
        """Views [channels, S, S] uint8, the two large ones first."""
        image = as_tensor(self.images.read(index))
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
        torch.default_generator.manual_seed(int(seed >> 1))
        # in this order: the small ones change nothing about the others
        kinds = [self.view] * 2 + [self.small_view] * self.small_crops
        return [view(image) for view in kinds]


def _raw_batch(views: list[list[Tensor]], items: list[tuple[int, int]]) -> RawBatch:
    """Views of each item: the first two as pixels, the others, if there are any, as small ones."""
    large = torch.stack([torch.stack(own[:2]) for own in views])
    small = torch.stack([torch.stack(own[2:]) for own in views]) if len(views[0]) > 2 else None
    return RawBatch(large, torch.tensor([index for _, index in items]), small=small)


class CropPairs:
    """Two crops of each file, and small ones; it is decoded once, and no larger than these need."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.seed = images, config.augment, config.seed
        self.channels, self.reduced = config.data.channels, config.data.reduced_decoding

    def __call__(self, items: list[tuple[int, int]]) -> RawBatch:
        """The views of items (epoch, index)."""
        return _raw_batch([self._crops(epoch, index) for epoch, index in items], items)

    def _crops(self, epoch: int, index: int) -> list[Tensor]:
        """Crops [channels, S, S] uint8, the two large ones first."""
        draws: list[ViewDraws] = []
        small = [small_crop_size(self.augment)] * self.augment.small_crops
        sides = [self.augment.image_size] * 2 + small

        def scale(height: int, width: int) -> float:
            size, indices = np.array([[height, width]]), np.array([index])
            for view in range(len(sides)):
                draws.append(view_draws(self.augment, self.channels, self.seed, epoch, indices, view, size))
            return max(side / view.boxes[0, 2:].min() for side, view in zip(sides, draws, strict=True))

        picture = decode_reduced(_decoder(self.images, index), scale, reduced=self.reduced)
        crops: list[Tensor] = []
        for side, view in zip(sides, draws, strict=True):
            crop = cut(picture.pixels, view.boxes[0] / picture.reduced_by, side)
            crops.append(as_tensor(crop[:, ::-1] if view.flipped[0] else crop))
        return crops


class EvaluationViews:
    """The evaluation view of each file."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.reduced = images, config.augment, config.data.reduced_decoding
        self.view = evaluation_view(config.augment)

    def __call__(self, indices: list[int]) -> RawBatch:
        views = torch.stack([self._view(index) for index in indices])
        return RawBatch(views, torch.as_tensor(np.asarray(indices), dtype=torch.long))

    def _view(self, index: int) -> Tensor:
        """[channels, S, S] uint8."""
        return view_of_file(_decoder(self.images, index), self.augment, self.view, reduced=self.reduced)


def _decoder(images: Images, index: int) -> Callable[[Scale], np.ndarray]:
    """Reads one image at a scale that suffices; whole where it is not in a file."""

    def decode(scale: Scale) -> np.ndarray:
        if isinstance(images, EncodedImages):
            return images.read(index, scale)
        pixels = images.read(index)
        scale(*pixels.shape[:2])
        return pixels

    return decode


def _as_is(batch: object) -> object:
    return batch
