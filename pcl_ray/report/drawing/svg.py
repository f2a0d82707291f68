"""Small charts as SVG inside HTML: coloured by the page's style, so that they follow light, dark and print;
numbers under the pointer come by script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcl_ray.report.drawing.html import Html, data_script, tag
from pcl_ray.support.text import number

COLOURS = 7  # --s0 … --s6 of the style
_DASHES = ("", "7 4", "2 3")
_WIDTH, _HEIGHT = 420.0, 236.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 20.0, 26.0
_MOST_POINTS = 500
_BARS = 24

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """`place` chooses colour and dashes; `band` is a (x, low, high) area around it, drawn pale."""

    name: str
    points: Points
    place: int = 0
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """`identifier` is one of its own in the page. `from_zero`: the axis begins at 0."""

    identifier: str
    title: str
    caption: str
    lines: Sequence[Line]
    from_zero: bool = False


def look(place: int) -> dict[str, str]:
    """Class and dashes of the line at a place among others."""
    dashes = _DASHES[place // COLOURS % len(_DASHES)]
    return {"class_": f"s{place % COLOURS}"} | ({"stroke_dasharray": dashes} if dashes else {})


def line_chart(chart: Chart, warmup: int = 0) -> Html:
    """A figure with heading, legend, curves over epochs, and the end of the warm-up where it lies in it."""
    lines = [Line(line.name, thinned(line.points), line.place, thinned(line.band)) for line in chart.lines]
    xs = [x for line in lines for x, _ in line.points]
    first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    across = _Axis(first, last, _LEFT, _WIDTH - _RIGHT)
    up = _Axis(*_limits(lines, chart.from_zero), _HEIGHT - _BOTTOM, _TOP)
    drawing = tag(
        "svg",
        _frame(across, up),
        _warmup(warmup, across) if first < warmup and warmup > 0 else None,
        [
            tag("path", d=_area(line.band, across, up), class_=f"band s{line.place % COLOURS}")
            for line in lines
            if len(line.band) > 1
        ],
        [_curve(line, across, up) for line in lines],
        tag("line", class_="cursor", y1=_TOP, y2=_HEIGHT - _BOTTOM, x1=_LEFT, x2=_LEFT),
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=f"{chart.title}: " + "; ".join(_said(line) for line in chart.lines[:6]),
    )
    told = {"scale": [first, last, _LEFT, _WIDTH - _RIGHT], "lines": [_told(line) for line in lines]}
    data = data_script(f"{chart.identifier}-data", told)
    return tag(
        "figure",
        _heading(chart),
        drawing,
        tag("figcaption", chart.caption),
        data,
        class_="chart",
        id=chart.identifier,
    )


def histogram(
    identifier: str,
    title: str,
    caption: str,
    values: np.ndarray,
    *,
    mark: tuple[str, float] | None = None,
    whole: bool = False,
) -> Html:
    """How many of the values lie where; `whole` for counts, whose bars are whole numbers wide; `mark` is a
    named place on the axis.
    """
    edges = _edges(values, whole)
    counts, _ = np.histogram(values, edges)
    across = _Axis(float(edges[0]), float(edges[-1]), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(0.0, float(max(counts.max(initial=1), 1)) * 1.06, _HEIGHT - _BOTTOM, _TOP)
    bars = [
        _bar(low, high, int(amount), across, up)
        for low, high, amount in zip(edges[:-1], edges[1:], counts, strict=True)
        if amount
    ]
    marked = None
    if mark and edges[0] <= mark[1] <= edges[-1]:
        x = across.place(mark[1])
        side: dict[str, Any] = (
            {"x": f"{x + 5:.1f}"} if x < _WIDTH * 0.7 else {"x": f"{x - 5:.1f}", "text_anchor": "end"}
        )
        marked = tag(
            "g",
            tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM),
            tag("text", mark[0], y=_TOP - 6, **side),
            class_="mark",
        )
    label = (
        f"{title}: from {number(float(values.min()))} to {number(float(values.max()))}, median"
        f" {number(float(np.median(values)))}"
    )
    drawing = tag(
        "svg",
        _frame(across, up, whole_up=True),
        bars,
        marked,
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=label,
        class_="bars",
    )
    return tag(
        "figure",
        tag("h4", title),
        drawing,
        tag("figcaption", caption),
        class_="chart histogram",
        id=identifier,
    )


def thinned(points: Sequence[Any]) -> list[Any]:
    """At most about 500 of them, the first and the last among them."""
    step = math.ceil(len(points) / _MOST_POINTS)
    kept = list(points[::step]) if step > 1 else list(points)
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers between the two, at most `most` + 1."""
    raw = max((high - low) / most, 1e-12)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axis:
    """From values to places in the drawing."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _limits(lines: Sequence[Line], from_zero: bool) -> tuple[float, float]:
    values = [y for line in lines for _, y in line.points] + [
        y for line in lines for _, low, high in line.band for y in (low, high)
    ]
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        return 0.0, high * 1.06 if high > 0 else 1.0
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _frame(across: _Axis, up: _Axis, whole_up: bool = False) -> Html:
    """Grid, numbers on both axes."""
    rows = ticks(up.low, up.high, 4, whole_up)
    columns = ticks(across.low, across.high, 6, whole=not whole_up)
    places = [up.place(tick) for tick in rows]
    lines = [tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}") for y in places]
    left = [
        tag("text", _tick(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")
        for tick, y in zip(rows, places, strict=True)
    ]
    below = [
        tag("text", _tick(tick), x=f"{across.place(tick):.1f}", y=_HEIGHT - 8, text_anchor="middle")
        for tick in columns
    ]
    return tag("g", lines, left, below, class_="frame")


def _tick(value: float) -> str:
    value = 0.0 if abs(value) < 1e-12 else float(f"{value:.10g}")
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _warmup(warmup: int, across: _Axis) -> Html:
    end = min(across.place(warmup), across.end)
    line = (
        tag("line", x1=f"{end:.1f}", x2=f"{end:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM)
        if warmup <= across.high
        else None
    )
    area = tag("rect", x=_LEFT, width=f"{end - _LEFT:.1f}", y=_TOP, height=_HEIGHT - _BOTTOM - _TOP)
    said = tag("text", "warm-up", x=f"{end:.1f}", y=_TOP - 6, text_anchor="end") if end - _LEFT > 50 else None
    return tag("g", area, line, said, class_="warmup")


def _curve(line: Line, across: _Axis, up: _Axis) -> Html:
    spots = [(across.place(x), up.place(y)) for x, y in line.points]
    style = look(line.place)
    if len(spots) < 3:  # a line of one point is nothing to see
        return tag(
            "g",
            [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, class_=style["class_"]) for x, y in spots],
        )
    return tag(
        "path",
        d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in spots),
        **(style | {"class_": f"line {style['class_']}"}),
    )


def _area(band: Sequence[tuple[float, float, float]], across: _Axis, up: _Axis) -> str:
    there = [(x, high) for x, _, high in band]
    back = [(x, low) for x, low, _ in reversed(band)]
    return "M" + "L".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in there + back) + "Z"


def _heading(chart: Chart) -> Html:
    if len(chart.lines) == 1:
        return tag("h4", chart.title)
    keys = [tag("span", swatch(line.place), line.name) for line in chart.lines]
    return tag("div", tag("h4", chart.title), tag("p", keys, class_="legend"), class_="chart-head")


def swatch(place: int) -> Html:
    """A short piece of the line, for legends."""
    style = look(place)
    line = tag("line", x1=0, x2=18, y1=5, y2=5, **(style | {"class_": f"line {style['class_']}"}))
    return tag("svg", line, viewBox="0 0 18 10", class_="key", aria_hidden="true")


def _said(line: Line) -> str:
    return f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}"


def _told(line: Line) -> dict[str, Any]:
    """What the pointer says. Bands are told with their line."""
    told: dict[str, Any] = {
        "name": line.name,
        "colour": line.place % COLOURS,
        "x": [x for x, _ in line.points],
        "y": [_short(y) for _, y in line.points],
    }
    return told | (
        {"band": [[_short(low), _short(high)] for _, low, high in line.band]}
        if len(line.band) == len(line.points)
        else {}
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if whole:
        step = max(1, math.ceil((high - low + 1) / _BARS))
        return np.arange(low - 0.5, high + 0.5 + step, step)
    if high - low < 1e-9:
        low, high = low - max(abs(low) * 0.1, 1e-3), high + max(abs(high) * 0.1, 1e-3)
    return np.linspace(low, high, _BARS + 1)


def _bar(low: float, high: float, amount: int, across: _Axis, up: _Axis) -> Html:
    left, right, top = across.place(low) + 0.5, across.place(high) - 0.5, up.place(amount)
    said = f"{number(float(low))} to {number(float(high))}: {amount:,}"
    return tag(
        "rect",
        tag("title", said),
        x=f"{left:.1f}",
        y=f"{top:.1f}",
        width=f"{max(right - left, 0.5):.1f}",
        height=f"{up.start - top:.1f}",
    )
