"""Draws what is to be shown of a run, beside the training: a thread of low priority takes snapshots and
views, and leaves pictures for the dashboard.

snapshot ─→ thumbnails of its images → projection to the map → pictures/*.png → MLflow's step slider └→
exhibit.npz, from which reports are made
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from pcl_ray.data.images import ArrayImages, EncodedImages, Images
from pcl_ray.errors import DataError
from pcl_ray.runs.folder import SNAPSHOT_FILE
from pcl_ray.snapshot import Snapshot, Thumbnails, save_snapshot
from pcl_ray.training.events import Event

_SIDE = 48  # px of a thumbnail at the most
_BEHIND = 2  # snapshots or views that wait; with more of them, maps are left out until it has caught up
_NICE = 5  # the training comes first, and yet the pictures come


class Recorder(Protocol):
    """What takes the pictures: `tracking.MlflowRun`, as far as pictures go."""

    def log_image(self, path: Path, key: str, step: int) -> None: ...


class Gallery:
    """Draws in a thread of its own: `handle` takes events at once, `close` waits for what is being drawn.
    Nothing that goes wrong here reaches the training.

    images: gives the training images, called in the thread. small: prototype sheets alone, as the many trials
    of a sweep have them.
    """

    def __init__(
        self,
        folder: Path,
        images: Callable[[], Images],
        recorder: Recorder,
        warn: Callable[[str], None],
        *,
        small: bool = False,
    ):
        self._folder = folder
        self._images = images
        self._recorder = recorder
        self._warn = warn
        self._small = small
        self._waiting: queue.Queue[Event | None] = queue.Queue()
        self._last: Snapshot | None = None
        self._failed = self._closed = False
        self._thread: threading.Thread | None = None

    def handle(self, event: Event) -> None:
        if event.kind not in ("snapshot", "views") or (self._small and event.kind == "views"):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gallery", daemon=True)
            self._thread.start()
        self._waiting.put(event)

    def close(self, timeout_s: float = 120) -> None:
        """Waits until all is drawn; after `timeout_s` seconds what is left stays undrawn."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._closed = True  # another may draw in this folder soon
                self._warn(
                    f"the pictures of the clusters were not finished within {timeout_s:g} s; the report shows"
                    " earlier ones"
                )
            self._thread = None

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # not everywhere may a thread have a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (event := self._waiting.get()) is not None:
            try:
                if event.snapshot is not None:
                    self._show(event.snapshot)
                elif event.views is not None:
                    from pcl_ray.report import pictures

                    self._leave("views", pictures.views_sheet(event.views), event.step)
            except Exception as error:  # a full disk, a picture that went meanwhile
                if not self._failed:
                    self._warn(
                        f"pictures of the clusters could not be drawn ({type(error).__name__}: {error});"
                        " training is not affected"
                    )
                self._failed = True

    def _show(self, snapshot: Snapshot) -> None:
        from pcl_ray.report import pictures
        from pcl_ray.report.projection import project

        images = self._images()
        thumbnails = thumbnails_of(images, _on_sheets(snapshot) if self._small else snapshot.images())
        # the newest map is worth the wait, not every one before it
        if not self._small and self._waiting.qsize() <= _BEHIND:
            start = None
            if self._last is not None and np.array_equal(self._last.sample, snapshot.sample):
                start = self._last.projection
            snapshot = snapshot.with_map(*project(snapshot.features, start))
            self._last = snapshot
        if self._closed:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        without_features = replace(snapshot, features=np.empty((0, 0), np.float16))
        save_snapshot(self._folder / SNAPSHOT_FILE, without_features, thumbnails)
        for number in range(len(snapshot.clusterings)):
            self._leave(
                f"prototypes/{number}",
                pictures.prototype_sheet(snapshot, number, thumbnails, images.class_names),
                snapshot.step,
            )
        if self._small:
            return
        if snapshot.clusterings:
            self._leave("clusters/phi", pictures.histograms(snapshot, "phi"), snapshot.step)
            self._leave("clusters/sizes", pictures.histograms(snapshot, "sizes"), snapshot.step)
        if (drawn := pictures.feature_map(snapshot, images.class_names)) is not None:
            self._leave("map", drawn, snapshot.step)

    def _leave(self, key: str, picture: Image.Image, step: int) -> None:
        if self._closed:
            return
        path = self._folder / "pictures" / f"{key.replace('/', '-')}-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=False)
        self._recorder.log_image(path, key, step)


def _on_sheets(snapshot: Snapshot) -> np.ndarray:
    """[t] int64, rising: the images of prototypes that have a role."""
    parts = [np.empty(0, np.int64)]
    for clustering in snapshot.clusterings:
        prototypes = [int(prototype) for role in clustering.roles().values() for prototype in role]
        rows = [clustering.row_of(prototype) for prototype in prototypes]
        parts += [clustering.nearest[rows].ravel(), clustering.farthest[rows].ravel()]
    images = np.unique(np.concatenate(parts))
    return images[images >= 0]


def thumbnails_of(images: Images, ids: np.ndarray) -> Thumbnails:
    """Thumbnails of these images [t]: middle squares of at most 48 px; grey where a file cannot be read."""
    pictures = [_read(images, int(index)) for index in ids]
    side = min(_SIDE, max((max(picture.size) for picture in pictures if picture is not None), default=_SIDE))
    pixels = np.full((len(ids), side, side, 3), 200, np.uint8)
    for row, picture in enumerate(pictures):
        if picture is not None:
            pixels[row] = np.asarray(_square(picture, side))
    return Thumbnails(np.asarray(ids, np.int64), pixels)


def _read(images: Images, index: int) -> Image.Image | None:
    """The image, its shorter side at most 48 px so that thousands fit; None where it cannot be read."""

    def enough(height: int, width: int) -> float:
        return min(1.0, 2 * _SIDE / max(1, min(height, width)))

    try:
        # `decode`: `read` silences Pillow's warnings, which only one thread at a time may do
        pixels = images.decode(index, enough) if isinstance(images, EncodedImages) else images.read(index)
    except DataError:
        return None
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    if isinstance(images, ArrayImages) and images.sizes is not None:  # it was squeezed into a square
        height, width = images.sizes[index].tolist()
        wide = max(1, round(picture.width * width / max(height, width)))
        high = max(1, round(picture.height * height / max(height, width)))
        picture = picture.resize((wide, high))
    factor = _SIDE / min(picture.size)
    if factor >= 1:
        return picture
    wide, high = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((wide, high), Image.Resampling.BOX)


def _square(picture: Image.Image, side: int) -> Image.Image:
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    middle = picture.crop((left, top, left + short, top + short))
    if short == side:
        return middle
    way = Image.Resampling.NEAREST if short <= side // 2 else Image.Resampling.LANCZOS
    return middle.resize((side, side), way)
