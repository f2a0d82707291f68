"""All small pictures of a page as one large one, of which each element of the page shows its part."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pcl_ray.report.drawing.html import Html, tag
from pcl_ray.snapshot import Thumbnails

_BUDGET = 3_600_000  # bytes; a third more in base64
_LOSSLESS_SIDE = 16  # up to this side every pixel counts
_QUALITIES = (85, 70, 55, 40)
_TRIED = 200  # pictures that a quality is tried on first
_SHOWN_SIDE = 48  # pixels on the screen, about


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures side by side, each with a border of its own edge, so that scaling mixes in no neighbour."""

    uri: str
    side: int  # of a picture
    cell: int  # with its border
    columns: int
    rows: int
    slots: dict[int, int] = field(default_factory=dict)  # image → its number on the sheet
    names: dict[int, str] = field(default_factory=dict)  # image → its file

    def slot(self, image: int) -> int:
        """The number of an image's picture on the sheet; −1 for an image without a picture."""
        return self.slots.get(int(image), -1)

    def script_data(self) -> dict[str, Any]:
        """What the script needs to show pictures of the sheet."""
        images = sorted(self.slots, key=lambda image: self.slots[image])
        return {
            "side": self.side,
            "cell": self.cell,
            "columns": self.columns,
            "rows": self.rows,
            "images": images,
        }

    def style(self, name: str = "sheet") -> Html:
        """The style that all pictures of the sheet share, within elements of class `name`."""
        wide, high = (100 * self.cell * amount / self.side for amount in (self.columns, self.rows))
        shown, sharp = _SHOWN_SIDE, ""
        if self.side <= 24:
            shown, sharp = self.side * max(1, round(_SHOWN_SIDE / self.side)), "image-rendering:pixelated;"
        rule = (
            f".{name} .im{{background-image:url({self.uri});background-size:{wide:.4f}%"
            f" {high:.4f}%;{sharp}}}.{name}{{--im:{shown}px}}"
        )
        return tag("style", Html(rule))

    def picture(self, image: int, words: str = "", title: str = "") -> Html:
        """One picture, grey where there is none; hidden from screen readers unless there are words for it.
        title: what is said of it under the pointer, if not its number.
        """
        label = {"role": "img", "aria_label": words} if words else {}
        title = title or self.names.get(int(image)) or f"image {image}"
        slot = self.slot(image)
        if slot < 0:
            return tag("i", class_="im none", title=title, **label)
        return tag(
            "i", class_="im", style=f"background-position:{self._position(slot)}", title=title, **label
        )

    def _position(self, slot: int) -> str:
        """A picture's position on the sheet in per cent, as in CSS: of the sheet's size less its own."""
        row, column = divmod(slot, self.columns)
        x, y = (
            100 * (number * self.cell + 1) / (amount * self.cell - self.side)
            for number, amount in ((column, self.columns), (row, self.rows))
        )
        return f"{x:.3f}% {y:.3f}%"


def sheet_of(thumbnails: Thumbnails | None, images: Sequence[int] | np.ndarray | None = None) -> Sheet | None:
    """The sheet of these images, or of all that have a thumbnail; None without any."""
    if thumbnails is None or not len(thumbnails.ids):
        return None
    rows = np.arange(len(thumbnails.ids))
    if images is not None:
        rows = np.flatnonzero(np.isin(thumbnails.ids, np.asarray(images)))
    if not len(rows):
        return None
    slots = {int(image): slot for slot, image in enumerate(thumbnails.ids[rows])}
    named = range(len(thumbnails.names)) if images is None else slots
    names = {image: thumbnails.name(image) for image in named if image < len(thumbnails.names)}
    pixels = thumbnails.pixels[rows]
    side = pixels.shape[1]
    if side <= _LOSSLESS_SIDE:
        sheet, cell, columns = _tiled(pixels, side + 2)
        return Sheet(_uri("png", _png(sheet)), side, cell, columns, sheet.shape[0] // cell, slots, names)
    data, sheet, side, cell, columns = _compressed(pixels)
    return Sheet(_uri("webp", data), side, cell, columns, sheet.shape[0] // cell, slots, names)


def _compressed(pixels: np.ndarray) -> tuple[bytes, np.ndarray, int, int, int]:
    """The pictures as WebP, as good as the budget allows, with smaller pictures where no quality is enough:
    its bytes, the sheet, side, cell, columns.
    """
    for side in (pixels.shape[1], pixels.shape[1] * 2 // 3, pixels.shape[1] // 2):
        smaller = pixels if side == pixels.shape[1] else _resized(pixels, side)
        # even: colours are halved in resolution, which must not mix neighbours
        sheet, cell, columns = _tiled(smaller, side + 2 + side % 2)
        few = _tiled(smaller[:: max(1, len(smaller) // _TRIED)], cell)[0]
        for quality in _QUALITIES:
            if (
                len(_webp(few, quality)) * sheet.size / few.size < _BUDGET
                and len(data := _webp(sheet, quality)) <= _BUDGET
            ):
                return data, sheet, side, cell, columns
    return _webp(sheet, 5), sheet, side, cell, columns


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))
            for picture in pixels
        ]
    )


def _tiled(pixels: np.ndarray, cell: int) -> tuple[np.ndarray, int, int]:
    """[rows · cell, columns · cell, 3], cell, columns."""
    amount, side = pixels.shape[:2]
    columns = math.ceil(math.sqrt(amount))
    rows = math.ceil(amount / columns)
    border = (1, cell - side - 1)
    cells = np.full((rows * columns, cell, cell, 3), 255, np.uint8)
    cells[:amount] = np.pad(pixels, ((0, 0), border, border, (0, 0)), mode="edge")
    return (
        cells.reshape(rows, columns, cell, cell, 3).swapaxes(1, 2).reshape(rows * cell, columns * cell, 3),
        cell,
        columns,
    )


def _png(sheet: np.ndarray) -> bytes:
    grey = bool((sheet[..., :1] == sheet).all())
    out = io.BytesIO()
    Image.fromarray(sheet[..., 0] if grey else sheet).save(out, "PNG", optimize=True)
    return out.getvalue()


def _webp(sheet: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "WEBP", quality=quality, method=3)
    return out.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
