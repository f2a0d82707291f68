"""The map of features: a sample of the images as points, coloured by prototype or by label."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pcl_ray.report.drawing.html import Html, data_script, tag
from pcl_ray.report.drawing.sprites import Sheet
from pcl_ray.report.explorer import class_name
from pcl_ray.snapshot import Snapshot
from pcl_ray.support.text import cut

_SIZE = 640.0
_MARGIN = 14.0
# Okabe and Ito's seven that are seen on white and on black, then four more that are told apart from them.
_CLASSES = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8C7A00",
    "#7A4FBF",
    "#8A8A8A",
    "#A0522D",
    "#2FB8AC",
)
_NONE = "#9AA0A6"
_MOST_NAMED = 24  # classes of a legend


def feature_map(snapshot: Snapshot, sheet: Sheet | None, class_names: Sequence[str]) -> Html:
    """Buttons and the map, by prototype and by label. The snapshot has a projection."""
    ways = _ways(snapshot, class_names)
    points, height = _scaled(snapshot.projection)
    drawings = [_drawing(points, height, way, number, snapshot.map_name) for number, way in enumerate(ways)]
    buttons = [
        tag(
            "button",
            way["short"],
            type="button",
            class_=way["kind"],
            data_way=number,
            aria_pressed="true" if number == 0 else "false",
        )
        for number, way in enumerate(ways)
    ]
    data = {
        "sheet": sheet is not None,
        "points": [[round(float(x), 1), round(float(y), 1)] for x, y in points],
        "images": snapshot.sample.tolist(),
        "ways": [
            {"title": "label" if way["kind"] == "labels" else way["short"], "said": way["said"]}
            for way in ways
        ],
        "width": _SIZE,
    }
    return tag(
        "div",
        tag(
            "div",
            tag("span", "Coloured by"),
            tag("div", buttons, class_="toggle", role="group", aria_label="Coloured by"),
            class_="tools",
        ),
        tag("div", drawings, class_="maps"),
        data_script("map-data", data),
        class_=f"map sheet ways-{min(len(ways), 3)}"
        + (" both" if len({way["kind"] for way in ways}) == 2 else ""),
        id="feature-map",
    )


def _ways(snapshot: Snapshot, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Ways to colour: each clustering from coarse to fine, then the labels; the first and the last are
    printed. At least one.

    Each way has a kind, a short name, a title, the colour and the words of each point, and a legend.
    """
    ways = []
    if len(snapshot.assignments):
        ways += [_by_prototype(snapshot, m) for m in snapshot.coarse_to_fine()]
    if (snapshot.labels >= 0).any():
        ways.append(_by_label(snapshot, class_names))
    amount = len(snapshot.projection)
    return ways or [
        {
            "kind": "images",
            "short": "",
            "title": "nothing: no clusters, no labels",
            "colours": [_CLASSES[0]] * amount,
            "said": [""] * amount,
            "legend": [],
        }
    ]


def _by_prototype(snapshot: Snapshot, m: int) -> dict[str, Any]:
    prototypes = snapshot.assignments[m].tolist()
    short = f"K = {snapshot.clusterings[m].num_clusters:,}"
    return {
        "kind": "prototypes",
        "short": short,
        "title": f"prototypes, {short}",
        "colours": [_many(k) for k in prototypes],
        "said": [f"prototype {k}" if k >= 0 else "no prototype" for k in prototypes],
        "legend": [],
    }


def _by_label(snapshot: Snapshot, class_names: Sequence[str]) -> dict[str, Any]:
    classes = [int(label) for label in np.unique(snapshot.labels) if label >= 0]
    colours = {label: _colour(number, len(classes)) for number, label in enumerate(classes)} | {-1: _NONE}
    names = {label: class_name(label, class_names) for label in classes} | {-1: "no label"}
    legend = [(colours[label], cut(names[label], 24)) for label in classes[:_MOST_NAMED]]
    if len(classes) > _MOST_NAMED:
        legend.append(("none", f"and {len(classes) - _MOST_NAMED} more classes"))
    labels = np.maximum(snapshot.labels, -1).tolist()
    return {
        "kind": "labels",
        "short": "labels",
        "title": "labels",
        "colours": [colours[label] for label in labels],
        "said": [names[label] for label in labels],
        "legend": legend,
    }


def _drawing(points: np.ndarray, height: float, way: dict[str, Any], number: int, map_name: str) -> Html:
    """The map in one way to colour. Points of one colour are one element: that makes the page shorter."""
    groups: dict[str, list[str]] = {}
    for (x, y), colour in zip(points, way["colours"], strict=True):
        groups.setdefault(colour, []).append(f"M{x:.1f},{y:.1f}h0")
    paths = [tag("path", d="".join(spots), stroke=colour) for colour, spots in groups.items()]
    label = f"{map_name or 'Map'} of {len(points):,} images, coloured by {way['title']}"
    drawing = tag(
        "svg",
        paths,
        tag("circle", r=9, class_="here"),
        viewBox=f"0 0 {_SIZE:.0f} {height:.0f}",
        role="img",
        aria_label=label,
    )
    keys = [_key(colour, name) for colour, name in way["legend"]]
    return tag(
        "figure",
        tag("h4", f"Coloured by {way['title']}"),
        drawing,
        tag("p", keys, class_="legend") if keys else None,
        data_way=number,
        class_=f"map-view {way['kind']}",
    )


def _key(colour: str, name: str) -> Html:
    """An entry of the legend: a dot of the colour, unless that is "none", and the name."""
    if colour == "none":
        return tag("span", name)
    circle = tag("circle", cx=5, cy=5, r=4.5, fill=colour)
    return tag("span", tag("svg", circle, viewBox="0 0 10 10", class_="dot", aria_hidden="true"), name)


def _scaled(projection: np.ndarray) -> tuple[np.ndarray, float]:
    """[n, 2] in the drawing, both axes alike, what is not finite in the middle; and its height."""
    points = np.asarray(projection, np.float64)
    good = np.asarray(np.isfinite(points).all(axis=1))
    low, high = np.zeros(2), np.ones(2)
    if good.any():
        low, high = points[good].min(axis=0), points[good].max(axis=0)
    span = float((high - low).max()) or 1.0
    scale = (_SIZE - 2 * _MARGIN) / span
    height = max(_SIZE / 2, float(high[1] - low[1]) * scale + 2 * _MARGIN)
    points = np.where(good[:, None], points, (low + high) / 2)
    return np.array([_SIZE / 2, height / 2]) + (points - (low + high) / 2) * scale, height


def _colour(number: int, among: int) -> str:
    return _CLASSES[number] if among <= len(_CLASSES) else _many(number)


def _many(number: int) -> str:
    """Hues a golden section apart, of three shades: neighbours in number differ, though not all others do."""
    if number < 0:
        return _NONE
    red, green, blue = colorsys.hls_to_rgb(
        number * 0.618034 % 1, (0.46, 0.6, 0.36)[number % 3], (0.68, 0.62, 0.75)[number // 3 % 3]
    )
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
