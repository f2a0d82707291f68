"""Pictures of a run for the dashboard's step slider: prototype sheets, histograms, views, the map. Each is a
PIL image, drawn without any display.
"""

from __future__ import annotations

import warnings
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

from pcl_ray.report.drawing.panels import figure_of, tidy
from pcl_ray.snapshot import FARTHEST, NEAREST, ROLES, ClusteringSnapshot, Snapshot, Thumbnails

CELL = 44  # px, the side of a picture on a sheet
_GAP, _APART, _TEXT, _TITLE = 3, 22, 168, 46  # px
_BLUE = "#0072B2"
_DPI = 100
_MOST_COLOURS = 20
_LABEL = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}


def prototype_sheet(
    snapshot: Snapshot, number: int, thumbnails: Thumbnails, class_names: Sequence[str] = ()
) -> Image.Image:
    """A row for each prototype of clustering `number` with a role: its name, nearest and farthest images."""
    clustering = snapshot.clusterings[number]
    rows = [(role, int(k)) for role, prototypes in clustering.roles().items() for k in prototypes]
    width = _TEXT + (NEAREST + FARTHEST) * (CELL + _GAP) + _APART
    sheet = Image.new("RGB", (width, _TITLE + len(rows) * (CELL + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    note = f" ({snapshot.note})" if snapshot.note else ""
    title = f"K = {clustering.num_clusters}, after {snapshot.epoch} epochs{note}"
    draw.text((_GAP, 2), title, fill="black", font=_font(13))
    draw.text((_TEXT, 24), "nearest images", fill="#555555", font=_font(12))
    left = _TEXT + NEAREST * (CELL + _GAP) + _APART
    draw.text((left, 24), "farthest of the cluster", fill="#555555", font=_font(12))
    for line, (role, prototype) in enumerate(rows):
        top = _TITLE + line * (CELL + _GAP)
        _draw_texts(draw, top, clustering, prototype, role, class_names)
        _draw_images(sheet, top, clustering, prototype, thumbnails)
    return sheet


def _draw_texts(
    draw: Any, top: int, clustering: ClusteringSnapshot, prototype: int, role: str, class_names: Sequence[str]
) -> None:
    row = clustering.row_of(prototype)
    label, size = int(clustering.top_class[row]), clustering.sizes[prototype]
    share = ""
    if label >= 0:
        name = class_names[label] if label < len(class_names) else str(label)
        share = f"{_drawable(name)}: {clustering.top_share[row]:.0%}"
    figures = f"φ {clustering.concentration[prototype]:.3g}, {size:,} image{'s' if size != 1 else ''}"
    draw.text((_GAP, top + 2), f"{role}  #{prototype}", fill="black", font=_font(12))
    draw.text((_GAP, top + 17), figures, fill="#555555", font=_font(10))
    draw.text((_GAP, top + 30), share, fill="#555555", font=_font(10))


def _draw_images(
    sheet: Image.Image, top: int, clustering: ClusteringSnapshot, prototype: int, thumbnails: Thumbnails
) -> None:
    row = clustering.row_of(prototype)
    for first, left, images in (
        (0, _TEXT, clustering.nearest[row]),
        (NEAREST, _TEXT + _APART, clustering.farthest[row]),
    ):
        for column, image in enumerate(images.tolist(), start=first):
            pixels = thumbnails.picture(image) if image >= 0 else None
            if pixels is not None:
                sheet.paste(enlarged(pixels, CELL), (left + column * (CELL + _GAP), top))


def enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    """A square picture [s, s, 3] at another size; small ones keep their pixels."""
    picture = Image.fromarray(pixels)
    return picture.resize(
        (side, side), Image.Resampling.NEAREST if len(pixels) <= side // 2 else Image.Resampling.LANCZOS
    )


def views_sheet(views: np.ndarray) -> Image.Image:
    """views: [n, v, S, S, channels] uint8. A column an image, its views below each other."""
    side = min(max(views.shape[2], 64), 160)
    count = views.shape[1]
    sheet = Image.new("RGB", (len(views) * (side + _GAP) + _GAP, count * (side + _GAP) + 24), "white")
    what = "the two views of an image" if count == 2 else f"the {count} views of an image"
    ImageDraw.Draw(sheet).text((_GAP, 3), f"{what}, as the network sees them", fill="black", font=_font(13))
    for column, own in enumerate(views):
        for line, pixels in enumerate(own):
            whole = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
            sheet.paste(enlarged(whole, side), (_GAP + column * (side + _GAP), 24 + line * (side + _GAP)))
    return sheet


def histograms(snapshot: Snapshot, what: str) -> Image.Image:
    """A panel for each clustering. what: "phi" or "sizes"."""
    count = len(snapshot.clusterings)
    axis = "concentration φ" if what == "phi" else "images in a cluster"
    figure = figure_of(3.6 * count + 0.6, 3.3, f"{axis}, after {snapshot.epoch} epochs")
    panels = figure.subplots(1, count, squeeze=False).flat
    for panel, clustering in zip(panels, snapshot.clusterings, strict=True):
        tidy(panel)
        # in float64: φ that are all but equal leave float32 no room for bins
        values = (clustering.concentration if what == "phi" else clustering.sizes).astype(np.float64)
        panel.hist(values, bins=min(40, max(8, clustering.num_clusters // 3)), color=_BLUE)
        panel.set_title(f"K = {clustering.num_clusters}", fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_xlabel(axis)
        panel.set_ylabel("prototypes")
    return as_image(figure)


def feature_map(snapshot: Snapshot, class_names: Sequence[str] = ()) -> Image.Image | None:
    """The sampled images on the map, coloured by the prototype of the coarsest clustering and, where there
    are any, by label; None without a projection.
    """
    if not len(snapshot.projection):
        return None
    panels: list[tuple[str, np.ndarray, Sequence[str]]] = []
    if snapshot.clusterings:
        coarsest = snapshot.coarse_to_fine()[0]
        title = f"by prototype, K = {snapshot.clusterings[coarsest].num_clusters}"
        panels.append((title, snapshot.assignments[coarsest], ()))
    if (snapshot.labels >= 0).any():
        panels.append(("by label", snapshot.labels, class_names))
    panels = panels or [("", np.zeros(len(snapshot.sample), np.int64), ())]
    images = f"{len(snapshot.sample):,} images' features, after {snapshot.epoch} epochs"
    figure = figure_of(5.2 * len(panels), 5.0, f"{snapshot.map_name} of {images}")
    axes = figure.subplots(1, len(panels), squeeze=False).flat
    for panel, (title, groups, names) in zip(axes, panels, strict=True):
        _scatter(panel, snapshot.projection, groups, names)
        panel.set_title(title, fontsize=10)
    return as_image(figure)


def _scatter(panel: Axes, points: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> None:
    """Points [n, 2] coloured by group [n], grey where it is negative. Colours repeat after 20: neighbours on
    a map tell each other apart by where they are.
    """
    colours = np.array(colormaps["tab20"].colors)[np.maximum(groups, 0) % _MOST_COLOURS]  # type: ignore[attr-defined]
    colours[groups < 0] = 0.8
    panel.scatter(points[:, 0], points[:, 1], c=colours, s=9, linewidths=0)
    if 0 < len(names) <= _MOST_COLOURS:
        centred: dict[str, Any] = {"fontsize": 9, "ha": "center", "va": "center"}
        for group in np.unique(groups[groups >= 0]):
            across, up = np.median(points[groups == group], axis=0)
            panel.text(across, up, _drawable(names[group]), bbox=_LABEL, parse_math=False, **centred)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_color("#CCCCCC")


def _drawable(name: str) -> str:
    """The beginning of a class's name in one line: a folder may have a name that no font can draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:14])


def as_image(figure: Figure) -> Image.Image:
    """What matplotlib draws of the figure."""
    png = BytesIO()
    with warnings.catch_warnings():  # names of classes may have signs that the font lacks
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(png, format="png", dpi=_DPI)
    return Image.open(png).convert("RGB")


@cache
def _font(size: int) -> Any:
    # matplotlib brings it along, and it has a φ
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


assert len(ROLES) == 4  # the sheet has room for four of each
