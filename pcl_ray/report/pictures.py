"""Pictures of a run for the dashboard's step slider: prototype sheets, histograms, views, the map. Each is a
PIL image, drawn without any display.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from pcl_ray.report.sweep.axes import figure_of, tidy
from pcl_ray.snapshot import FARTHEST, NEAREST, ROLES, Exhibit, Shown, Thumbnails

_CELL, _GAP, _APART, _TEXT, _TITLE = 44, 3, 22, 168, 46  # px
_BLUE = "#0072B2"
_DPI = 100
_MOST_COLOURS = 20
_LABEL = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}


def prototype_sheet(
    exhibit: Exhibit, number: int, thumbnails: Thumbnails, class_names: Sequence[str] = ()
) -> Image.Image:
    """A row for each prototype that has a role: what it is, its nearest images, then the farthest of its
    cluster.
    """
    shown = exhibit.clusterings[number]
    rows = [(role, int(prototype)) for role, found in shown.roles().items() for prototype in found]
    width = _TEXT + (NEAREST + FARTHEST) * (_CELL + _GAP) + _APART
    sheet = Image.new("RGB", (width, _TITLE + len(rows) * (_CELL + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"K = {shown.num_clusters}, after {exhibit.epoch} epochs" + (
        f" ({exhibit.note})" if exhibit.note else ""
    )
    draw.text((_GAP, 2), title, fill="black", font=_font(13))
    draw.text((_TEXT, 24), "nearest images", fill="#555555", font=_font(12))
    draw.text(
        (_TEXT + NEAREST * (_CELL + _GAP) + _APART, 24),
        "farthest of the cluster",
        fill="#555555",
        font=_font(12),
    )
    for place, (role, prototype) in enumerate(rows):
        _draw_row(
            sheet, draw, _TITLE + place * (_CELL + _GAP), shown, prototype, role, thumbnails, class_names
        )
    return sheet


def _draw_row(
    sheet: Image.Image,
    draw: Any,
    top: int,
    shown: Shown,
    prototype: int,
    role: str,
    thumbnails: Thumbnails,
    class_names: Sequence[str],
) -> None:
    row = shown.row_of(prototype)
    draw.text((_GAP, top + 2), f"{role}  #{prototype}", fill="black", font=_font(12))
    of_class = int(shown.top_class[row])
    named = class_names[of_class] if 0 <= of_class < len(class_names) else str(of_class)
    known = f"{_drawable(named)}: {shown.top_share[row]:.0%}" if of_class >= 0 else ""
    images = f"{shown.sizes[prototype]:,} image" + ("s" if shown.sizes[prototype] != 1 else "")
    draw.text(
        (_GAP, top + 17), f"φ {shown.concentration[prototype]:.3g}, {images}", fill="#555555", font=_font(10)
    )
    draw.text((_GAP, top + 30), known, fill="#555555", font=_font(10))
    for first, left, numbers in (
        (0, _TEXT, shown.nearest[row]),
        (NEAREST, _TEXT + _APART, shown.farthest[row]),
    ):
        for place, image in enumerate(numbers.tolist(), start=first):
            pixels = thumbnails.of(image) if image >= 0 else None
            if pixels is not None:
                sheet.paste(enlarged(pixels, _CELL), (left + place * (_CELL + _GAP), top))


def enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    """A square picture at another size; small ones keep their pixels."""
    picture = Image.fromarray(pixels)
    return picture.resize(
        (side, side), Image.Resampling.NEAREST if len(pixels) <= side // 2 else Image.Resampling.LANCZOS
    )


def views_sheet(views: np.ndarray) -> Image.Image:
    """views: [n, 2, S, S, channels] uint8. A column an image, its two views below each other."""
    side = min(max(views.shape[2], 64), 160)
    sheet = Image.new("RGB", (len(views) * (side + _GAP) + _GAP, 2 * (side + _GAP) + 24), "white")
    ImageDraw.Draw(sheet).text(
        (_GAP, 3), "the two views of an image, as the network sees them", fill="black", font=_font(13)
    )
    for column, pair in enumerate(views):
        for line, pixels in enumerate(pair):
            whole = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
            sheet.paste(enlarged(whole, side), (_GAP + column * (side + _GAP), 24 + line * (side + _GAP)))
    return sheet


def histograms(exhibit: Exhibit, what: str) -> Image.Image:
    """what: "phi" or "sizes". A panel for each clustering."""
    count = len(exhibit.clusterings)
    said = "concentration φ" if what == "phi" else "images in a cluster"
    figure = figure_of(3.6 * count + 0.6, 3.3, f"{said}, after {exhibit.epoch} epochs")
    for panel, shown in zip(figure.subplots(1, count, squeeze=False).flat, exhibit.clusterings, strict=True):
        tidy(panel)
        # in float64: φ that are all but equal leave float32 no room for bins
        values = (shown.concentration if what == "phi" else shown.sizes).astype(np.float64)
        panel.hist(values, bins=min(40, max(8, shown.num_clusters // 3)), color=_BLUE)
        panel.set_title(f"K = {shown.num_clusters}", fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_xlabel(said)
        panel.set_ylabel("prototypes")
    return as_image(figure)


def feature_map(exhibit: Exhibit, class_names: Sequence[str] = ()) -> Image.Image | None:
    """The sampled images at their places, coloured by the prototype of the coarsest clustering and, where
    there are any, by label; None without places.
    """
    if not len(exhibit.places):
        return None
    panels: list[tuple[str, np.ndarray, Sequence[str]]] = []
    if exhibit.clusterings:
        coarsest = exhibit.coarse_to_fine()[0]
        panels.append(
            (
                f"by prototype, K = {exhibit.clusterings[coarsest].num_clusters}",
                exhibit.assignments[coarsest],
                (),
            )
        )
    if (exhibit.labels >= 0).any():
        panels.append(("by label", exhibit.labels, class_names))
    panels = panels or [("", np.zeros(len(exhibit.sample), np.int64), ())]
    figure = figure_of(
        5.2 * len(panels),
        5.0,
        f"{exhibit.map_name} of {len(exhibit.sample):,} images' features, after {exhibit.epoch} epochs",
    )
    for panel, (title, kinds, names) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
    ):
        _scatter(panel, exhibit.places, kinds, names)
        panel.set_title(title, fontsize=10)
    return as_image(figure)


def _scatter(panel: Axes, places: np.ndarray, kinds: np.ndarray, names: Sequence[str]) -> None:
    """Colours repeat after 20: neighbours on a map tell each other apart by place."""
    colours = np.array(colormaps["tab20"].colors)[np.maximum(kinds, 0) % _MOST_COLOURS]  # type: ignore[attr-defined]
    colours[kinds < 0] = 0.8
    panel.scatter(places[:, 0], places[:, 1], c=colours, s=9, linewidths=0)
    if 0 < len(names) <= _MOST_COLOURS:
        for kind in np.unique(kinds[kinds >= 0]):
            across, up = np.median(places[kinds == kind], axis=0)
            panel.text(
                across,
                up,
                _drawable(names[kind]),
                fontsize=9,
                ha="center",
                va="center",
                bbox=_LABEL,
                parse_math=False,
            )
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_color("#CCCCCC")


def _drawable(name: str) -> str:
    """The beginning of a class's name in one line: a folder may have a name that no font can draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:14])


def as_image(figure: Figure) -> Image.Image:
    written = BytesIO()
    figure.savefig(written, format="png", dpi=_DPI)
    return Image.open(written).convert("RGB")


@cache
def _font(size: int) -> Any:
    # matplotlib brings it along, and it has a φ
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


assert len(ROLES) == 4  # the sheet has room for four of each
