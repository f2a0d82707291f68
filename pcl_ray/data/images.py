"""A set of images: position i always means the same image. Held in memory or read from files; neither needs
torch.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from pcl_ray.errors import DataError

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
# What a file is says its content, not its name; of all that Pillow knows, EPS is a program, which Ghostscript
# would run.
_FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "TIFF",
    "WEBP",
    "PPM",
    "JPEG2000",
    "AVIF",
    "DIB",
    "ICO",
    "TGA",
    "PCX",
    "SGI",
    "PSD",
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
    def fingerprint(self) -> str:
        """The same for the same images in the same order, on any machine."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray: ...

    def take(self, indices: np.ndarray) -> Images:
        """The images at these positions, in this order."""
        ...

    def with_labels(self, labels: np.ndarray) -> Images:
        """The same images with other labels, [N] int64."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in one array, which all Ray workers of a node share without copying it."""

    pixels: np.ndarray  # [N, H, W, channels] uint8
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    # Of pictures of many sizes, squeezed into squares (data/memory.py): what they were, and the fingerprint
    # of their files.
    sizes: np.ndarray | None = None  # [N, 2] int64, height and width
    known_as: str | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def take(self, indices: np.ndarray) -> ArrayImages:
        labels, sizes = (None if part is None else part[indices] for part in (self.labels, self.sizes))
        return replace(self, pixels=self.pixels[indices], labels=labels, sizes=sizes, known_as=None)

    def with_labels(self, labels: np.ndarray) -> ArrayImages:
        return replace(self, labels=labels)

    @property
    def fingerprint(self) -> str:
        if self.known_as:
            return self.known_as
        sample = np.linspace(0, len(self) - 1, min(len(self), 1024)).astype(int) if len(self) else []
        return _digest(
            str(self.pixels.shape).encode(),
            np.ascontiguousarray(self.pixels[sample]).tobytes(),
            _label_bytes(self.labels),
        )


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files, decoded when they are read."""

    root: str
    # [N] bytes (utf-8) relative to root: Ray workers of a node share one numpy array, which a list of a
    # million strings does not allow
    files: np.ndarray
    channels: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        return Path(self.root, self.files[index].decode("utf-8", "surrogateescape"))

    def read(self, index: int, scale: Scale | None = None) -> np.ndarray:
        """scale: as in the function `decode`. Raises as the method `decode` does; from one thread at a
        time.
        """
        with quiet():
            return self.decode(index, scale)

    def decode(self, index: int, scale: Scale | None = None) -> np.ndarray:
        """Raises DataError, naming the file, where it does not decode: it broke or went after the check, or
        `data.check_images` is off.
        """
        with self._named(index):
            return decode(self.path(index), self.channels, scale=scale)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright picture, without decoding it. Raises as `decode` does."""
        with self._named(index), Image.open(self.path(index), formats=formats()) as picture:
            return upright_size(picture)

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Pillow raises many kinds, most of them without the file's name
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{self.path(index)} cannot be read: {reason}; data.check_images=true finds all such files"
                " before a run"
            ) from error

    def with_labels(self, labels: np.ndarray) -> FileImages:
        return replace(self, labels=labels)

    def take(self, indices: np.ndarray) -> FileImages:
        return replace(
            self, files=self.files[indices], labels=None if self.labels is None else self.labels[indices]
        )

    @property
    def fingerprint(self) -> str:
        return _digest(b"\n".join(self.files.tolist()), _label_bytes(self.labels))


@functools.cache
def formats() -> tuple[str, ...]:
    """The kinds of files that are opened, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(path: Path, channels: int, *, scale: Scale | None = None) -> np.ndarray:
    """The picture upright as [H, W, channels] uint8, whatever the file's mode: transparency on white, 16 bits
    scaled to 8.

    scale: asked with height and width of the upright picture, says at which share of them it suffices: a JPEG
    is decoded at a half, a quarter or an eighth where that is enough, which is several times faster. Other
    formats come whole.
    Raises OSError, ValueError and other kinds that Pillow raises for damaged files. Its warnings are the
    caller's to silence: see `quiet`.
    """
    with Image.open(path, formats=formats()) as image:
        if scale is not None:
            share = scale(*upright_size(image))
            image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        # else Pillow maps the file, and scrambles uncompressed TIFFs that are to be turned
        image.filename = ""
        image.load()
        return as_array(_upright(image), channels)


def reduction(height: int, pixels: np.ndarray) -> int:
    """By how much a picture of this height was reduced when it was decoded to `pixels`: 1, 2, 4 or 8."""
    return round(height / len(pixels))


def cut(pixels: np.ndarray, box: np.ndarray, side: int, *, within: bool = True) -> np.ndarray:
    """[side, side, channels] uint8: the box (top, left, height, width, in pixels, fractions allowed) of [H,
    W, channels], resized with antialiasing.

    within: pixels outside the box, rounded up to whole ones, do not count, as for a picture that was cropped
    first.
    """
    shape = np.array(pixels.shape[:2])
    first, last = box[:2].clip(0), np.minimum(box[:2] + box[2:], shape)
    if within:
        whole = np.floor(first + _SLACK).astype(int), np.ceil(last - _SLACK).astype(int)
        pixels, first, last = (
            pixels[whole[0][0] : whole[1][0], whole[0][1] : whole[1][1]],
            first - whole[0],
            last - whole[0],
        )
        last = np.minimum(last, pixels.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
    part = (first[1], first[0], last[1], last[0])
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=part)).reshape(
        side, side, pixels.shape[2]
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened picture once it is turned as its EXIF orientation asks."""
    return (image.width, image.height) if _orientation(image) in _ON_ITS_SIDE else (image.height, image.width)


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warnings (damaged EXIF, large pictures) kept back: what matters is whether it decodes. Enter
    it from one thread at a time.
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
    """[N, H, W] or [N, H, W, 1|3] uint8 to [N, H, W, channels]; grey by the ITU-R 601 weights, as Pillow
    does.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[-1] == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation asks. `ImageOps.exif_transpose` also writes the tags anew, and so
    refuses sound pictures with one damaged tag.
    """
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # no EXIF that can be read says nothing about the pixels
        return 0
    return found if isinstance(found, int) else 0


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats in 0..1 or 0..255, as L; a value that stands for transparent becomes
    white.
    """
    values = np.nan_to_num(np.array(image))
    if image.mode == "F":
        scaled = values * 255 if values.max(initial=0) <= 1 else values
    else:
        scaled = values / 257  # 65535 → 255
    if "transparency" in image.info:
        scaled = np.where(values == image.info["transparency"], 255, scaled)
    return Image.fromarray(np.clip(scaled, 0, 255).round().astype(np.uint8))


def _label_bytes(labels: np.ndarray | None) -> bytes:
    return b"" if labels is None else labels.astype("<i8").tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
