"""A set of images: position i always means the same image. In memory or in files; neither needs torch."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, Self

import numpy as np
from PIL import Image

from pcl_ray.data.label_sets import LabelSets, label_bytes
from pcl_ray.errors import DataError
from pcl_ray.support.files import size_and_time
from pcl_ray.support.paths import path_text

NO_LABEL = -1
_ORIENTATION = 0x0112  # EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
# A file's content tells its kind. EPS is left out: it is a program, which Ghostscript would run.
_FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000"),
    *("AVIF", "DIB", "ICO", "TGA", "PCX", "SGI", "PSD"),
)
_SLACK = 1e-6  # px
Scale = Callable[[int, int], float]


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

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The pixels of the images at these positions, [b, H, W, channels]; a copy, which may be written."""
        return np.take(self.pixels, indices, axis=0)

    def take(self, indices: np.ndarray) -> ArrayImages:
        labels, sizes = (None if part is None else part[indices] for part in (self.labels, self.sizes))
        sets = None if self.label_sets is None else self.label_sets.take(indices)
        pixels = self.pixels[indices]
        return replace(
            self, pixels=pixels, labels=labels, sizes=sizes, source_fingerprint=None, label_sets=sets
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
            return decode(self.encoded(index), self.channels, scale=scale)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright picture, without decoding it. Raises as `decode` does."""
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
class FileImages(EncodedImages):
    """Images in files, decoded when they are read."""

    root: str
    # [N] bytes of names, relative to root: one numpy array serves all Ray workers of a node, a list does not.
    files: np.ndarray
    channels: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    label_sets: LabelSets | None = None

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """The file of one image."""
        return Path(self.root, os.fsdecode(self.files[index]))

    def name(self, index: int) -> str:
        return path_text(self.path(index))

    def encoded(self, index: int) -> Path:
        return self.path(index)

    @property
    def content_state(self) -> list[object]:
        return [(path, *size_and_time(path)) for path in map(self.path, range(len(self)))]

    def take(self, indices: np.ndarray) -> FileImages:
        labels = None if self.labels is None else self.labels[indices]
        sets = None if self.label_sets is None else self.label_sets.take(indices)
        return replace(self, files=self.files[indices], labels=labels, label_sets=sets)

    @property
    def fingerprint(self) -> str:
        return digest(b"\n".join(self.files.tolist()), *label_bytes(self.labels, self.label_sets))


@functools.cache
def formats() -> tuple[str, ...]:
    """The kinds of files that are opened, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(file: Path | IO[bytes], channels: int, *, scale: Scale | None = None) -> np.ndarray:
    """The picture upright as [H, W, channels] uint8, from any mode: transparency on white, 16 bits as 8.

    scale: gives the share of its size at which a picture of this height and width (upright) suffices: a JPEG
    is decoded at a half, a quarter or an eighth where that is enough, which is several times faster. Other
    formats come whole.
    Raises OSError, ValueError and other kinds that Pillow raises for damaged files. Its warnings are the
    caller's to silence: see `quiet`.
    """
    with Image.open(file, formats=formats()) as image:
        if scale is not None:
            share = scale(*upright_size(image))
            image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        # else Pillow maps the file, and scrambles uncompressed TIFFs that are to be turned
        image.filename = ""
        image.load()
        return as_array(upright(image), channels)


def reduction(height: int, pixels: np.ndarray) -> int:
    """The factor by which a picture of this height was reduced when it was decoded: 1, 2, 4 or 8."""
    return round(height / len(pixels))


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """A picture that was perhaps decoded smaller than it is."""

    pixels: np.ndarray  # [H, W, channels] uint8
    size: tuple[int, int]  # height and width of the upright picture in its file
    reduced_by: int  # 1, 2, 4 or 8


def decode_reduced(
    decode: Callable[[Scale], np.ndarray], scale: Scale, *, reduced: bool = True
) -> DecodedPicture:
    """Decodes a picture by `decode` at a scale that suffices, or whole where `reduced` is False.

    `scale` is called once in any case, with the picture's height and width.
    """
    sizes: list[tuple[int, int]] = []

    def share(height: int, width: int) -> float:
        sizes.append((height, width))
        return max(scale(height, width), 0.0 if reduced else 1.0)

    pixels = decode(share)
    return DecodedPicture(pixels, sizes[0], reduction(sizes[0][0], pixels))


def cut(pixels: np.ndarray, box: np.ndarray, side: int, *, within: bool = True) -> np.ndarray:
    """[side, side, channels] uint8: the box (top, left, height, width, in pixels, fractions allowed) of [H,
    W, channels], resized with antialiasing.

    within: pixels outside the box, rounded up, do not count, as for a picture that was cropped first.
    """
    shape = np.array(pixels.shape[:2])
    first, last = box[:2].clip(0), np.minimum(box[:2] + box[2:], shape)
    if within:
        top, left = np.floor(first + _SLACK).astype(int)
        bottom, right = np.ceil(last - _SLACK).astype(int)
        pixels = pixels[top:bottom, left:right]
        first = first - (top, left)
        last = np.minimum(last - (top, left), pixels.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
    part = (first[1], first[0], last[1], last[0])
    resized = picture.resize((side, side), Image.Resampling.BILINEAR, box=part)
    return np.asarray(resized).reshape(side, side, pixels.shape[2])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened picture once it is turned as its EXIF orientation asks."""
    if _orientation(image) in _ON_ITS_SIDE:
        return image.width, image.height
    return image.height, image.width


@contextmanager
def quiet() -> Iterator[None]:
    """Holds Pillow's warnings back (damaged EXIF, large pictures): what matters is whether a picture decodes.

    Enter it from one thread at a time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """[H, W, channels] uint8 of a Pillow image of any mode."""
    match image.mode:
        case "La":
            image = image.convert("LA")
        case "LAB":
            image = image.convert("RGB")  # Pillow has no way from LAB to grey
        case mode if mode.startswith("I") or mode == "F":
            image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels[:, :, None] if channels == 1 else pixels


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


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation asks. `ImageOps.exif_transpose` also writes the tags anew,
    and so refuses sound pictures with one damaged tag.
    """
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # no EXIF that can be read says nothing about the pixels
        return 0
    return orientation if isinstance(orientation, int) else 0


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats in 0..1 or 0..255, as L; the transparent value becomes white."""
    values = np.nan_to_num(np.array(image))
    if image.mode == "F":
        scaled = values * 255 if values.max(initial=0) <= 1 else values
    else:
        scaled = values / 257  # 65535 → 255
    if "transparency" in image.info:
        scaled = np.where(values == image.info["transparency"], 255, scaled)
    return Image.fromarray(np.clip(scaled, 0, 255).round().astype(np.uint8))


def digest(*parts: bytes) -> str:
    """A hash of parts of which none runs into the next."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(len(part).to_bytes(8, "little"))
        result.update(part)
    return result.hexdigest()
