"""What is said about a run in plain numbers: its recipe, the figures that count, every knob."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from pcl_ray import config
from pcl_ray.config import RunConfig, figures
from pcl_ray.config.figures import Figure
from pcl_ray.config.final_figures import (
    CLUSTERS_ACCURACY,
    CLUSTERS_AMI,
    LABELS_PER_CLASS,
    LINEAR_TOP1,
    few_labels,
)
from pcl_ray.plan import why_so_many
from pcl_ray.report.curves import clustering_names
from pcl_ray.report.drawing.html import Html, table, tag
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import count, cut, measured_duration, number, percent, value_text

_STATES = {
    "finished": "good",
    "running": "note",
    "failed": "problem",
    "stopped": "warning",
    "stopped early": "note",
}


def state_badge(state: str) -> Html:
    return tag("span", state, class_=f"badge {_STATES.get(state, 'note')}")


def recipe(record: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of what a run is known by."""
    knobs = record.config
    images = f"{record.num_images:,}" if record.num_images else "not known"
    if record.num_holdout:
        images += f", {record.num_holdout:,} held out"
    done = f"{record.epochs:,}"
    if record.epochs != knobs.train.epochs:
        done += f" of {knobs.train.epochs:,}"
    workers = "in one process" if not knobs.resources.workers else count(knobs.resources.workers, "worker")
    device = "GPU" if knobs.resources.gpus_per_worker else "CPU"
    return [
        ("Data", knobs.data.source + (f" ({knobs.data.path})" if knobs.data.path else "")),
        ("Images", images),
        ("Epochs", f"{done}; warm-up {knobs.e_step.warmup_epochs:,}"),
        ("Clusters K", _cluster_counts(record)),
        ("Temperature τ", f"{knobs.loss.temperature:g}"),
        ("Smoothing α", f"{knobs.e_step.alpha:g}"),
        ("Encoder", f"{knobs.encoder.backbone}, {knobs.encoder.dim} dimensions"),
        ("Batch", f"{knobs.train.batch_size:,} images"),
        ("Where", f"{workers}, {device}"),
    ]


def _cluster_counts(record: RunRecord) -> str:
    """ "29, 58, 115", and the rule where they follow from the number of images."""
    counts = ", ".join(name.removeprefix("K = ") for name in clustering_names(record))
    why = why_so_many(record.config.e_step.num_clusters, record.num_images) if record.num_images else ""
    return f"{counts} ({why})" if why else counts


def tiles(record: RunRecord) -> Html:
    """The figures that count, each with what it means; a sentence where nothing was measured."""
    measures = (_knn, _few_labels, _ami, _class_clusters, _rankme, _loss, _rate, _e_step, _time)
    drawn = [tile for measure in measures if (tile := measure(record)) is not None]
    if not drawn:
        return tag("p", "Nothing has been measured yet: figures come with the first epoch.", class_="none")
    return tile_list(drawn)


def tile_list(drawn: list[tuple[str, Any, str]]) -> Html:
    """(name, value, meaning) of each."""
    return tag("dl", [_tile(*tile) for tile in drawn], class_="tiles")


Tile = tuple[str, Any, str] | None


def _tile(name: str, value: Any, meaning: str) -> Html:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, class_="value"),
        tag("dd", meaning, class_="meaning"),
        class_="tile",
    )


def _knn(record: RunRecord) -> Tile:
    # runs of earlier versions have that of the head alone
    figure = figures.KNN_TOP1 if record.finite(figures.KNN_TOP1) else figures.HEAD_KNN_TOP1
    points = record.finite(figure)
    if not points:
        return None
    best_epoch, best = max(points, key=lambda point: point[1])
    more = f" Best: {number(best)} after epoch {best_epoch:.0f}." if best > points[-1][1] + 5e-4 else ""
    lines = ((figures.PIXELS_KNN_TOP1, "Raw pixels"), (figures.UNTRAINED_KNN_TOP1, "Untrained"))
    for line, name in (*lines, (figures.LARGEST_CLASS, "Largest class")):
        if values := record.finite(line):
            more += f" {name}: {number(values[-1][1])}."
    error = record.knn_error()
    value = number(points[-1][1])
    if error is not None:
        value = Html(f"{value}{tag('small', f' ± {number(error)}')}")
        more += " ±: 95 %, from the number of held-out images."
    return figure.label, value, f"{figure.sentence}{more}"


def _few_labels(record: RunRecord) -> Tile:
    named = {f"{count} a class": few_labels(count, "linear") for count in LABELS_PER_CLASS}
    values = _newest(record, named | {"all labels": LINEAR_TOP1})
    if not values:
        return None
    meaning = "Accuracy on held-out images by logistic regression on the backbone's features, at the end."
    return "Linear probe", tag("span", values, class_="several"), meaning


def _class_clusters(record: RunRecord) -> Tile:
    values = _newest(record, {"AMI": CLUSTERS_AMI, "accuracy": CLUSTERS_ACCURACY})
    if not values:
        return None
    meaning = (
        "How well k-means finds the classes in the backbone's features when it knows how many there are."
    )
    return "Clusters as classes", tag("span", values, class_="several"), meaning


def _newest(record: RunRecord, named: dict[str, Figure]) -> list[Html]:
    """The newest value of each of these figures that has one, with its name above it."""
    series = {name: record.finite(figure) for name, figure in named.items()}
    return [
        tag("span", tag("small", name), number(points[-1][1])) for name, points in series.items() if points
    ]


def _ami(record: RunRecord) -> Tile:
    names = clustering_names(record)
    values = _newest(record, {name: figures.AMI.at(m) for m, name in enumerate(names)})
    if not values:
        return None
    return (
        figures.AMI.label,
        tag("span", values[:6], class_="several"),
        "Agreement of the clusters with the labels: 0 is chance, 1 is perfect.",
    )


def _rankme(record: RunRecord) -> Tile:
    points = record.finite(figures.RANKME)
    if not points:
        return None
    meaning = f"Directions that the features make use of, of {record.config.encoder.dim} there are."
    return figures.RANKME.label, number(points[-1][1]), meaning


def _loss(record: RunRecord) -> Tile:
    points = record.finite(figures.LOSS)
    if not points:
        return None
    prototype = record.finite(figures.LOSS_PROTOTYPE)
    meaning = "Mean over the last epoch."
    if prototype and prototype[-1][0] == points[-1][0]:
        meaning += f" {number(prototype[-1][1])} of it from prototypes."
    return figures.LOSS.label, number(points[-1][1]), meaning


def _rate(record: RunRecord) -> Tile:
    points = record.finite(figures.IMAGES_PER_SECOND)
    if not points:
        return None
    waiting = record.finite(figures.DATA_SHARE)
    meaning = "Trained, in the median epoch."
    if waiting:
        meaning += f" {percent(waiting[-1][1])} of the M-step is waiting for data."
    return (
        figures.IMAGES_PER_SECOND.label,
        number(statistics.median_low(value for _, value in points)),
        meaning,
    )


def _e_step(record: RunRecord) -> Tile:
    whole, part = total(record, figures.EPOCH_SECONDS), total(record, figures.E_STEP_SECONDS)
    if not whole or not part:
        return None
    return (
        "E-step",
        percent(part / whole),
        f"Of the time goes into features and clustering: {measured_duration(part)}.",
    )


def _time(record: RunRecord) -> Tile:
    seconds = total(record, figures.EPOCH_SECONDS) + total(record, figures.OWED_SECONDS)
    if not seconds:
        return None
    return (
        "Time",
        measured_duration(seconds),
        f"All epochs together, {measured_duration(seconds / record.epochs)} each; without the start.",
    )


def total(record: RunRecord, figure: Figure) -> float:
    """The sum of a figure over all epochs."""
    return sum(value for _, value in record.finite(figure))


def knob_table(run_config: RunConfig) -> Html:
    """Knobs that were changed, and all of them to unfold."""
    described = {knob.name: knob for knob in config.describe()}
    values = run_config.flatten()
    changed = [
        name for name, value in values.items() if name in described and value != described[name].default
    ]
    header = ("Knob", "Value", "Default", "What it is")
    few, lead = tag("p", "Every knob has its default."), ""
    if changed:
        few = table(header, [_knob(name, values[name], described[name]) for name in changed], class_="knobs")
        lead = f"{len(changed)} of {len(values)} knobs differ from their defaults:"
    rows = [_knob(name, value, described.get(name), marked=name in changed) for name, value in values.items()]
    every = tag("details", tag("summary", f"All {len(values)} knobs"), table(header, rows, class_="knobs"))
    return tag("div", tag("p", lead), few, every)


def _knob(name: str, value: Any, knob: Any, marked: bool = False) -> tuple[Any, ...]:
    text = tag("td", tag("b", setting(value)), class_="changed") if marked else setting(value)
    return knob_name(name), text, setting(knob.default) if knob else "", knob.sentence if knob else ""


def knob_name(name: str) -> Html:
    """The dotted name of a knob, whose line may break after a dot or an underscore."""
    # names are those of the configuration: nothing to escape
    return tag("code", Html(name.replace(".", ".<wbr>").replace("_", "_<wbr>")))


def setting(value: Any) -> str:
    """A knob's value as one writes it."""
    text = cut(value, 120) if isinstance(value, str) else value
    return value_text(text, digits=10, separator=", ")  # 0.12, not 0.12000000000000001


def pairs(rows: Iterable[tuple[str, Any]], class_: str = "summary-list") -> Html:
    """A list of terms and what they are."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_=class_)
