"""Saved views of MLflow's dashboard: what a researcher looks at first, there without setting anything up.

A view is an experiment tag in a format internal to the dashboard. So it is written only for versions whose
format is known, and nothing depends on it: where views are missing the dashboard shows its own default. The
format is all that this module knows of MLflow; the client is handed in.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.request
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import quote

RUNS, ALL_RUNS = "pcl", "pcl-all"  # keys of the views of single runs, and of all with the trials of sweeps
KNOWN = ("3.17",)  # versions whose dashboards were seen to read what is written here
LONGEST = 20_000  # characters that MLflow takes as an experiment tag's value
_TAG = "mlflow.sharedViewState."
_PACKED = "deflate;"
_MARK = "pcl_ray"  # a field that the dashboard drops when somebody changes a view there: then it is theirs
_SWEEPS_KEPT = 20  # the dashboard lets nobody save a view of their own where an experiment has 40
_COST = "perf/device_minutes"
_AXES = {"e_step.num_clusters": "plan.num_clusters_0"}  # the knob's own value is text, as "250,500"


@dataclass(frozen=True)
class Sweep:
    """What the view of a sweep is made from. `knobs`: swept parameters, and whether their values are numbers.
    `last_step`: of a trial's pictures.
    """

    name: str
    objective: str
    direction: str  # "min": the smallest first; otherwise the largest
    knobs: Mapping[str, bool] = field(default_factory=dict)
    last_step: int = 0


class View(NamedTuple):
    key: str
    name: str
    state: dict[str, Any]


def sweep_key(name: str) -> str:
    """The key of a sweep's view: its name, as far as an address takes it."""
    return "sweep-" + re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]


def link(
    uri: str, experiment_id: str, *, view: str | None = None, run_id: str | None = None, charts: bool = False
) -> str:
    """Address of a run, or of the table or the charts of an experiment's runs. Without workflowType a new
    browser shows traces, and no run at all.
    """
    page = f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs"
    asked = "?workflowType=machine_learning"
    if run_id is not None:
        return f"{page}/{run_id}{'/model-metrics' if charts else ''}{asked}"
    asked += f"&viewStateShareKey={quote(view)}" if view else ""
    return page + asked + ("&compareRunsMode=CHART" if charts else "")


def version_at(uri: str, timeout_s: float = 3.0) -> str:
    """Version of the dashboard that shows this store: the server's, or that of the package here where it is a
    database. Empty if it does not say.
    """
    if not uri.startswith(("http://", "https://")):
        return metadata.version("mlflow")
    start, _, rest = uri.rstrip("/").partition("://")
    place, slash, path = rest.partition("/")
    try:
        with urllib.request.urlopen(
            f"{start}://{place.rpartition('@')[2]}{slash}{path}/version", timeout=timeout_s
        ) as answer:
            return answer.read(100).decode().strip()
    except (OSError, ValueError, HTTPException):
        return ""


def shown(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags has our views."""
    return _TAG + RUNS in tags


def ensure(
    client: Any, experiment_id: str, version: str, *, clusterings: int, sweep: Sweep | None = None
) -> None:
    """Writes the views that are missing or not as they should be; leaves alone what a user saved, or changed
    in the dashboard.

    version: of MLflow, where the views will be opened. clusterings: of the run or the sweep at hand. Raises
    what the client raises.
    """
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return
    tags = dict(client.get_experiment(experiment_id).tags)
    before = _opened(tags.get(_TAG + RUNS, ""))
    most = max(clusterings, before.get(_MARK, {}).get("clusterings", 0)) if before else clusterings
    for view in [
        runs_view(most),
        runs_view(most, trials=True),
        *([sweep_view(sweep, clusterings)] if sweep else []),
    ]:
        there = tags.get(_TAG + view.key)
        if there is not None and not _outdated(there, view):
            continue
        value = encode(view, {"clusterings": most})
        if len(value) <= LONGEST:
            client.set_experiment_tag(experiment_id, _TAG + view.key, value)
    if sweep:
        for key in _too_many(tags, keep=sweep_key(sweep.name)):
            client.delete_experiment_tag(experiment_id, _TAG + key)


def encode(view: View, mark: Mapping[str, Any]) -> str:
    """The tag's value."""
    now = int(time.time() * 1000)
    packed = base64.b64encode(
        zlib.compress(json.dumps(view.state, separators=(",", ":")).encode(), 9)
    ).decode()
    return json.dumps(
        {"name": view.name, "createdAt": now, "updatedAt": now, "state": _PACKED + packed, _MARK: dict(mark)}
    )


def decode(key: str, value: str) -> View:
    """The view in a tag. Raises ValueError if it is none."""
    try:
        told = json.loads(value)
        packed = told["state"].removeprefix(_PACKED)
        return View(
            key,
            told["name"],
            json.loads(zlib.decompress(base64.b64decode(packed)) if packed != told["state"] else packed),
        )
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a view: {error}") from None


def _opened(value: str) -> dict[str, Any]:
    """What is around a view, if the view is ours and nobody changed it; else nothing."""
    try:
        told = json.loads(value)
    except ValueError:
        return {}
    return told if isinstance(told, dict) and isinstance(told.get(_MARK), dict) else {}


def _outdated(value: str, wanted: View) -> bool:
    """Ours, but not what would be written now. Compared unpacked: another zlib packs otherwise."""
    if not _opened(value):
        return False
    try:
        return decode(wanted.key, value) != wanted
    except ValueError:
        return True


def _too_many(tags: Mapping[str, str], keep: str) -> list[str]:
    """The oldest of our views of sweeps, beyond those that are kept."""
    keys = [
        name.removeprefix(_TAG)
        for name in tags
        if name.startswith(f"{_TAG}sweep-") and name != _TAG + keep and _opened(tags[name])
    ]
    newest_first = sorted(keys, key=lambda key: -int(_opened(tags[_TAG + key]).get("createdAt", 0)))
    return newest_first[_SWEEPS_KEPT - 1 :]


def runs_view(clusterings: int, *, trials: bool = False) -> View:
    """Every run, the best first; its charts from losses to pictures. trials: those of sweeps too, which else
    would hide the rest.
    """
    key, name, wanted = (
        (ALL_RUNS, "PCL runs and trials", "")
        if trials
        else (RUNS, "PCL runs", "tags.`pcl_ray.sweep` IS NULL")
    )
    layout = _Layout(key)
    _training(layout, clusterings)
    layout.section("Pictures through training", _pictures(clusterings, step=0), columns=2, height=440)
    layout.leftovers([*_rest(clusterings), "sweep", "sweep/importance"])
    params = ["loss.temperature", "e_step.alpha", "e_step.num_clusters"]
    return View(key, name, _state(layout, "eval/knn_top1", params, {"searchFilter": wanted}))


def sweep_view(sweep: Sweep, clusterings: int) -> View:
    """The leaderboard of a sweep; its charts: knobs against objective, pictures of all trials, then how they
    trained.
    """
    key = sweep_key(sweep.name)
    layout = _Layout(key)
    axes = {name: _AXES.get(name, name) for name, numeric in sweep.knobs.items() if numeric or name in _AXES}
    others = [name for name in ("eval/knn_top1", "eval/rankme") if name != sweep.objective]
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
    return View(key, f"Sweep {sweep.name}", _state(layout, sweep.objective, [*sweep.knobs, "seed"], own))


def _points(objective: str, axes: Mapping[str, str], others: Iterable[str]) -> list[dict[str, Any]]:
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
    """The sections about how a run trains. The dashboard titles a chart by its metrics; names of ours are not
    shown.
    """
    numbers = range(clusterings)
    layout.section(
        "Losses", [_line("train/loss"), _line("train/loss_instance"), _line("train/loss_prototype")]
    )
    heads = [_line("train/accuracy_instance"), *(_line(f"train/accuracy_prototype_{m}") for m in numbers)]
    layout.section("Accuracy of both heads", heads)
    agreement = _line(*(f"cluster/{m}/ami" for m in numbers)) if clusterings else None
    layout.section("Evaluation", [_line("eval/knn_top1"), agreement, _line("eval/rankme")])
    layout.section(
        "Concentration φ of the prototypes",
        [_line(*(f"cluster/{m}/phi_{part}" for part in ("p10", "p50", "p90"))) for m in numbers],
    )
    of_each = ("largest_share", "empty", "nmi_previous", "drift", "collisions") if clusterings else ()
    layout.section(
        "Cluster health",
        [*(_line(*(f"cluster/{m}/{name}" for m in numbers)) for name in of_each), _line("cluster/rank")],
    )
    layout.section(
        "Training health", [_line("train/gradient_norm"), _line("train/feature_std"), _line("train/lr")]
    )
    seconds = _line("perf/m_step_seconds", "perf/e_step_seconds")
    layout.section("Throughput", [_line("perf/images_per_second"), seconds, _line("perf/data_share")])


def _pictures(clusterings: int, step: int) -> list[dict[str, Any]]:
    """A slider each, which begins at `step`. Where there is one step only, the dashboard goes there by
    itself.
    """
    keys = [*(("clusters/sizes", "clusters/phi") if clusterings else ()), "map", "views"]
    return [
        *_sheets(clusterings, step),
        *(_card("IMAGE", imageKeys=[key], step=step, showRunParams=False) for key in keys),
    ]


def _sheets(clusterings: int, step: int) -> list[dict[str, Any]]:
    """Of prototypes: all that trials of a sweep have."""
    return [
        _card("IMAGE", imageKeys=[f"prototypes/{m}"], step=step, showRunParams=False)
        for m in range(clusterings)
    ]


def _rest(clusterings: int) -> list[str]:
    """Where the dashboard puts metrics without a card: named by what comes before the last slash."""
    return ["train", "eval", *(f"cluster/{m}" for m in range(clusterings)), "cluster", "perf"]


def _state(layout: _Layout, objective: str, params: list[str], own: dict[str, Any]) -> dict[str, Any]:
    """Everything that the dashboard restores; `own`: what is not as in other views."""
    metrics = list(
        dict.fromkeys([objective, "eval/knn_top1", "cluster/0/ami", "eval/rankme", "train/loss", _COST])
    )
    columns = (
        [f"metrics.`{name}`" for name in metrics]
        + [f"params.`{name}`" for name in params]
        + ["tags.`trial.status`"]
    )
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
        "columnWidths": {},
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
    """Sections and their cards. Identifiers are numbered: the same view is the same text, whoever writes
    it.
    """

    def __init__(self, key: str):
        self._key = key
        self.sections: list[dict[str, Any]] = []
        self.cards: list[dict[str, Any]] = []

    def section(
        self, name: str, cards: Iterable[dict[str, Any] | None], *, columns: int = 3, height: int = 360
    ) -> None:
        """A section with these cards; none where there are no cards."""
        there = [card for card in cards if card is not None]
        if not there:
            return
        identifier = self._section(name, shown=True, columns=columns, cardHeight=height)
        for card in there:
            self._add(card, identifier)
            # a deleted card of its own, or the dashboard would draw it once more
            for name_drawn in card.get("selectedMetricKeys", [])[1:]:
                self._add({"type": "LINE", "metricKey": name_drawn, "deleted": True}, identifier)

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


def _line(*metrics: str) -> dict[str, Any]:
    """Metrics over steps in one chart."""
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
    return _card("LINE", metricKey=metrics[0], selectedMetricKeys=list(metrics), **scales, **common)
