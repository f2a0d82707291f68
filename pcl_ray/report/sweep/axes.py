"""Axes of a sweep's figures: where the values of a knob of any kind lie on them, and the name of the axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from pcl_ray.report.sweep.leaderboard import is_number, log_scaled, short
from pcl_ray.support.text import cut, value_text

_MOST_TICKS = 6
LABEL = 16  # characters of a tick's label
_NAMES = {"τ": "temperature τ", "α": "concentration smoothing α", "K": "clusters K"}


class Scale:
    """A knob's values on an axis, and its ticks: numbers maybe logarithmic, anything else evenly spaced."""

    def __init__(self, knob: str, values: Sequence[Any]):
        self.numeric = all(is_number(value) for value in values)
        self.categories = (
            [] if self.numeric else sorted({value_text(value) for value in values}, key=by_numbers)
        )
        self.log = self.numeric and log_scaled(knob, values)
        spots = [self.spot(value) for value in values] or [0.0]
        self.low, self.high = min(spots), max(spots)
        self.spots = sorted(set(spots))

    def spot(self, value: Any) -> float:
        return float(value) if self.numeric else float(self.categories.index(value_text(value)))

    def share(self, value: Any) -> float:
        """0 at the lowest value, 1 at the highest."""
        low, high, spot = (math.log(x) if self.log else x for x in (self.low, self.high, self.spot(value)))
        return (spot - low) / (high - low) if high > low else 0.5

    def ticks(self, most: int = _MOST_TICKS) -> dict[float, str]:
        """Spot → label: the values themselves if few and short, else round numbers; labels never touch."""
        if not self.numeric:
            step = math.ceil(len(self.categories) / (4 * most))
            return {
                float(spot): cut(label, LABEL)
                for spot, label in enumerate(self.categories)
                if spot % step == 0
            }
        if len(self.spots) == 1:
            return {self.low: f"{self.low:.4g}"}
        few = len(self.spots) <= most + 2 and all(len(f"{spot:g}") <= 6 for spot in self.spots)
        ticks: dict[float, str] = {}
        for spot in self.spots if few else self._round_numbers(most):
            if not ticks or self.share(spot) - self.share(list(ticks)[-1]) >= 0.7 / most:
                ticks[spot] = f"{spot:g}"
        return ticks

    def _round_numbers(self, most: int) -> list[float]:
        decades = range(0)
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
        for factors in steps:  # the coarsest that gives enough
            spots = [float(f"{factor * 10.0**decade:.6g}") for decade in decades for factor in factors]
            spots = [spot for spot in spots if self.low * 0.97 <= spot <= self.high * 1.03]
            if len(spots) >= most - 2:
                return spots
        return [
            float(f"{spot:.10g}")
            for spot in MaxNLocator(most - 1).tick_values(self.low, self.high)
            if self.low <= spot <= self.high
        ]

    def apply(self, axes: Axes, axis: str) -> None:
        """Sets scale, limits and ticks of the "x" or "y" axis."""
        ticks = self.ticks()
        getattr(axes, f"set_{axis}scale")("log" if self.log else "linear")
        wide = self.high > self.low
        if self.log:
            margin = (self.high / self.low) ** 0.06 if wide else 2.0
            limits = (self.low / margin, self.high * margin)
        else:
            margin = 0.06 * (self.high - self.low) if self.numeric and wide else 0.5
            limits = (self.low - margin, self.high + margin)
        getattr(axes, f"set_{axis}lim")(*limits)
        drawn = getattr(axes, f"{axis}axis")
        drawn.set_major_locator(FixedLocator(list(ticks)))
        drawn.set_minor_locator(NullLocator())
        drawn.set_ticks(list(ticks), list(ticks.values()))
        crowded = not self.numeric and sum(len(label) + 2 for label in ticks.values()) > 36
        if axis == "x" and crowded:
            axes.tick_params(axis="x", labelrotation=90 if len(ticks) > 10 else 30, labelsize=7)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("center" if len(ticks) > 10 else "right")


def label_of(knob: str, lines: bool = False) -> str:
    """ "temperature τ" for the three of the paper, else the dotted name."""
    name = _NAMES.get(short(knob), knob)
    return name.replace(" ", "\n").replace(".", ".\n") if lines else name


def by_numbers(label: str) -> tuple[int, list[float], str]:
    """A key for sorting labels: "0.02,0.04" before "0.1", words after numbers."""
    try:
        return 0, [float(part) for part in label.split(",")], label
    except ValueError:
        return 1, [], label
