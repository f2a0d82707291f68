"""What our views of MLflow's dashboard show: its columns, and its charts in sections.

Everything is written as the dashboard stores it; the identifiers of sections and cards are numbered, so that
the same view is the same text, whoever writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pcl_ray.config import figures
from pcl_ray.config.figures import Figure
from pcl_ray.config.final_figures import FINAL_FIGURES

RUNS, ALL_RUNS = "pcl", "pcl-all"  # keys of the views of single runs, and of all with the trials of sweeps
_OF_ACCURACIES = [figure.name.rpartition("/")[0] for figure in (figures.HEAD_KNN_TOP1, *figures.REFERENCES)]
_AT_THE_END = tuple(figure for figure in FINAL_FIGURES if figure.charted)
_DATA = "attributes.`Dataset`"
_WIDTH = 92  # px of a column
_AXES = {"e_step.num_clusters": "plan.num_clusters_0"}  # the knob's own value is text, as "250,500"


@dataclass(frozen=True)
class Sweep:
    """What the view of a sweep is made from. knobs: swept parameters, and whether their values are numbers.
    last_step: the step of a trial's last pictures.
    """

    name: str
    objective: str
    direction: str  # "min": the smallest first; otherwise the largest
    knobs: Mapping[str, bool] = field(default_factory=dict)
    last_step: int = 0


class View(NamedTuple):
    """A view: its key in addresses, its name in the dashboard's list, and what the dashboard restores."""

    key: str
    name: str
    state: dict[str, Any]


def sweep_key(name: str) -> str:
    """The key of a sweep's view: its name, as far as an address takes it."""
    return "sweep-" + re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]


def runs_view(clusterings: int, *, trials: bool = False) -> View:
    """The view of all runs, the best first, with charts from losses to pictures. trials: whether those of
    sweeps are in it too, which would hide the other runs.
    """
    key, name, wanted = RUNS, "PCL runs", "tags.`pcl_ray.sweep` IS NULL"
    if trials:
        key, name, wanted = ALL_RUNS, "PCL runs and trials", ""
    layout = _Layout(key)
    _training(layout, clusterings)
    layout.section("Pictures through training", _pictures(clusterings, step=0), columns=2, height=440)
    layout.leftovers([*_rest(clusterings), "sweep", figures.SWEEP_IMPORTANCE.name.rpartition("/")[0]])
    params = ["train.epochs", "e_step.num_clusters", "loss.temperature", "e_step.alpha", "encoder.backbone"]
    return View(key, name, _state(layout, figures.KNN_TOP1.name, params, {"searchFilter": wanted}))


def sweep_view(sweep: Sweep, clusterings: int) -> View:
    """The view of a sweep: leaderboard, charts of knobs against objective, trials' pictures and training."""
    key = sweep_key(sweep.name)
    layout = _Layout(key)
    axes = {name: _AXES.get(name, name) for name, numeric in sweep.knobs.items() if numeric or name in _AXES}
    others = [figure.name for figure in figures.OBJECTIVES if figure.name != sweep.objective]
    if axes:
        ends = {
            "selectedParams": list(axes.values()),
            "selectedMetrics": [*others[-1:], sweep.objective],
            "showAllRuns": False,
        }
        layout.section("Knobs and objective, a line for each trial", [_card("PARALLEL", **ends)], columns=1)
    layout.section(
        "Knobs and objective, a point for each trial", _points(sweep.objective, axes, others), columns=2
    )
    groups = {
        "compareGroups": ["Model metrics", "Parameters"],
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
    layout.section(
        "Differences",
        [_card("DIFFERENCE", chartName="Trials, the first one as baseline", **groups)],
        columns=1,
        height=500,
    )
    layout.section(
        "Pictures of the trials", _sheets(clusterings, step=sweep.last_step), columns=1, height=460
    )
    _training(layout, clusterings)
    layout.leftovers(_rest(clusterings))
    sign = '"' if "'" in sweep.name else "'"
    own = {
        "searchFilter": f"tags.`pcl_ray.sweep` = {sign}{sweep.name}{sign}",
        "orderByAsc": sweep.direction == "min",
        "runsHiddenMode": "SHOW_ALL",
    }
    return View(
        key,
        f"Sweep {sweep.name}",
        _state(layout, sweep.objective, [*sweep.knobs, "seed"], own, leaderboard=True),
    )


def _points(objective: str, axes: Mapping[str, str], others: Iterable[str]) -> list[dict[str, Any]]:
    """Charts with a point for each trial."""
    aim = {"key": objective, "type": "METRIC"}
    params = {name: {"key": axis, "type": "PARAM"} for name, axis in axes.items()}
    cards = [_card("BAR", metricKey=objective)]
    cards += [_card("SCATTER", xaxis=axis, yaxis=aim) for axis in params.values()]
    cards += [_card("SCATTER", xaxis={"key": name, "type": "METRIC"}, yaxis=aim) for name in others]
    if {"loss.temperature", "e_step.alpha"} <= params.keys():
        cards.append(
            _card("CONTOUR", xaxis=params["loss.temperature"], yaxis=params["e_step.alpha"], zaxis=aim)
        )
    return cards


def _training(layout: _Layout, clusterings: int) -> None:
    """Adds the sections about training. The dashboard titles a chart by its metrics and shows no names."""
    numbers = range(clusterings)

    def of_all(figure: Figure) -> dict[str, Any] | None:
        """One chart with a line for each clustering; None where there are none."""
        return _line(*(figure.at(m) for m in numbers)) if clusterings else None

    losses = (figures.LOSS, figures.LOSS_INSTANCE, figures.LOSS_PROTOTYPE)
    layout.section("Losses", [_line(figure) for figure in losses])
    heads = [figures.ACCURACY_INSTANCE, *(figures.ACCURACY_PROTOTYPE.at(m) for m in numbers)]
    layout.section("Accuracy of both heads", [_line(figure) for figure in heads])
    accuracies = _line(figures.KNN_TOP1, *figures.REFERENCES, figures.HEAD_KNN_TOP1)
    layout.section("Evaluation", [accuracies, of_all(figures.AMI), _line(figures.RANKME)])
    layout.section("Few labels and clusters, at the end", [_bar(figure) for figure in _AT_THE_END])
    percentiles = (figures.PHI_P10, figures.PHI_P50, figures.PHI_P90)
    layout.section(
        "Concentration φ of the prototypes",
        [_line(*(figure.at(m) for figure in percentiles)) for m in numbers],
    )
    health = (figures.LARGEST_SHARE, figures.EMPTY, figures.NMI_PREVIOUS, figures.DRIFT, figures.COLLISIONS)
    layout.section("Cluster health", [*(of_all(figure) for figure in health), _line(figures.RANK)])
    gauges = (figures.GRADIENT_NORM, figures.FEATURE_STD, figures.LEARNING_RATE)
    layout.section("Training health", [_line(figure) for figure in gauges])
    seconds = _line(figures.M_STEP_SECONDS, figures.E_STEP_SECONDS)
    layout.section("Throughput", [_line(figures.IMAGES_PER_SECOND), seconds, _line(figures.DATA_SHARE)])


def _pictures(clusterings: int, step: int) -> list[dict[str, Any]]:
    """Cards of pictures, each with a slider that begins at `step`. Where there is one step only, the
    dashboard goes there by itself.
    """
    keys = [*(("clusters/sizes", "clusters/phi") if clusterings else ()), "map", "views"]
    return [
        *_sheets(clusterings, step),
        *(_card("IMAGE", imageKeys=[key], step=step, showRunParams=False) for key in keys),
    ]


def _sheets(clusterings: int, step: int) -> list[dict[str, Any]]:
    """Cards of the prototypes' pictures, the only ones that trials of a sweep have."""
    return [
        _card("IMAGE", imageKeys=[f"prototypes/{m}"], step=step, showRunParams=False)
        for m in range(clusterings)
    ]


def _rest(clusterings: int) -> list[str]:
    """The sections in which the dashboard puts metrics without a card, named by all before the last slash."""
    at_the_end = [figure.name.rpartition("/")[0] for figure in _AT_THE_END]
    return [
        "train",
        *dict.fromkeys(["eval", *_OF_ACCURACIES, *at_the_end]),
        *(f"cluster/{m}" for m in range(clusterings)),
        "cluster",
        "perf",
    ]


def _state(
    layout: _Layout, objective: str, params: list[str], own: dict[str, Any], *, leaderboard: bool = False
) -> dict[str, Any]:
    """Everything that the dashboard restores. own: what differs from other views. leaderboard: whether the
    objective stands first.
    """
    beside = (figures.KNN_TOP1, *figures.REFERENCES, figures.AMI.at(0), figures.DEVICE_MINUTES)
    metrics = dict.fromkeys([objective, *(figure.name for figure in beside)])
    knob_columns = [f"params.`{name}`" for name in params]
    figure_columns = [f"metrics.`{name}`" for name in metrics]
    # Of single runs: on what, how, then how well, all in a window of 1,440 px. Of trials, which are alike in
    # the rest: how well first.
    ordered = [*figure_columns, *knob_columns] if leaderboard else [_DATA, *knob_columns, *figure_columns]
    columns = [*ordered, "tags.`trial.status`"]
    widths = {**dict.fromkeys(columns, _WIDTH), "attributes.`Run Name`": 2 * _WIDTH}
    common = {
        "searchFilter": "",
        "orderByKey": f"metrics.`{objective}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Duration`"],
        # the grid's own names
        "columnOrder": ["1", "attributes.`Run Name`", "runDateAndNestInfo", *columns, "duration"],
        "columnWidths": widths,
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": layout.cards,
        "compareRunSections": layout.sections,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return common | own


class _Layout:
    """The sections of a view and their cards, with the identifiers that they get."""

    def __init__(self, key: str):
        self._key = key
        self.sections: list[dict[str, Any]] = []
        self.cards: list[dict[str, Any]] = []

    def section(
        self, name: str, cards: Iterable[dict[str, Any] | None], *, columns: int = 2, height: int = 360
    ) -> None:
        """A section with these cards; none where there are no cards."""
        drawn = [card for card in cards if card is not None]
        if not drawn:
            return
        identifier = self._section(name, shown=True, columns=columns, cardHeight=height)
        for card in drawn:
            self._add(card, identifier)
            # Metrics in another's chart get a deleted card each, or the dashboard would draw them once more.
            for metric in card.get("selectedMetricKeys", [])[1:]:
                self._add({"type": "LINE", "metricKey": metric, "deleted": True}, identifier)

    def leftovers(self, names: Iterable[str]) -> None:
        """Closed sections, which the dashboard fills with whatever has no card."""
        for name in names:
            self._section(name, shown=False)

    def _section(self, name: str, *, shown: bool, **fields: Any) -> str:
        identifier = f"{self._key}-s{len(self.sections)}"
        common = {
            "uuid": identifier,
            "name": name,
            "display": shown,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        self.sections.append({**common, **fields})
        return identifier

    def _add(self, card: dict[str, Any], section: str) -> None:
        self.cards.append({**card, "uuid": f"{self._key}-c{len(self.cards)}", "metricSectionId": section})


def _card(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "runsCountToCompare": 100, "deleted": False, "isGenerated": False, **fields}


def _bar(figure: Figure) -> dict[str, Any]:
    """A chart of the last value of each run."""
    return _card("BAR", metricKey=figure.name)


def _line(*shown: Figure) -> dict[str, Any]:
    """A chart of figures over steps."""
    metrics = [figure.name for figure in shown]
    scales = {
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "lineSmoothness": 0,
    }
    common = {
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
    return _card("LINE", metricKey=metrics[0], selectedMetricKeys=metrics, **scales, **common)
