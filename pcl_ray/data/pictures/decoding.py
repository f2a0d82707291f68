"""Picture files as arrays: decoded upright, no larger than needed, from any mode."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from pcl_ray.config import DataConfig
from pcl_ray.data.pictures import margins
from pcl_ray.errors import DataError

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


@dataclass(frozen=True)
class DecodingOptions:
    """What of `data.*` says how a picture is decoded."""

    background: str = "white"  # the colour under transparency
    trim: bool = False  # whether uniform and transparent margins are cut
    max_pixels: int = 100_000_000
    reduced: bool = True  # whether large JPEGs come smaller where that suffices

    @classmethod
    def of(cls, config: DataConfig) -> DecodingOptions:
        return cls(config.background, config.trim, config.max_pixels, config.reduced_decoding)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> DecodingOptions:
        """What `as_settings` wrote; earlier versions wrote `reduced_decoding` alone."""
        options = {name: settings[name] for name in ("background", "trim", "max_pixels") if name in settings}
        return cls(**options, reduced=settings["reduced_decoding"])

    def as_settings(self) -> dict[str, Any]:
        """The options as a model keeps them; without those that are as they always were."""
        settings = {
            name: value for name, value in asdict(self).items() if value != getattr(AS_THEY_ARE, name)
        }
        settings.pop("reduced", None)
        return {"reduced_decoding": self.reduced, **settings}


AS_THEY_ARE = DecodingOptions()


@functools.cache
def formats() -> tuple[str, ...]:
    """The kinds of files that are opened, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(
    file: Path | IO[bytes],
    channels: int,
    *,
    scale: Scale | None = None,
    options: DecodingOptions = AS_THEY_ARE,
) -> np.ndarray:
    """The picture upright as [H, W, channels] uint8, from any mode: transparency on the background's colour,
    16 bits as 8.

    scale: gives the share of its size at which a picture of this height and width (upright) suffices: a JPEG
    is decoded at a half, a quarter or an eighth where that is enough, which is several times faster. Other
    formats come whole, and so do pictures whose margins are cut, of which `scale` gets the size after that.
    Raises OSError, ValueError, DataError for one with too many pixels, and other kinds that Pillow raises for
    damaged files. Its warnings are the caller's to silence: see `quiet`.
    """
    with opened(file, None if options.trim else scale, options) as image:
        # else Pillow maps the file, and scrambles uncompressed TIFFs that are to be turned
        image.filename = ""
        image.load()
        pixels = pixels_of(image, channels, options)
    if options.trim and scale is not None:
        scale(*pixels.shape[:2])
    return pixels


def pixels_of(image: Image.Image, channels: int, options: DecodingOptions = AS_THEY_ARE) -> np.ndarray:
    """The pixels of a Pillow image that is loaded, as `decode` gives those of a file."""
    picture = eight_bits(upright(image))
    if options.trim:
        picture = picture.crop(margins.content_box(picture))
    return as_array(picture, channels, options.background)


def opened(file: Path | IO[bytes], scale: Scale | None, options: DecodingOptions) -> ImageFile.ImageFile:
    """The picture with its header read and, if it is a JPEG, told to come no larger than `scale` asks for.

    Raises as `decode` does: where a picture that has to come whole has too many pixels, too.
    """
    try:
        image = Image.open(file, formats=formats())
    except Image.DecompressionBombError:  # outside of `quiet`
        raise DataError(f"more pixels than data.max_pixels = {options.max_pixels:,}") from None
    pixels = whole = image.width * image.height
    if scale is not None:
        share = scale(*upright_size(image))
        image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        if options.reduced and not options.trim:
            pixels = image.width * image.height
    if pixels > options.max_pixels:
        image.close()
        raise DataError(
            f"{whole / 1e6:,.0f} megapixels, more than the {options.max_pixels / 1e6:,.4g} of"
            f" data.max_pixels = {options.max_pixels}"
        )
    return image


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
    """Holds Pillow's warnings back (damaged EXIF), and its limit of pixels, in place of which `decode` has
    `data.max_pixels`: what matters is whether a picture decodes.

    Enter it from one thread at a time.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def as_array(image: Image.Image, channels: int, background: str = "white") -> np.ndarray:
    """[H, W, channels] uint8 of a Pillow image of any mode. background: the colour under transparency."""
    pixels = np.array(opaque(eight_bits(image), background).convert("L" if channels == 1 else "RGB"))
    return pixels[:, :, None] if channels == 1 else pixels


def eight_bits(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode in one of eight bits a channel, which converts to RGB and L."""
    match image.mode:
        case "La":
            return image.convert("LA")
        case "LAB":
            return image.convert("RGB")  # Pillow has no way from LAB to grey
        case mode if mode.startswith("I") or mode == "F":
            return _grey_of_eight_bits(image)
    return image


def opaque(image: Image.Image, background: str = "white") -> Image.Image:
    """A picture of eight bits on a background, where parts of it may be transparent."""
    if not margins.has_alpha(image):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


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


def _grey_of_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats in 0..1 or 0..255, as L; the transparent value becomes white."""
    values = np.nan_to_num(np.array(image))
    if image.mode == "F":
        scaled = values * 255 if values.max(initial=0) <= 1 else values
    else:
        scaled = values / 257  # 65535 → 255
    if "transparency" in image.info:
        scaled = np.where(values == image.info["transparency"], 255, scaled)
    return Image.fromarray(np.clip(scaled, 0, 255).round().astype(np.uint8))
