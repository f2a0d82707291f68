"""What is read from files, image by image, and the processes that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcl_ray.config import RunConfig
from pcl_ray.data.augment import evaluation_boxes, evaluation_scale, evaluation_view, random_view
from pcl_ray.data.draws import ViewDraws, view_draws
from pcl_ray.data.images import FileImages, Images, Scale, cut, reduction
from pcl_ray.errors import DataError
from pcl_ray.plan import batches_ahead

READ_TIMEOUT_S = 600  # a loader process that is silent for so long has died or hangs


@dataclass(frozen=True)
class Raw:
    """What is read for one step, before it goes to the device."""

    pixels: Tensor  # uint8
    indices: Tensor  # [b] int64
    sizes: np.ndarray | None = None  # [b, 2] of the original images, where others

    def pin_memory(self) -> Raw:
        return Raw(self.pixels.pin_memory(), self.indices, self.sizes)


class Readers:
    """One set of loader processes for everything that a worker reads; they start with the first pass and
    stay.

    workers: how many (None: as configured, else none: then it is read in this process).
    """

    def __init__(self, config: RunConfig, device: torch.device, workers: int | None = None):
        self._config, self._device = config, device
        self._workers = workers if workers is not None else config.data.loader_workers or 0
        self._reads: list[Callable[[list[Any]], Raw]] = []
        self._next = _Batches()
        self._loader: DataLoader | None = None

    def add(self, read: Callable[[list[Any]], Raw]) -> int:
        """A further way to read a list of items; all are known to the processes before the first pass. Gives
        the number that `batches` takes.
        """
        assert self._loader is None, "the loader processes have started"
        self._reads.append(read)
        return len(self._reads) - 1

    def batches(self, which: int, items: Iterable[list[Any]]) -> Iterator[Raw]:
        """Each of the lists, read. With processes, one pass at a time. Raises DataError for a file that does
        not decode.
        """
        if self._loader is None:
            self._loader = self._made()
        self._next.lists = ([(which, item) for item in entry] for entry in items)
        return _in_a_sentence(iter(self._loader))

    def _made(self) -> DataLoader:
        # A generator of its own: the loader draws a seed at every pass, which must not come out of the
        # training's randomness.
        options: dict[str, Any] = {
            "num_workers": self._workers,
            "pin_memory": self._device.type == "cuda",
            "generator": torch.Generator(),
        }
        if self._workers:
            ahead = max(batches_ahead(self._config), 1)
            options |= {
                "multiprocessing_context": "forkserver",
                "persistent_workers": True,
                "timeout": READ_TIMEOUT_S,
                "prefetch_factor": ahead,
            }
        return DataLoader(_All(self._reads), batch_sampler=self._next, collate_fn=_as_is, **options)  # type: ignore[arg-type]


class _Batches:
    """What the next pass reads: torch asks for it once at its beginning."""

    lists: Iterable[list[tuple[int, Any]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        return iter(self.lists)


class _All(Dataset[Raw]):
    def __init__(self, reads: list[Callable[[list[Any]], Raw]]):
        self.reads = reads

    def __getitems__(self, items: list[tuple[int, Any]]) -> Raw:
        return self.reads[items[0][0]]([item for _, item in items])


def _in_a_sentence(batches: Iterator[Raw]) -> Iterator[Raw]:
    """A file that does not decode is the sentence it is where no process reads, without that process's
    traceback.
    """
    try:
        yield from batches
    except DataError as error:
        raise DataError(
            str(error)
            .strip()
            .splitlines()[-1]
            .removeprefix(f"{DataError.__module__}.{DataError.__qualname__}: ")
        ) from error


class WholeViews:
    """Both views of each image, by torchvision."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.seed = images, config.seed
        self.view = random_view(config.augment, config.data.channels)

    def __call__(self, items: list[tuple[int, int]]) -> Raw:
        # The views draw from torch's global generator; the training's own randomness must not depend on who
        # augments.
        before = torch.default_generator.get_state()
        views = torch.stack([self._pair(epoch, index) for epoch, index in items])
        torch.default_generator.set_state(before)
        return Raw(views, torch.tensor([index for _, index in items]))

    def _pair(self, epoch: int, index: int) -> Tensor:
        image = as_tensor(self.images.read(index))
        torch.default_generator.manual_seed(
            int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1)
        )
        return torch.stack([self.view(image), self.view(image)])


class Crops:
    """Two crops of each file, which is decoded once, and no larger than the smaller crop needs."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.channels, self.seed = (
            images,
            config.augment,
            config.data.channels,
            config.seed,
        )
        self.reduced = config.data.reduced_decoding

    def __call__(self, items: list[tuple[int, int]]) -> Raw:
        return Raw(
            torch.stack([self._pair(epoch, index) for epoch, index in items]),
            torch.tensor([index for _, index in items]),
        )

    def _pair(self, epoch: int, index: int) -> Tensor:
        """[2, channels, S, S] uint8."""
        draws: list[ViewDraws] = []

        def place(height: int, width: int) -> float:
            size, one = np.array([[height, width]]), np.array([index])
            draws.extend(
                view_draws(self.augment, self.channels, self.seed, epoch, one, view, size)
                for view in range(2)
            )
            return self.augment.image_size / min(view.boxes[0, 2:].min() for view in draws)

        image, reduced_by = _read(self.images, index, place, self.reduced)
        crops = [cut(image, view.boxes[0] / reduced_by, self.augment.image_size) for view in draws]
        return torch.stack(
            [
                as_tensor(crop[:, ::-1] if view.flipped[0] else crop)
                for crop, view in zip(crops, draws, strict=True)
            ]
        )


class FixedViews:
    """The evaluation view of each file."""

    def __init__(self, images: Images, config: RunConfig):
        self.images, self.augment, self.reduced = images, config.augment, config.data.reduced_decoding
        self.view = evaluation_view(config.augment)

    def __call__(self, indices: list[int]) -> Raw:
        return Raw(
            torch.stack([self._view(index) for index in indices]),
            torch.as_tensor(np.asarray(indices), dtype=torch.long),
        )

    def _view(self, index: int) -> Tensor:
        """[channels, S, S] uint8."""
        sizes: list[tuple[int, int]] = []

        def place(height: int, width: int) -> float:
            sizes.append((height, width))
            return evaluation_scale(self.augment, height, width)

        image, reduced_by = _read(self.images, index, place, self.reduced)
        if reduced_by == 1:
            return self.view(as_tensor(image))
        box = evaluation_boxes(self.augment, torch.tensor(sizes))[0].numpy()
        return as_tensor(cut(image, box / reduced_by, self.augment.image_size, within=False))


def _read(images: Images, index: int, scale: Scale, reduced: bool) -> tuple[np.ndarray, int]:
    """A picture and by how much it was reduced: 1, 2, 4 or 8. `scale` is asked in any case: it also learns
    the picture's size from it.
    """
    if not isinstance(images, FileImages):
        pixels = images.read(index)
        scale(*pixels.shape[:2])
        return pixels, 1
    heights: list[int] = []

    def asked(height: int, width: int) -> float:
        heights.append(height)
        return max(scale(height, width), 0.0 if reduced else 1.0)

    pixels = images.read(index, asked)
    return pixels, reduction(heights[0], pixels)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """[H, W, channels] to [channels, H, W]; a copy, since images in shared memory are read-only."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8).copy())


def _as_is(batch: object) -> object:
    return batch
