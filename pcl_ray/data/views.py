"""The random views of a whole batch, on the device that trains: what `augment.engine: batch` does.

images in memory   [b, H, W, channels] uint8 ─→ device ─→ crop, resize, flip ─┐
files: crops of the loader processes   [b, channels, S, S] uint8 ─→ device ───┴→ shift, rotation, shear
      └→ jitter, grey, blur → normalised floats → erasing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data import colour
from pcl_ray.data.draws import ViewDraws, view_draws
from pcl_ray.data.resample import resample, warp
from pcl_ray.plan import small_crop_size


class Views:
    """Makes the views of `config.augment`; on a CPU with two threads or more, every other one in a thread.

    piece: how many numbers a large batch's views are made of at a time on a CPU: its memory stays bounded.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, piece: int = 2**24):
        self._augment = config.augment
        self._size, self._small_size = config.augment.image_size, small_crop_size(config.augment)
        self._channels = config.data.channels
        self._seed = config.seed
        self._device = device
        self._piece = piece
        in_threads = device.type == "cpu" and torch.get_num_threads() > 1
        self._second_thread = ThreadPoolExecutor(1, "views") if in_threads else None

    def draws(self, epoch: int, indices: np.ndarray, view: int, sizes: np.ndarray) -> ViewDraws:
        """The random numbers of view 0 (query), 1 (key) or 2 and on (small ones) of these images."""
        return view_draws(self._augment, self._channels, self._seed, epoch, indices, view, sizes)

    def of_images(
        self, pixels: Tensor, epoch: int, indices: Tensor, sizes: np.ndarray | None = None
    ) -> tuple[Tensor, ...]:
        """Query, key and small views [b, channels, S, S] float32 of images [b, H, W, channels] uint8.

        sizes: [b, 2] height and width of the original images, where they differ from these.
        """
        height, width = pixels.shape[1:3]
        if sizes is None:
            sizes = np.tile((height, width), (len(pixels), 1))

        def make(view: int) -> Tensor:
            draws = self.draws(epoch, indices.numpy(), view, sizes)
            boxes = draws.boxes * np.tile(np.array((height, width)) / sizes, 2)
            side = self._size if view < 2 else self._small_size
            return self._finished(self._cropped(on_device, boxes, draws.flipped, side), draws)

        on_device = pixels.to(self._device, non_blocking=True)
        return self._each(make)

    def of_crops(
        self, crops: Tensor, epoch: int, indices: Tensor, small: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Query, key and small views, as `of_images`, of crops [b, 2, channels, S, S] uint8, one for each
        view, and `small` [b, n, channels, s, s].
        """
        unused = np.ones((len(crops), 2), dtype=np.int64)
        on_device = [
            view
            for part in (crops, small)
            if part is not None
            for view in part.to(self._device, non_blocking=True).unbind(dim=1)
        ]
        return self._each(
            lambda view: self._finished(
                on_device[view] / 255, self.draws(epoch, indices.numpy(), view, unused)
            )
        )

    def _cropped(self, pixels: Tensor, boxes: np.ndarray, flipped: np.ndarray, size: int) -> Tensor:
        """Cuts, resizes and flips: [b, channels, size, size] in 0..1."""
        boxes_B4, flipped_B = (
            torch.from_numpy(part).to(pixels.device, non_blocking=True)
            for part in (boxes.astype(np.float32), flipped)
        )
        count = len(pixels)
        if not pixels.is_cuda:
            count = max(1, self._piece // max(pixels[0].numel(), self._channels * size * size))
        pieces = [
            resample(piece.permute(0, 3, 1, 2).float().contiguous().div_(255), box, size, flip)
            for piece, box, flip in zip(
                pixels.split(count), boxes_B4.split(count), flipped_B.split(count), strict=True
            )
        ]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _finished(self, views: Tensor, draws: ViewDraws) -> Tensor:
        """What is done to crops [b, channels, S, S] in 0..1, up to the normalised view."""
        views = views.contiguous()
        if draws.warps is not None:
            views = warp(views, draws.warps)
        if self._augment.version == "v1":
            views = colour.jitter(colour.to_grey(views, draws.grey), draws)
        else:
            views = colour.to_grey(colour.jitter(views, draws), draws.grey)
            views = colour.blur(views, draws.sigmas, colour.blur_size(views.shape[-1]))
        views = colour.normalise(views, self._augment)
        return views if draws.erased is None else colour.erase(views, draws.erased)

    def _each(self, make: Callable[[int], Tensor]) -> tuple[Tensor, ...]:
        """What `make` gives for each view."""
        count = 2 + self._augment.small_crops
        if self._second_thread is None:
            return tuple(make(view) for view in range(count))
        with _one_thread():
            others = [self._second_thread.submit(make, view) for view in range(1, count, 2)]
            made = {view: make(view) for view in range(0, count, 2)}
            return tuple(made[view] if view in made else others[view // 2].result() for view in range(count))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch uses one thread within: handing out operations this small costs more than a core gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
