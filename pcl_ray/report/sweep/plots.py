"""Figures of a sweep, one function each: every one gives back a matplotlib Figure, or None where it has
nothing to show.

Colours are those of Okabe and Ito, and cividis: told apart by everybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pcl_ray.config.figures import Direction
from pcl_ray.report.drawing.panels import figure_of, legend, tidy
from pcl_ray.report.sweep.axes import LABEL, Scale, label_of
from pcl_ray.report.sweep.leaderboard import Configuration, TrialRecord, ranked, score, value_of
from pcl_ray.support.text import cut

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#5A5A5A"
_COLOURS = "cividis"
_DPI = 110
_MOST_CELLS = 12  # a side, of a map that shows every cell
_TEMPERATURE, _ALPHA = "loss.temperature", "e_step.alpha"


def objective_by_knob(records: Sequence[TrialRecord], knobs: Sequence[str], objective: str) -> Figure:
    """One panel a knob: finished trials filled, stopped early or unfinished hollow, refused grey, failed as
    crosses at the bottom; means of repeated values.
    """
    columns = 2 if len(knobs) == 4 else min(3, max(1, len(knobs)))
    lines = max(1, math.ceil(len(knobs) / columns))
    figure = figure_of(max(4.2 * columns, 5.6), 3.4 * lines + 0.8, f"{objective} by knob")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for panel, knob in zip(panels, knobs, strict=False):
        tidy(panel)
        _draw_knob(panel, knob, [record for record in records if knob in record.point])
        panel.set_xlabel(label_of(knob))
    for panel in panels[::columns]:
        panel.set_ylabel(objective)
    for panel in panels[len(knobs) :]:
        panel.set_visible(False)
    if not any(value_of(record) is not None for record in records):
        for panel in panels:
            panel.set_yticks([])
    legend(figure, panels[: len(knobs)])
    return figure


def _draw_knob(panel: Axes, knob: str, records: Sequence[TrialRecord]) -> None:
    scale = Scale(knob, [record.point[knob] for record in records])
    measured = [record for record in records if value_of(record) is not None]
    _scatter(panel, [(record, scale.spot(record.point[knob])) for record in measured])
    lost = [
        scale.spot(record.point[knob])
        for record in records
        if record not in measured and record.state != "unfinished"
    ]
    if lost:
        panel.margins(y=0.12)  # room for the crosses
        panel.plot(
            lost,
            [0.03] * len(lost),
            "x",
            color=_RED,
            markersize=6,
            transform=panel.get_xaxis_transform(),
            label="failed or without a value",
            zorder=4,
        )
    means = _means(measured, knob, scale)
    if means:
        style = "-" if scale.numeric and len(means) > 1 else "none"
        panel.plot(
            list(means),
            list(means.values()),
            linestyle=style,
            marker="_",
            markersize=13,
            color="black",
            linewidth=1.2,
            label="mean of finished",
            zorder=3,
        )
    scale.apply(panel, "x")


def _means(records: Sequence[TrialRecord], knob: str, scale: Scale) -> dict[float, float]:
    """Spot → mean objective of the trials that finished and passed; {} where values were tried less than
    twice on average: such means are noise.

    With those stopped early, it would be the mean of different epochs, and tell how many were stopped.
    """
    values: dict[float, list[float]] = {}
    for record in records:
        value = value_of(record)
        if value is not None and record.state == "finished" and not record.refused:
            values.setdefault(scale.spot(record.point[knob]), []).append(value)
    if sum(len(tried) for tried in values.values()) < 2 * len(values):
        return {}
    return {spot: sum(tried) / len(tried) for spot, tried in sorted(values.items())}


def _scatter(panel: Axes, placed: Sequence[tuple[TrialRecord, float]]) -> None:
    """Trials at x and their objective. One PathCollection a kind, labelled for the legend."""
    size, alpha = (34, 0.85) if len(placed) <= 60 else (18, 0.6)
    kinds: dict[str, tuple[list[float], list[float]]] = {}
    for record, x in placed:
        value = value_of(record)
        if value is not None:
            kind = "refused" if record.refused else record.state
            kinds.setdefault(kind, ([], []))[0].append(x)
            kinds[kind][1].append(value)
    looks: dict[str, dict[str, Any]] = {
        "finished": {"color": _BLUE, "linewidths": 0},
        "stopped early": {"facecolors": "none", "edgecolors": _ORANGE, "linewidths": 1.3},
        "unfinished": {"facecolors": "none", "edgecolors": _GREEN, "linewidths": 1.3, "marker": "s"},
        "refused": {"color": _GREY, "linewidths": 0, "marker": "v"},
    }
    for kind, look in looks.items():
        if kind in kinds:
            panel.scatter(*kinds[kind], s=size, alpha=alpha, label=kind, zorder=2, **look)


def temperature_alpha_map(
    records: Sequence[TrialRecord], objective: str, direction: Direction = "max"
) -> Figure | None:
    """The best configuration's mean objective for each (τ, α): a table of cells for a grid, else points;
    yellow is best, and for nearest_one the distance from 1 is shown. None where one of the two has but one
    value.
    """
    cells: dict[tuple[Any, Any], float] = {}
    for row in ranked(records, direction):
        if (
            row.mean is not None
            and not any(trial.refused for trial in row.trials)
            and _TEMPERATURE in row.point
            and _ALPHA in row.point
        ):
            cells.setdefault(
                (row.point[_TEMPERATURE], row.point[_ALPHA]),
                abs(row.mean - 1) if direction == "nearest_one" else row.mean,
            )
    across = Scale(_TEMPERATURE, [temperature for temperature, _ in cells])
    up = Scale(_ALPHA, [alpha for _, alpha in cells])
    if min(len(across.spots), len(up.spots)) < 2:
        return None
    figure = figure_of(6.4, 5.0, f"best {objective} by τ and α")
    panel = figure.subplots()
    few = max(len(across.spots), len(up.spots)) <= _MOST_CELLS
    grid = few and 2 * len(cells) >= len(across.spots) * len(up.spots)
    palette = _COLOURS if direction == "max" else f"{_COLOURS}_r"
    colours = (_cells if grid else _points)(panel, cells, across, up, palette)
    panel.set_xlabel(label_of(_TEMPERATURE))
    panel.set_ylabel(label_of(_ALPHA))
    figure.colorbar(
        colours, ax=panel, label=f"|{objective} − 1|" if direction == "nearest_one" else objective
    )
    return figure


def _cells(
    panel: Axes, cells: Mapping[tuple[Any, Any], float], across: Scale, up: Scale, colours: str
) -> Any:
    values = np.full((len(up.spots), len(across.spots)), np.nan)
    for (temperature, alpha), value in cells.items():
        values[up.spots.index(up.spot(alpha)), across.spots.index(across.spot(temperature))] = value
    panel.set_facecolor("#E6E6E6")  # of cells that nobody tried
    image = panel.imshow(values, origin="lower", aspect="auto", cmap=colours)
    for (y, x), value in np.ndenumerate(values):
        if math.isfinite(value):
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
            size = 9 if values.shape[1] <= 7 else 6
            panel.text(
                x,
                y,
                f"{value:.4g}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else "black",
            )
    for scale, axis in ((across, panel.xaxis), (up, panel.yaxis)):
        labels = [
            f"{spot:g}" if scale.numeric else cut(scale.categories[int(spot)], LABEL) for spot in scale.spots
        ]
        axis.set_ticks(range(len(labels)), labels, fontsize=9 if len(labels) <= 7 else 7)
    return image


def _points(
    panel: Axes, cells: Mapping[tuple[Any, Any], float], across: Scale, up: Scale, colours: str
) -> Any:
    tidy(panel)
    x, y = [across.spot(temperature) for temperature, _ in cells], [up.spot(alpha) for _, alpha in cells]
    drawn = panel.scatter(
        x,
        y,
        c=list(cells.values()),
        cmap=colours,
        s=60 if len(cells) <= 60 else 32,
        edgecolors="white",
        linewidths=0.5,
        zorder=2,
    )
    across.apply(panel, "x")
    up.apply(panel, "y")
    return drawn


def parallel_coordinates(
    records: Sequence[TrialRecord], knobs: Sequence[str], objective: str, direction: Direction = "max"
) -> Figure | None:
    """One line a configuration, through its knobs to its mean objective, the best in red. None without a knob
    or a configuration that was measured.
    """
    rows = [
        row
        for row in ranked(records, direction)
        if row.mean is not None and all(knob in row.point for knob in knobs)
    ]
    if not rows or not knobs:
        return None
    figure = figure_of(
        max(5.6, 1.9 * (len(knobs) + 1)), 4.4, f"configurations and their {objective}, the best in red"
    )
    panel = figure.subplots()
    scales = [
        *(Scale(knob, [row.point[knob] for row in rows]) for knob in knobs),
        Scale(objective, [row.mean for row in rows]),
    ]
    _draw_lines(panel, rows, knobs, scales, direction)
    for column, scale in enumerate(scales):
        panel.axvline(column, color="black", linewidth=0.8, zorder=3)
        for spot, label in scale.ticks().items():
            where = scale.share(scale.categories[int(spot)] if scale.categories else spot)
            panel.text(
                column + 0.03,
                where,
                label,
                fontsize=8,
                va="center",
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8},
            )
    panel.set_xticks(range(len(scales)), [*(label_of(knob, lines=True) for knob in knobs), objective])
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(scales) - 1 + 0.35)
    panel.spines[:].set_visible(False)
    panel.tick_params(axis="x", length=0)
    return figure


def _draw_lines(
    panel: Axes,
    rows: Sequence[Configuration],
    knobs: Sequence[str],
    scales: Sequence[Scale],
    direction: Direction,
) -> None:
    """The best last, so that it lies on top; refused ones grey."""
    scores = [score(row.mean, direction) for row in rows if row.mean is not None]
    low, high = min(scores), max(scores)
    for number, (row, worth) in reversed(list(enumerate(zip(rows, scores, strict=True)))):
        heights = [
            scale.share(value)
            for scale, value in zip(scales, [*(row.point[knob] for knob in knobs), row.mean], strict=True)
        ]
        refused = any(trial.refused for trial in row.trials)
        if number == 0 and not refused:
            panel.plot(heights, color=_RED, linewidth=2.6, zorder=4, label="best")
            continue
        share = (worth - low) / (high - low) if high > low else 0.5
        colour = _GREY if refused else colormaps[_COLOURS](share)
        panel.plot(
            heights,
            color=colour,
            linewidth=1.2,
            alpha=0.85 if len(rows) <= 60 else 0.45,
            linestyle=":" if refused else "-",
            zorder=2,
        )
    panel.set_ylim(-0.04, 1.04)


def objective_by_cost(records: Sequence[TrialRecord], objective: str, direction: Direction) -> Figure | None:
    """Objective against the device minutes that a trial takes by itself, a shared warm-up counted for all.
    None where no trial was measured.
    """
    measured = [record for record in records if value_of(record) is not None]
    if not measured:
        return None
    minutes = [(record.device_seconds + record.saved_seconds) / 60 for record in measured]
    figure = figure_of(6.4, 4.4, f"{objective} by cost")
    panel = figure.subplots()
    tidy(panel)
    _scatter(panel, list(zip(measured, minutes, strict=True)))
    front = _pareto(
        [(cost, record) for cost, record in zip(minutes, measured, strict=True) if not record.refused],
        direction,
    )
    if front:
        costs, values = zip(*front, strict=True)
        panel.step(
            costs,
            values,
            where="post",
            color=_RED,
            linewidth=1.4,
            marker="o",
            markersize=9,
            markerfacecolor="none",
            label="Pareto front",
            zorder=3,
        )
    if direction == "nearest_one":
        panel.axhline(1.0, color=_GREY, linewidth=1.0, linestyle="--", label="best possible")
    Scale("minutes", minutes).apply(panel, "x")
    panel.set_xlabel(
        "device minutes of a trial"
        + (", shared warm-up included" if any(record.saved_seconds for record in measured) else "")
    )
    panel.set_ylabel(objective)
    legend(figure, [panel])
    return figure


def _pareto(costs: Sequence[tuple[float, TrialRecord]], direction: Direction) -> list[tuple[float, float]]:
    """(minutes, objective) of trials than which none is both as cheap and better, cheapest first."""
    pairs = [(cost, value) for cost, record in costs if (value := value_of(record)) is not None]
    front: list[tuple[float, float]] = []
    for cost, value in sorted(pairs, key=lambda pair: (pair[0], -score(pair[1], direction))):
        if not front or score(value, direction) > score(front[-1][1], direction):
            front.append((cost, value))
    return front


def importance_bars(importances: Mapping[str, float]) -> Figure | None:
    """Shares of the objective's variance, the largest at the top; None where there are none."""
    if not importances:
        return None
    names = sorted(importances, key=lambda name: importances[name])
    figure = figure_of(6.0, 1.3 + 0.42 * len(names), "what the objective depends on (fANOVA)")
    panel = figure.subplots()
    bars = panel.barh(
        [label_of(name) for name in names], [importances[name] for name in names], color=_BLUE, height=0.6
    )
    panel.bar_label(bars, labels=[f"{importances[name]:.0%}" for name in names], padding=4, fontsize=9)
    panel.set_xlim(0, 1.12)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    panel.set_xlabel("share of the variance")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def write_all(
    records: Sequence[TrialRecord],
    knobs: Sequence[str],
    objective: str,
    direction: Direction,
    importances: Mapping[str, float],
    folder: Path,
) -> list[Path]:
    """PNGs in `folder`, which exists; gives back those written. What has nothing to show is skipped."""
    figures = {
        "objective_by_knob": objective_by_knob(records, knobs, objective) if records and knobs else None,
        "temperature_alpha": temperature_alpha_map(records, objective, direction),
        "parallel_coordinates": parallel_coordinates(records, knobs, objective, direction),
        "objective_by_cost": objective_by_cost(records, objective, direction),
        "importance": importance_bars(importances),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=_DPI)
    return written
