"""What is found out of a picture file in one look: whether it decodes, its size, what tells its copies, and
how much of it there is to see.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from pcl_ray.data.pictures import margins
from pcl_ray.data.pictures.decoding import DecodingOptions, eight_bits, opaque, opened, upright

MINIATURE = 16  # px a side
LEGIBLE = 64  # px: at such a scale it shows whether a picture decodes


@dataclass(frozen=True)
class BadImage:
    """A file that does not decode, and why."""

    file: str  # as `path_text` or `EncodedImages.name` writes it
    reason: str


@dataclass(frozen=True, eq=False)
class Look:
    """One picture."""

    size: tuple[int, int]  # height and width, upright
    content_hash: bytes  # [16] of the file
    difference_hash: int  # 64 bits: where its content gets brighter from left to right
    miniature: np.ndarray  # [MINIATURE, MINIATURE, 3] uint8, of its content
    shape: float  # width / height of its content
    content: float  # share of its area that is not margin; 0: nothing to see
    contrast: int  # 0 … 255, from the darkest to the brightest grey on its background


def content_hash(encoded: bytes) -> bytes:
    """[16] of a file, by which it is known again."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def look(encoded: bytes, options: DecodingOptions) -> Look:
    """Decodes a file, a JPEG as small as suffices, within `decoding.quiet`. Raises as `decode` does."""
    sizes: list[tuple[int, int]] = []

    def legible(height: int, width: int) -> float:
        sizes.append((height, width))
        return LEGIBLE / max(min(height, width), 1)

    with opened(BytesIO(encoded), legible, options) as image:
        image.load()
        picture = eight_bits(upright(image))
    box = margins.find_content(picture)
    shown = opaque(picture, options.background)
    area = 0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
    darkest, brightest = shown.convert("L").getextrema()
    part = shown.convert("RGB").crop(box or (0, 0, *shown.size))
    return Look(
        size=sizes[0],
        content_hash=content_hash(encoded),
        difference_hash=_difference_hash(part),
        miniature=np.asarray(part.resize((MINIATURE, MINIATURE), Image.Resampling.HAMMING)),
        shape=part.width / max(part.height, 1),
        content=area / max(picture.width * picture.height, 1),
        contrast=int(brightest) - int(darkest),  # type: ignore[arg-type]  # of one band
    )


def _difference_hash(picture: Image.Image) -> int:
    """Krawetz's: of 9 × 8 grey values, whether each is brighter than the one to its left."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.HAMMING)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")
