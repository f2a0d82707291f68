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
class Curve:
    """A named curve. number: chooses colour and dashes. band: (x, low, high), a pale area around it."""

    name: str
    points: Points
    number: int = 0
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """Curves with heading and caption. identifier: unique in the page. from_zero: the axis begins at 0."""

    identifier: str
    title: str
    caption: str
    curves: Sequence[Curve]
    from_zero: bool = False


def stroke(number: int) -> dict[str, str]:
    """The class and the dashes by which the curve with this number is told from others."""
    dashes = _DASHES[number // COLOURS % len(_DASHES)]
    return {"class_": f"s{number % COLOURS}"} | ({"stroke_dasharray": dashes} if dashes else {})


def line_chart(chart: Chart, warmup: int = 0) -> Html:
    """The chart with heading, legend, curves over epochs, and the end of the warm-up where it lies in it."""
    curves = [
        Curve(curve.name, thinned(curve.points), curve.number, thinned(curve.band)) for curve in chart.curves
    ]
    xs = [x for curve in curves for x, _ in curve.points]
    first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    across = _Axis(first, last, _LEFT, _WIDTH - _RIGHT)
    up = _Axis(*_limits(curves, chart.from_zero), _HEIGHT - _BOTTOM, _TOP)
    bands = [
        tag("path", d=_area(curve.band, across, up), class_=f"band s{curve.number % COLOURS}")
        for curve in curves
        if len(curve.band) > 1
    ]
    drawing = tag(
        "svg",
        _frame(across, up),
        _warmup(warmup, across) if first < warmup and warmup > 0 else None,
        bands,
        [_path(curve, across, up) for curve in curves],
        tag("line", class_="cursor", y1=_TOP, y2=_HEIGHT - _BOTTOM, x1=_LEFT, x2=_LEFT),
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=f"{chart.title}: " + "; ".join(_description(curve) for curve in chart.curves[:6]),
    )
    data = {
        "scale": [first, last, _LEFT, _WIDTH - _RIGHT],
        "lines": [_pointer_data(curve) for curve in curves],
    }
    return tag(
        "figure",
        _heading(chart),
        drawing,
        tag("figcaption", chart.caption),
        data_script(f"{chart.identifier}-data", data),
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
    """A histogram. whole: values are counts, so bars are whole numbers wide. mark: a value and its name."""
    edges = _edges(values, whole)
    counts, _ = np.histogram(values, edges)
    across = _Axis(float(edges[0]), float(edges[-1]), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(0.0, float(max(counts.max(initial=1), 1)) * 1.06, _HEIGHT - _BOTTOM, _TOP)
    bars = [
        _bar(low, high, int(amount), across, up)
        for low, high, amount in zip(edges[:-1], edges[1:], counts, strict=True)
        if amount
    ]
    low, high = number(float(values.min())), number(float(values.max()))
    drawing = tag(
        "svg",
        _frame(across, up, whole_up=True),
        bars,
        _mark(*mark, across) if mark and edges[0] <= mark[1] <= edges[-1] else None,
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=f"{title}: from {low} to {high}, median {number(float(np.median(values)))}",
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


def _mark(name: str, value: float, across: _Axis) -> Html:
    """A vertical line at a value, and its name on the side where there is space."""
    x = across.at(value)
    text: dict[str, Any] = {"x": f"{x + 5:.1f}"}
    if x >= _WIDTH * 0.7:
        text = {"x": f"{x - 5:.1f}", "text_anchor": "end"}
    return tag(
        "g",
        tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM),
        tag("text", name, y=_TOP - 6, **text),
        class_="mark",
    )


def thinned(points: Sequence[Any]) -> list[Any]:
    """The points, 500 of them or so at most, the first and the last among them."""
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    fewer = list(points[::step])
    if points and fewer[-1] != points[-1]:
        fewer.append(points[-1])
    return fewer


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers between the two, at most `most` + 1."""
    raw = max((high - low) / most, 1e-12)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axis:
    """One axis of a drawing: where its values lie, in pixels."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _limits(curves: Sequence[Curve], from_zero: bool) -> tuple[float, float]:
    """The lowest and the highest value of the axis, with some space around the curves."""
    values = [y for curve in curves for _, y in curve.points]
    values += [y for curve in curves for _, low, high in curve.band for y in (low, high)]
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        return 0.0, high * 1.06 if high > 0 else 1.0
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return low - margin, high + margin


def _frame(across: _Axis, up: _Axis, whole_up: bool = False) -> Html:
    """The grid, and numbers on both axes."""
    rows = ticks(up.low, up.high, 4, whole_up)
    columns = ticks(across.low, across.high, 6, whole=not whole_up)
    heights = [up.at(tick) for tick in rows]
    lines = [tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}") for y in heights]
    left = [
        tag("text", _tick(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")
        for tick, y in zip(rows, heights, strict=True)
    ]
    below = [
        tag("text", _tick(tick), x=f"{across.at(tick):.1f}", y=_HEIGHT - 8, text_anchor="middle")
        for tick in columns
    ]
    return tag("g", lines, left, below, class_="frame")


def _tick(value: float) -> str:
    value = 0.0 if abs(value) < 1e-12 else float(f"{value:.10g}")
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _warmup(warmup: int, across: _Axis) -> Html:
    end = min(across.at(warmup), across.end)
    area = tag("rect", x=_LEFT, width=f"{end - _LEFT:.1f}", y=_TOP, height=_HEIGHT - _BOTTOM - _TOP)
    line, label = None, None
    if warmup <= across.high:
        line = tag("line", x1=f"{end:.1f}", x2=f"{end:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM)
    if end - _LEFT > 50:
        label = tag("text", "warm-up", x=f"{end:.1f}", y=_TOP - 6, text_anchor="end")
    return tag("g", area, line, label, class_="warmup")


def _path(curve: Curve, across: _Axis, up: _Axis) -> Html:
    """The curve as a line; as points where it has one or two, for a line of one point is nothing to see."""
    spots = [(across.at(x), up.at(y)) for x, y in curve.points]
    style = stroke(curve.number)
    if len(spots) < 3:
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
    """The outline of a band: along its upper edge and back along the lower one."""
    upper = [(x, high) for x, _, high in band]
    lower = [(x, low) for x, low, _ in reversed(band)]
    return "M" + "L".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in upper + lower) + "Z"


def _heading(chart: Chart) -> Html:
    if len(chart.curves) == 1:
        return tag("h4", chart.title)
    keys = [tag("span", swatch(curve.number), curve.name) for curve in chart.curves]
    return tag("div", tag("h4", chart.title), tag("p", keys, class_="legend"), class_="chart-head")


def swatch(number: int) -> Html:
    """A short piece of the curve with this number, for legends."""
    style = stroke(number)
    line = tag("line", x1=0, x2=18, y1=5, y2=5, **(style | {"class_": f"line {style['class_']}"}))
    return tag("svg", line, viewBox="0 0 18 10", class_="key", aria_hidden="true")


def _description(curve: Curve) -> str:
    """The curve in words, for screen readers."""
    return f"{curve.name} from {number(curve.points[0][1])} to {number(curve.points[-1][1])}"


def _pointer_data(curve: Curve) -> dict[str, Any]:
    """What the script shows under the pointer: the curve's values, and its band where every point has one."""
    data: dict[str, Any] = {
        "name": curve.name,
        "colour": curve.number % COLOURS,
        "x": [x for x, _ in curve.points],
        "y": [_short(y) for _, y in curve.points],
    }
    if len(curve.band) == len(curve.points):
        data["band"] = [[_short(low), _short(high)] for _, low, high in curve.band]
    return data


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
    left, right = across.at(low) + 0.5, across.at(high) - 0.5
    top = up.at(amount)
    text = f"{number(float(low))} to {number(float(high))}: {amount:,}"
    return tag(
        "rect",
        tag("title", text),
        x=f"{left:.1f}",
        y=f"{top:.1f}",
        width=f"{max(right - left, 0.5):.1f}",
        height=f"{up.start - top:.1f}",
    )
