"""The report of a sweep: a single HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcl_ray.config.figures import (
    KNN_TOP1,
    LARGEST_CLASS,
    PIXELS_KNN_TOP1,
    TEST_KNN_TOP1,
    UNTRAINED_KNN_TOP1,
    find,
)
from pcl_ray.report.drawing.html import Html, document, section, table, tag
from pcl_ray.report.drawing.svg import Chart, Curve, line_chart
from pcl_ray.report.page import contents, dashboard_link, finding_list, footer, save
from pcl_ray.report.summary import knob_name, knob_table, pairs, state_badge, tile_list
from pcl_ray.report.sweep import leaderboard, sweep_rules
from pcl_ray.report.sweep.leaderboard import Configuration, TrialRecord, value_of
from pcl_ray.report.sweep.sweep_record import SweepRecord, against_recipe
from pcl_ray.support.text import MISSING, count, listed, measured_duration, value_text

_FIGURES = {
    "objective_by_knob": "Each trial by the values of each knob.",
    "temperature_alpha": "The best of each temperature τ and smoothing α.",
    "parallel_coordinates": "Each configuration through its values to what it reached.",
    "objective_by_cost": "What a trial reached by the device time that it took.",
    "importance": "How much of the objective's variance each knob explains by itself.",
}
_SECTIONS = {
    "summary": "Summary",
    "findings": "Findings",
    "leaderboard": "Leaderboard",
    "figures": "Figures",
    "curves": "Curves",
    "trials": "Trials",
    "configuration": "Configuration",
}
_ROWS_SHOWN = 20
_LINES = {PIXELS_KNN_TOP1: "raw pixels", UNTRAINED_KNN_TOP1: "untrained", LARGEST_CLASS: "largest class"}


def write(record: SweepRecord, path: Path, figures: Path | None = None) -> Path:
    """Writes the report to `path`, in an existing folder, whole or not at all; returns it. figures: a folder
    that `plots.write_all` has written; None: they are drawn for it. Raises OSError.
    """
    if figures is not None:
        return save(html_of(record, _read(figures)), path)
    from pcl_ray.report.sweep import plots  # matplotlib

    with tempfile.TemporaryDirectory() as scratch:
        plots.write_all(
            record.trials,
            list(record.knobs),
            record.objective,
            record.direction,
            record.importances,
            Path(scratch),
        )
        return save(html_of(record, _read(Path(scratch))), path)


def _read(folder: Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name in _FIGURES if (file := folder / f"{name}.png").is_file()}


def html_of(record: SweepRecord, figures: Mapping[str, bytes]) -> str:
    """The whole page. figures: those of `plots.write_all` as PNG, by name."""
    findings = finding_list(sweep_rules.findings(record))
    parts = [
        section("summary", "Summary", _tiles(record)),
        section("findings", "What the sweep has shown", findings),
        section("leaderboard", "Leaderboard", *_leaderboard(record)),
        *_figures(figures),
        *_curves(record),
        section("trials", "Trials", *_trials(record)),
        section("configuration", "Configuration", *_configuration(record)),
    ]
    return document(f"{record.name} – pcl_ray", _head(record, parts), parts, footer())


def _head(record: SweepRecord, parts: list[Html]) -> Html:
    link = dashboard_link(record.link)
    return tag(
        "header",
        tag("p", "Prototypical Contrastive Learning: a sweep", class_="kind"),
        tag("h1", record.name, " ", state_badge(record.state)),
        pairs(_summary(record)),
        tag("p", link) if link else None,
        contents(_SECTIONS, parts),
    )


def _summary(record: SweepRecord) -> list[tuple[str, str]]:
    """(name, value) of what the sweep is known by."""
    data = record.config.data
    images = f"{record.num_images:,}" if record.num_images else "not known"
    if record.num_holdout:
        images += f", {record.num_holdout:,} held out"
    rows = [
        ("Data", data.source + (f" ({data.path})" if data.path else "")),
        ("Images", images),
        ("Recipe", record.recipe or "not known"),
        ("Space", record.space or "not known"),
        ("Objective", f"{record.objective} ({_wanted(record)})"),
        ("Epochs", f"{record.config.train.epochs:,}; warm-up {record.config.e_step.warmup_epochs:,}"),
    ]
    if record.settings:
        seeds = int(record.settings.get("seeds") or 1)
        rows.append(("Scheduler", str(record.settings.get("scheduler", "none"))))
        rows.append(("Seeds", f"{seeds} a configuration"))
    return rows


def _wanted(record: SweepRecord) -> str:
    return {"max": "more is better", "min": "less is better", "nearest_one": "best near 1"}[record.direction]


def _tiles(record: SweepRecord) -> Html:
    drawn = [tile for tile in (_best(record), _recipe(record), _test(record), _lines(record)) if tile]
    return tile_list([*drawn, _counts(record), _cost(record)])


Tile = tuple[str, Any, str]


def _best(record: SweepRecord) -> Tile | None:
    best = record.best
    if best is None or best.mean is None:
        return None
    values = listed(
        [f"{leaderboard.short(name)} = {value_text(value)}" for name, value in best.point.items()]
    )
    meaning = f"{record.objective} with {values}."
    if best.spread is not None:
        meaning += f" ±: standard deviation over {count(len(best.values), 'seed')}."
    if any(trial.metrics.get(KNN_TOP1.name) is not None for trial in best.trials) and record.compared_on:
        meaning += f" Measured on {record.compared_on:,} held-out images."
    return "Best", _with_spread(best), meaning


def _with_spread(row: Configuration) -> Html:
    spread = tag("small", f" ± {row.spread:.4f}") if row.spread is not None else None
    return tag("span", MISSING if row.mean is None else f"{row.mean:.4f}", spread)


def _recipe(record: SweepRecord) -> Tile | None:
    own, sentence = record.of_recipe, against_recipe(record)
    if own is None:
        return None
    meaning = sentence.partition("; ")[2] or sentence.partition(": ")[2]
    return "The recipe's own", _with_spread(own), f"{meaning[:1].upper()}{meaning[1:]}." if meaning else ""


def _test(record: SweepRecord) -> Tile | None:
    value = record.test.get(TEST_KNN_TOP1.name)
    if value is None:
        return None
    meaning = "kNN accuracy of the best on held-out images that chose no trial"
    if not record.test_images:
        return "Test split", f"{value:.3f}", f"{meaning}."
    share = leaderboard.MeasuredShare(value, record.test_images)
    shown = Html(f"{value:.3f}{tag('small', f' ± {share.error:.3f}')}")
    return "Test split", shown, f"{meaning}, {count(record.test_images, 'image')}."


def _lines(record: SweepRecord) -> Tile | None:
    """What needs no training, where the objective is an accuracy."""
    best = record.best
    metrics = best.trials[0].metrics if best is not None else {}
    measured = {name: metrics[line.name] for line, name in _LINES.items() if line.name in metrics}
    if not measured or record.objective != KNN_TOP1.name:
        return None
    values = [tag("span", tag("small", name), f"{value:.3f}") for name, value in measured.items()]
    return "Without training", tag("span", values, class_="several"), "kNN accuracy on the same images."


def _counts(record: SweepRecord) -> Tile:
    states = [trial.state for trial in record.trials]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    of = f" of {record.planned}" if record.planned > len(states) else ""
    return "Trials", f"{len(states)}{of}", f"{', '.join(parts)}." if parts else "None has begun."


def _cost(record: SweepRecord) -> Tile:
    seconds = sum(trial.device_seconds for trial in record.trials)
    spared = sum(trial.saved_seconds for trial in record.trials)
    meaning = "Of all trials together."
    if spared:
        meaning += f" {measured_duration(spared)} more were spared by warm-ups that trials share."
    return "Device time", measured_duration(seconds), meaning


def _leaderboard(record: SweepRecord) -> list[Html]:
    heading, *lines = leaderboard.table(record.rows, list(record.knobs), record.objective, len(record.rows))
    if not lines:
        return [tag("p", "No trial has begun.", class_="none")]
    shown = [_line(line, row, record) for line, row in zip(lines, record.rows, strict=True)]
    parts = [table(heading, shown[:_ROWS_SHOWN], "numbers")]
    if len(shown) > _ROWS_SHOWN:
        rest = tag("summary", f"{len(shown) - _ROWS_SHOWN} more configurations")
        parts.append(tag("details", rest, table(heading, shown[_ROWS_SHOWN:], "numbers")))
    if record.best_recipe:
        longer = 4 * record.config.train.epochs
        command = f"pcl-ray train {shlex.quote(record.best_recipe)} train.epochs={longer}"
        parts.append(tag("p", tag("code", command), class_="command"))
    return parts


def _line(line: list[str], row: Configuration, record: SweepRecord) -> list[str | Html]:
    best = record.best
    objective = tag("td", line[1], class_="best" if best is not None and row is best else None)
    return [line[0], objective, *line[2:-1], tag("td", line[-1], class_="words")]


def _figures(figures: Mapping[str, bytes]) -> list[Html]:
    drawn = [
        tag(
            "figure",
            tag("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=caption),
            tag("figcaption", caption),
            class_="chart plot",
        )
        for name, caption in _FIGURES.items()
        if (png := figures.get(name))
    ]
    return [section("figures", "Figures", tag("div", drawn, class_="plots"))] if drawn else []


def _curves(record: SweepRecord) -> list[Html]:
    """The objective over the epochs, of the trials whose histories were read."""
    curves = []
    for number, (run_name, run) in enumerate(record.runs.items()):
        points = [
            (entry["epoch"] + 1, entry["metrics"][record.objective])
            for entry in run.history
            if record.objective in entry["metrics"]
        ]
        if points:
            curves.append(Curve(_name_of(record, run_name), points, number))
    if not curves:
        return []
    caption = "The best trials, and those with the recipe's own values where they were tried."
    entry = find(record.objective)
    chart = Chart("chart-objective", entry[0].label if entry else record.objective, caption, curves)
    drawn = line_chart(chart, record.config.e_step.warmup_epochs)
    return [section("curves", "Curves", tag("div", drawn, class_="charts wide-charts"))]


def _name_of(record: SweepRecord, run_name: str) -> str:
    of_recipe = {trial.run_name for row in record.rows if row.of_recipe for trial in row.trials}
    title = next((trial.title for trial in record.trials if trial.run_name == run_name), run_name)
    return f"{title} ({leaderboard.OF_RECIPE})" if run_name in of_recipe else title


def _trials(record: SweepRecord) -> list[Html]:
    if not record.trials:
        return [tag("p", "No trial has begun.", class_="none")]
    ordered = sorted(record.trials, key=lambda trial: trial.title)
    rows = [_trial(trial) for trial in ordered]
    heading = ("trial", "run", "state", "epochs", record.objective, "device min", "note")
    whole = table(heading, rows, "numbers")
    return [tag("details", tag("summary", f"All {len(rows)} trials"), whole)]


def _trial(trial: TrialRecord) -> list[str | Html]:
    value = value_of(trial)
    return [
        trial.title,
        tag("td", tag("code", trial.run_name)),
        trial.state,
        str(trial.epochs),
        MISSING if value is None else f"{value:.4f}",
        f"{trial.device_seconds / 60:.1f}",
        tag("td", trial.error or trial.refused, class_="words"),
    ]


def _configuration(record: SweepRecord) -> list[Html]:
    own = record.recipe_point or {}
    rows = []
    for name, words in record.knobs.items():
        share = record.importances.get(name)
        importance = MISSING if share is None else f"{share:.0%}"
        rows.append([knob_name(name), words, value_text(own[name]) if name in own else MISSING, importance])
    searched = table(("Knob", "Searched", "The recipe's", "Importance"), rows, "knobs")
    given = {name: value for name, value in record.settings.items() if value is not None}
    settings = [(str(name), value_text(value)) for name, value in given.items()]
    parts = [tag("h3", "The space"), searched]
    if settings:
        parts += [tag("h3", "How it was searched"), pairs(settings)]
    return [*parts, tag("h3", "What all trials have in common"), knob_table(record.config)]
