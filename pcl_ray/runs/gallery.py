"""Draws what is to be shown of a run, beside the training: a thread of low priority takes snapshots and
views, and leaves pictures for the dashboard.

snapshot ─→ thumbnails of its images → projection to the map → pictures/*.png → MLflow's step slider └→
exhibit.npz, from which reports are made
"""

from __future__ import annotations

import csv
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

from pcl_ray.data.images import NO_LABEL, ArrayImages, EncodedImages, Images
from pcl_ray.errors import DataError
from pcl_ray.runs.folder import MEMBERS_FILE, SNAPSHOT_FILE
from pcl_ray.snapshot import ClusteringSnapshot, Snapshot, Thumbnails, save_snapshot
from pcl_ray.support.files import atomic_file
from pcl_ray.support.paths import path_text
from pcl_ray.training.events import Event

_SIDE = 48  # px of a thumbnail at the most
_BEHIND = 2  # snapshots or views that wait; with more of them, maps are left out until it has caught up
_MOST_NAMES = 20_000  # images whose files' names go with the thumbnails
_ALL_SHOWN = 2_000  # images of which all get a thumbnail at the end
_NICE = 5  # the training comes first, and yet the pictures come


class Recorder(Protocol):
    """What takes the pictures: `tracking.MlflowRun`, as far as pictures go."""

    def log_image(self, path: Path, key: str, step: int) -> None: ...


class Gallery:
    """Draws in a thread of its own: `handle` takes events at once, `close` waits for what is being drawn.
    Nothing that goes wrong here reaches the training.

    images: gives the training images, called in the thread. small: prototype sheets alone, as the many trials
    of a sweep have them. hold_s: what is shown before the first step is drawn after it, or after so long.
    """

    def __init__(
        self,
        folder: Path,
        images: Callable[[], Images],
        recorder: Recorder,
        warn: Callable[[str], None],
        *,
        small: bool = False,
        hold_s: float = 0.0,
    ):
        self._hold_s, self._released = hold_s, threading.Event()
        self._folder = folder
        self._images = images
        self._recorder = recorder
        self._warn = warn
        self._small = small
        self._waiting: queue.Queue[Event | None] = queue.Queue()
        self._last: Snapshot | None = None  # with a map
        self._shown: Snapshot | None = None
        self._failed = self._closed = False
        self._thread: threading.Thread | None = None

    def handle(self, event: Event) -> None:
        if event.kind == "alive":
            self._released.set()
        if event.kind not in ("snapshot", "views") or (self._small and event.kind == "views"):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gallery", daemon=True)
            self._thread.start()
        self._waiting.put(event)

    def close(self, timeout_s: float = 120) -> None:
        """Waits until all is drawn; after `timeout_s` seconds what is left stays undrawn."""
        self._released.set()
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
        self._released.wait(self._hold_s)
        while (event := self._waiting.get()) is not None:
            self._try(lambda event=event: self._draw(event))
        self._try(self._list_members)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a full disk, a picture that went meanwhile
            if not self._failed:
                self._warn(
                    f"pictures of the clusters could not be drawn ({type(error).__name__}: {error});"
                    " training is not affected"
                )
            self._failed = True

    def _draw(self, event: Event) -> None:
        if event.snapshot is not None:
            self._show(event.snapshot)
        elif event.views is not None:
            from pcl_ray.report import pictures

            self._leave("views", pictures.views_sheet(event.views), event.step)

    def _list_members(self) -> None:
        """Writes the prototypes of every image, and pictures of all of them where they are few."""
        snapshot = self._shown
        if snapshot is None or not snapshot.members.size or self._closed:
            return
        images = self._images()
        write_members(snapshot, images, self._folder / MEMBERS_FILE)
        if not self._small and snapshot.num_images <= _ALL_SHOWN:
            thumbnails = thumbnails_of(images, np.arange(snapshot.num_images))
            save_snapshot(self._folder / SNAPSHOT_FILE, snapshot, thumbnails)

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
        self._shown = without_features
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
    """Thumbnails of these images [t]: squares of at most 48 px with the whole picture on white; grey where a
    file cannot be read.
    """
    pictures = [_read(images, int(index)) for index in ids]
    side = min(_SIDE, max((max(picture.size) for picture in pictures if picture is not None), default=_SIDE))
    pixels = np.full((len(ids), side, side, 3), 200, np.uint8)
    for row, picture in enumerate(pictures):
        if picture is not None:
            pixels[row] = np.asarray(_square(picture, side))
    names = getattr(images, "file_names", None)
    names = np.empty(0, "S1") if names is None or len(names) > _MOST_NAMES else names
    return Thumbnails(np.asarray(ids, np.int64), pixels, names)


def _read(images: Images, index: int) -> Image.Image | None:
    """The image, its longer side at most 48 px so that thousands fit; None where it cannot be read."""

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
    factor = _SIDE / max(picture.size)
    if factor >= 1:
        return picture
    wide, high = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((wide, high), Image.Resampling.BOX)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a white square."""
    factor = side / max(picture.size)
    wide, high = (max(1, round(length * factor)) for length in picture.size)
    if picture.size != (wide, high):
        way = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
        picture = picture.resize((wide, high), way)
    if wide == high:
        return picture
    page = Image.new("RGB", (side, side), "white")
    page.paste(picture, ((side - wide) // 2, (side - high) // 2))
    return page


def write_members(snapshot: Snapshot, images: Images, path: Path) -> None:
    """Writes a table of all training images: number, file (empty where it came from none), label, and for
    every clustering the number of its prototype, how far its feature is from the raw centroid, and φ of that
    prototype; empty where an image has none. Files are written as `path_text`.

    Raises OSError.
    """
    names = getattr(images, "file_names", None)
    labels = images.labels
    header = ["image", "file", "label"]
    for clustering in snapshot.clusterings:
        header += [f"{what}_{clustering.num_clusters}" for what in ("prototype", "distance", "phi")]
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        for image in range(snapshot.num_images):
            name = "" if names is None else path_text(os.fsdecode(names[image]))
            label = ""
            if labels is not None and labels[image] != NO_LABEL:
                number = int(labels[image])
                label = images.class_names[number] if number < len(images.class_names) else str(number)
            row: list[object] = [image, name, label]
            for m, clustering in enumerate(snapshot.clusterings):
                row += _membership(clustering, int(snapshot.members[m, image]), snapshot.distances[m, image])
            rows.writerow(row)


def _membership(clustering: ClusteringSnapshot, prototype: int, distance: float) -> tuple[object, str, str]:
    if prototype < 0:
        return "", "", ""
    apart = "" if np.isnan(distance) else f"{distance:.5g}"
    return prototype, apart, f"{clustering.concentration[prototype]:.5g}"
