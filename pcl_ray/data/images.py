"""A set of images: position i always means the same image. In memory or in files; neither needs torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, Self

import numpy as np
from PIL import Image

from pcl_ray.data.label_sets import LabelSets, label_bytes
from pcl_ray.data.pictures.decoding import DecodingOptions, Scale, decode, formats, quiet, upright_size
from pcl_ray.data.pictures.looks import content_hash
from pcl_ray.errors import DataError
from pcl_ray.support.files import size_and_time
from pcl_ray.support.paths import path_text

NO_LABEL = -1


class Images(Protocol):
    """N images, each [H, W, channels] uint8."""

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int64, NO_LABEL where an image has none; None where no image has."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def label_sets(self) -> LabelSets | None:
        """All labels of each image, where images have several; `labels` has the first of them."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same images in the same order, on any machine."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray: ...

    def take(self, indices: np.ndarray) -> Images:
        """The images at these positions, in this order."""
        ...

    def with_labels(self, labels: np.ndarray) -> Images:
        """The same images with other labels, [N] int64. Where these are NO_LABEL, other ones go, too."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in one array, which all Ray workers of a node share without copying it."""

    pixels: np.ndarray  # [N, H, W, channels] uint8
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    # For pictures squeezed into squares (`datasets.in_memory`): their sizes, and their files' fingerprint.
    sizes: np.ndarray | None = None  # [N, 2] int64, height and width
    source_fingerprint: str | None = None
    label_sets: LabelSets | None = None
    file_names: np.ndarray | None = None  # [N] utf-8 bytes, of pictures that came from files

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The pixels of the images at these positions, [b, H, W, channels]; a copy, which may be written."""
        return np.take(self.pixels, indices, axis=0)

    def take(self, indices: np.ndarray) -> ArrayImages:
        parts = (self.labels, self.sizes, self.file_names)
        labels, sizes, names = (None if part is None else part[indices] for part in parts)
        sets = None if self.label_sets is None else self.label_sets.take(indices)
        pixels = self.pixels[indices]
        return replace(
            self,
            pixels=pixels,
            labels=labels,
            sizes=sizes,
            source_fingerprint=None,
            label_sets=sets,
            file_names=names,
        )

    def with_labels(self, labels: np.ndarray) -> ArrayImages:
        label_sets = None if self.label_sets is None else self.label_sets.only(labels != NO_LABEL)
        return replace(self, labels=labels, label_sets=label_sets)

    @property
    def fingerprint(self) -> str:
        if self.source_fingerprint:
            return self.source_fingerprint
        sample = np.linspace(0, len(self) - 1, min(len(self), 1024)).astype(int) if len(self) else []
        return digest(
            str(self.pixels.shape).encode(),
            np.ascontiguousarray(self.pixels[sample]).tobytes(),
            *label_bytes(self.labels, self.label_sets),
        )


class EncodedImages:
    """Images that are decoded when they are read. Subclasses say where the bytes of each are."""

    if TYPE_CHECKING:  # fields of the subclasses, as `Images` says

        @property
        def channels(self) -> int: ...
        @property
        def file_names(self) -> np.ndarray:
            """[N] utf-8 bytes: files relative to their folder, or members of shards."""
            ...

        @property
        def options(self) -> DecodingOptions: ...
        @property
        def labels(self) -> np.ndarray | None: ...
        @property
        def class_names(self) -> tuple[str, ...]: ...
        @property
        def label_sets(self) -> LabelSets | None: ...

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def take(self, indices: np.ndarray) -> Self:
        raise NotImplementedError

    def with_options(self, options: DecodingOptions) -> Self:
        """The same images, decoded otherwise."""
        return replace(self, options=options)  # type: ignore[type-var]

    def with_labels(self, labels: np.ndarray) -> Self:
        """See `Images.with_labels`."""
        label_sets = None if self.label_sets is None else self.label_sets.only(labels != NO_LABEL)
        return replace(self, labels=labels, label_sets=label_sets)  # type: ignore[type-var]

    def name(self, index: int) -> str:
        """What messages and tables call this image: its file, or the member of a shard, as `path_text`."""
        raise NotImplementedError

    def encoded(self, index: int) -> Path | IO[bytes]:
        """The file of one image, or its bytes as a file. Raises OSError or DataError."""
        raise NotImplementedError

    @property
    def content_state(self) -> list[object]:
        """Changes where a file does: whether all decode has to be found out anew then."""
        raise NotImplementedError

    def fetch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Copies to this node what images are read from and what it lacks. Raises DataError.

        progress: called with the numbers done and of all.
        """

    def read(self, index: int, scale: Scale | None = None) -> np.ndarray:
        """Decodes one image, from one thread at a time; scale: see the function `decode`."""
        with quiet():
            return self.decode(index, scale)

    def decode(self, index: int, scale: Scale | None = None) -> np.ndarray:
        """Decodes one image, from any thread, within `quiet`.

        Raises DataError, naming the file, where it does not decode: it broke or went after the check, or
        `data.check_images` is off.
        """
        with self._named(index):
            return decode(self.encoded(index), self.channels, scale=scale, options=self.options)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright picture: without decoding it, unless its margins are cut. Raises as
        `decode` does.
        """
        if self.options.trim:
            height, width = self.decode(index).shape[:2]
            return height, width
        with self._named(index), Image.open(self.encoded(index), formats=formats()) as picture:
            return upright_size(picture)

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Pillow raises many kinds, most of them without the file's name
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{self.name(index)} cannot be read: {reason}; data.check_images=true finds all such files"
                " before a run"
            ) from error


@dataclass(frozen=True, eq=False)
class SeenFiles:
    """N files as they were when all of them were looked at."""

    states: np.ndarray  # [N, 2] int64: size and time
    hashes: np.ndarray  # [N] bytes: `looks.content_hash`, as hexadecimal digits

    @classmethod
    def of(cls, paths: Iterable[Path], hashes: np.ndarray) -> SeenFiles:
        states = np.array([size_and_time(path) for path in paths], np.int64).reshape(-1, 2)
        return cls(states, hashes)

    def take(self, indices: np.ndarray) -> SeenFiles:
        return SeenFiles(self.states[indices], self.hashes[indices])

    def has_changed(self, index: int, path: Path) -> bool:
        """Whether a file has other content now. One that has gone, or cannot be read, has not."""
        state = size_and_time(path)
        if state in ((-1, -1), tuple(self.states[index].tolist())):
            return False
        with suppress(OSError):
            return content_hash(path.read_bytes()).hex().encode() != self.hashes[index]
        return False


@dataclass(frozen=True, eq=False)
class FileImages(EncodedImages):
    """Images in files, decoded when they are read. seen: they must not change any more."""

    root: str
    # [N] bytes of names, relative to root: one numpy array serves all Ray workers of a node, a list does not.
    files: np.ndarray
    channels: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    label_sets: LabelSets | None = None
    options: DecodingOptions = DecodingOptions()
    seen: SeenFiles | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def file_names(self) -> np.ndarray:
        return self.files

    def path(self, index: int) -> Path:
        """The file of one image."""
        return Path(self.root, os.fsdecode(self.files[index]))

    def name(self, index: int) -> str:
        return path_text(self.path(index))

    def encoded(self, index: int) -> Path:
        return self.path(index)

    def decode(self, index: int, scale: Scale | None = None) -> np.ndarray:
        """See `EncodedImages.decode`; raises DataError for a changed file too."""
        if self.seen is not None and self.seen.has_changed(index, self.path(index)):
            raise DataError(
                f"{self.name(index)} has changed since the run looked at it: put the earlier file back,"
                " or start a new run"
            )
        return super().decode(index, scale)

    @property
    def content_state(self) -> list[object]:
        return [(path, *size_and_time(path)) for path in map(self.path, range(len(self)))]

    def take(self, indices: np.ndarray) -> FileImages:
        labels = None if self.labels is None else self.labels[indices]
        sets = None if self.label_sets is None else self.label_sets.take(indices)
        seen = None if self.seen is None else self.seen.take(indices)
        return replace(self, files=self.files[indices], labels=labels, label_sets=sets, seen=seen)

    @property
    def fingerprint(self) -> str:
        return digest(b"\n".join(self.files.tolist()), *label_bytes(self.labels, self.label_sets))


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """[N, H, W] or [N, H, W, 1|3] uint8 to [N, H, W, channels]; grey by ITU-R 601 weights, like Pillow."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[-1] == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


def digest(*parts: bytes) -> str:
    """A hash of parts of which none runs into the next."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(len(part).to_bytes(8, "little"))
        result.update(part)
    return result.hexdigest()
