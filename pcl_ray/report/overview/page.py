"""The first page of the dashboard: runs by data set, the best first, with what one wants to know of each, and
the way to its report and into MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

from pcl_ray.config import figures
from pcl_ray.config.figures import Figure
from pcl_ray.config.final_figures import LINEAR_TOP1
from pcl_ray.report.drawing.html import Html, document, section, table, tag
from pcl_ray.report.overview.entries import RunEntry, SweepEntry
from pcl_ray.support.text import count

# From this server alone: the pictures of runs, and where in MLflow each is.
_POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; script-src"
    " 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_STATES = {"finished": "good", "failed": "problem", "stopped": "warning"}
_BESIDE = (figures.PIXELS_KNN_TOP1, figures.UNTRAINED_KNN_TOP1, figures.AMI.at(0), LINEAR_TOP1)
_HEADS = (
    *("run", "prototypes", "epochs", "K", "τ", "α", "encoder", "kNN", "of pixels", "untrained"),
    *("AMI", "linear probe", "began"),
)


def html_of(runs: Sequence[RunEntry], sweeps: Sequence[SweepEntry], path: str, home: str) -> str:
    """The whole page. runs: with the trials of sweeps, which are shown by their number alone. path: below
    which reports and pictures are served. home: the folder that all of them lie in.
    """
    single = [run for run in runs if not run.sweep]
    parts = [_sweeps(sweeps, path)] if sweeps else []
    for name in dict.fromkeys(run.data for run in single):
        parts.append(_of_data(name, [run for run in single if run.data == name], path))
    if not parts:
        example = tag("code", "pcl-ray train digits")
        parts = [tag("p", "There is no run yet. The first: ", example, class_="none")]
    header = tag(
        "header",
        tag("p", "Prototypical Contrastive Learning", class_="kind"),
        tag("h1", "Runs and sweeps"),
        tag("p", f"{count(len(single), 'run')} and {count(len(sweeps), 'sweep')} in {home}", class_="lead"),
        _contents(runs, bool(sweeps)),
    )
    return document("Runs – pcl_ray", header, parts, policy=_POLICY, script="overview.js")


def _contents(runs: Sequence[RunEntry], sweeps: bool) -> Html:
    """Links to the parts of the page and to MLflow."""
    names = list(dict.fromkeys(run.data for run in runs if not run.sweep))
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in names]
    links += [tag("a", "Sweeps", href="#sweeps")] if sweeps else []
    everything = tag("a", "MLflow: all runs and charts", href="/#/experiments", data_experiment="pcl_ray")
    return tag("nav", links, everything, class_="contents", aria_label="Parts of this page")


def _anchor(name: str) -> str:
    return f"data-{quote(name, safe='')}"


def _of_data(name: str, runs: Sequence[RunEntry], path: str) -> Html:
    """The runs on one data set, the best first; those without that figure after them, the newest first."""
    best = figures.KNN_TOP1.name
    ranked = sorted(runs, key=lambda run: -run.figures.get(best, -1.0))
    return section(_anchor(name), name, table(_HEADS, [_row(run, path) for run in ranked], "overview"))


def _row(run: RunEntry, path: str) -> list[str | Html | None]:
    knobs = run.config
    address = f"{path}/runs/{quote(run.name)}"
    picture = tag("img", src=f"{address}/prototypes.png", alt="", loading="lazy", width=137, height=68)
    epochs = f"{run.epochs}" if run.epochs >= knobs.train.epochs else f"{run.epochs} of {knobs.train.epochs}"
    state = None
    if run.state != "finished":
        state = tag("span", run.state, class_=f"badge {_STATES.get(run.state, 'note')}")
    return [
        Html(
            tag("b", run.name)
            + (f" {state}" if state else "")
            + _links(address, run.has_report, run.mlflow_run_id)
        ),
        picture if run.has_pictures else "–",
        epochs,
        ", ".join(map(str, run.num_clusters)) or "–",
        f"{knobs.loss.temperature:g}",
        f"{knobs.e_step.alpha:g}",
        knobs.encoder.backbone.removeprefix("timm:"),
        _number(run, figures.KNN_TOP1, strong=True),
        *(_number(run, figure) for figure in _BESIDE),
        _day(run.began),
    ]


def _number(run: RunEntry, figure: Figure, *, strong: bool = False) -> Html:
    """A cell with three decimals; bold where the run is better than pixels and untrained encoder."""
    value = run.figures.get(figure.name)
    if value is None:
        return tag("td", "–", class_="number")
    lines = [
        run.figures.get(each.name, 0.0) for each in (figures.PIXELS_KNN_TOP1, figures.UNTRAINED_KNN_TOP1)
    ]
    text = f"{value:.3f}"
    return tag("td", tag("b", text) if strong and value > max(lines) else text, class_="number")


def _sweeps(sweeps: Sequence[SweepEntry], path: str) -> Html:
    rows = []
    for sweep in sweeps:
        address = f"{path}/sweeps/{quote(sweep.name)}"
        best = "–" if sweep.best is None else f"{sweep.best:.3f}"
        rows.append(
            [
                Html(tag("b", sweep.name) + _links(address, sweep.has_report, sweep.mlflow_run_id)),
                sweep.data,
                sweep.state,
                str(sweep.trials),
                sweep.objective or "–",
                tag("td", best, class_="number"),
                _day(sweep.began),
            ]
        )
    heads = ("sweep", "data", "state", "trials", "objective", "best", "began")
    return section("sweeps", "Sweeps", table(heads, rows, "overview"))


def _links(address: str, has_report: bool, run_id: str) -> Html:
    """The report, and the run in MLflow, whose address the page's script finds out."""
    report = tag("a", "report", href=f"{address}/report.html") if has_report else None
    dashboard = tag("a", "MLflow", data_run=run_id) if run_id else None
    return tag("small", [report, " · " if report and dashboard else None, dashboard])


def _day(began: float) -> str:
    return datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M")
