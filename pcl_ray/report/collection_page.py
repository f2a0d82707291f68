"""A page of pictures in groups: what was found in a collection. One HTML file, complete in itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from pcl_ray.data.pictures import decoding
from pcl_ray.errors import DataError
from pcl_ray.report.drawing.html import Html, document, section, tag
from pcl_ray.report.drawing.sprites import Sheet, sheet_of
from pcl_ray.report.page import footer, save
from pcl_ray.snapshot import Thumbnails
from pcl_ray.support.paths import path_from_text

_SIDE = 96  # px of a thumbnail
_MOST = 720  # pictures of a page


@dataclass(frozen=True)
class PictureGroup:
    """Pictures that belong together: their names as `path_text`, and what stands below each."""

    title: str
    text: str
    pictures: Sequence[tuple[str, str]]


class ImageBytes(Protocol):
    """Gives the encoded bytes of an image by its name: `embedding.inputs.ImageReader`."""

    def read(self, name: str) -> bytes: ...


def write(path: Path, title: str, lead: str, groups: Sequence[PictureGroup], images: ImageBytes) -> Path:
    """Writes the page whole or not at all; gives back `path`. Pictures that cannot be read are grey. Raises
    OSError.
    """
    names = list(dict.fromkeys(name for group in groups for name, _ in group.pictures))
    thumbnails = thumbnails_of(names[:_MOST], images)
    sheet = sheet_of(thumbnails)
    numbers = {name: number for number, name in enumerate(names)}
    return save(html_of(title, lead, groups, sheet, numbers), path)


def html_of(
    title: str, lead: str, groups: Sequence[PictureGroup], sheet: Sheet | None, numbers: dict[str, int]
) -> str:
    """The whole page. numbers: of each name on the sheet."""
    header = tag(
        "header",
        tag("p", "Prototypical Contrastive Learning", class_="kind"),
        tag("h1", title),
        tag("p", lead, class_="lead"),
    )
    if not any(group.pictures for group in groups):
        groups, empty = [], tag("p", "Nothing was found.", class_="none")
    else:
        empty = None
    shown = [_group(number, group, sheet, numbers) for number, group in enumerate(groups)]
    return document(f"{title} – pcl_ray", sheet.style() if sheet else None, header, empty, shown, footer())


def _group(number: int, group: PictureGroup, sheet: Sheet | None, numbers: dict[str, int]) -> Html:
    items = [
        tag("li", _picture(name, caption, sheet, numbers[name]), tag("small", caption), title=name)
        for name, caption in group.pictures
    ]
    grid = tag("ul", items, class_="gallery sheet")
    if not group.title:
        return tag("section", grid)
    return section(f"group-{number}", group.title, grid, lead=group.text)


def _picture(name: str, caption: str, sheet: Sheet | None, number: int) -> Html:
    words = f"{name}, {caption}"
    if sheet is None:
        return tag("i", class_="im none", role="img", aria_label=words)
    return sheet.picture(number, words, title=name)


def thumbnails_of(names: Sequence[str], images: ImageBytes) -> Thumbnails:
    """Small pictures of the images, whole and centred on white; those that cannot be read are left out. Their
    ids are their positions.
    """
    ids, pixels = [], []
    with decoding.quiet():
        # in this order: the rows of a table are read one after the other
        for position in sorted(range(len(names)), key=lambda i: names[i].partition("#")[0]):
            try:
                picture = _fitted(images.read(path_from_text(names[position])))
            except (OSError, DataError):
                continue
            except Exception:  # Pillow raises many kinds for damaged files
                continue
            ids.append(position)
            pixels.append(picture)
    if not ids:
        return Thumbnails(np.empty(0, np.int64), np.empty((0, _SIDE, _SIDE, 3), np.uint8))
    order = np.argsort(ids)
    return Thumbnails(np.array(ids)[order], np.stack(pixels)[order])


def _fitted(content: bytes) -> np.ndarray:
    """[_SIDE, _SIDE, 3] uint8."""

    def scale(height: int, width: int) -> float:
        return _SIDE / max(height, width)

    picture = Image.fromarray(decoding.decode(BytesIO(content), 3, scale=scale))  # pyrefly: ignore[bad-argument-type]
    shrunk = _SIDE / max(picture.size)
    width, height = (max(1, round(side * shrunk)) for side in picture.size)
    way = Image.Resampling.BOX if shrunk < 1 else Image.Resampling.NEAREST
    page = Image.new("RGB", (_SIDE, _SIDE), "white")
    page.paste(picture.resize((width, height), way), ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return np.asarray(page)
