"""What is said about a run in plain numbers: its recipe, the figures that count, every knob."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pcl_ray import config
from pcl_ray.report.curves import clustering_names
from pcl_ray.report.drawing.html import Html, cut, table, tag
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import count, measured_duration, number, percent, value_text

_STATES = {
    "finished": "good",
    "running": "note",
    "failed": "problem",
    "stopped": "warning",
    "stopped early": "note",
}


def state_badge(record: RunRecord) -> Html:
    return tag("span", record.state, class_=f"badge {_STATES.get(record.state, 'note')}")


def recipe(record: RunRecord) -> list[tuple[str, str]]:
    """(what, value) of the facts that a run is known by."""
    knobs = record.config
    images = f"{record.num_images:,}" if record.num_images else "not known"
    images += f", {record.num_holdout:,} held out" if record.num_holdout else ""
    done = (
        f"{record.epochs:,} of {knobs.train.epochs:,}"
        if record.epochs != knobs.train.epochs
        else f"{record.epochs:,}"
    )
    workers = "in one process" if not knobs.resources.workers else count(knobs.resources.workers, "worker")
    device = "GPU" if knobs.resources.gpus_per_worker else "CPU"
    return [
        ("Data", knobs.data.source + (f" ({knobs.data.path})" if knobs.data.path else "")),
        ("Images", images),
        ("Epochs", f"{done}; warm-up {knobs.e_step.warmup_epochs:,}"),
        ("Clusters K", ", ".join(name.removeprefix("K = ") for name in clustering_names(record))),
        ("Temperature τ", f"{knobs.loss.temperature:g}"),
        ("Smoothing α", f"{knobs.e_step.alpha:g}"),
        ("Encoder", f"{knobs.encoder.backbone}, {knobs.encoder.dim} dimensions"),
        ("Batch", f"{knobs.train.batch_size:,} images"),
        ("Where", f"{workers}, {device}"),
    ]


def tiles(record: RunRecord) -> Html:
    """The figures that count, each with what it means; a sentence where nothing was measured."""
    found = [
        tile
        for tile in (
            _knn(record),
            _ami(record),
            _rankme(record),
            _loss(record),
            _rate(record),
            _e_step(record),
            _time(record),
        )
        if tile
    ]
    if not found:
        return tag("p", "Nothing has been measured yet: figures come with the first epoch.", class_="none")
    return tag("dl", [_tile(*tile) for tile in found], class_="tiles")


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
    points = record.finite("eval/knn_top1")
    if not points:
        return None
    best_epoch, best = max(points, key=lambda point: point[1])
    more = f" Best: {number(best)} after epoch {best_epoch:.0f}." if best > points[-1][1] + 5e-4 else ""
    return (
        "kNN top-1",
        number(points[-1][1]),
        f"Share of held-out images whose nearest neighbours give the right class.{more}",
    )


def _ami(record: RunRecord) -> Tile:
    found = [
        (name, points[-1][1])
        for m, name in enumerate(clustering_names(record))
        if (points := record.finite(f"cluster/{m}/ami"))
    ]
    if not found:
        return None
    values = [tag("span", tag("small", name), number(value)) for name, value in found[:6]]
    return (
        "AMI",
        tag("span", values, class_="several"),
        "Agreement of the clusters with the labels: 0 is chance, 1 is perfect.",
    )


def _rankme(record: RunRecord) -> Tile:
    points = record.finite("eval/rankme")
    of = record.config.encoder.dim
    return (
        ("RankMe", number(points[-1][1]), f"Directions that the features make use of, of {of} there are.")
        if points
        else None
    )


def _loss(record: RunRecord) -> Tile:
    points = record.finite("train/loss")
    if not points:
        return None
    prototype = record.finite("train/loss_prototype")
    parts = (
        f" {number(prototype[-1][1])} of it from prototypes."
        if prototype and prototype[-1][0] == points[-1][0]
        else ""
    )
    return "Loss", number(points[-1][1]), f"Mean over the last epoch.{parts}"


def _rate(record: RunRecord) -> Tile:
    points = record.finite("perf/images_per_second")
    if not points:
        return None
    waiting = record.finite("perf/data_share")
    said = f" {percent(waiting[-1][1])} of the M-step is waiting for data." if waiting else ""
    return (
        "Images a second",
        number(middle([value for _, value in points])),
        f"Trained, in the median epoch.{said}",
    )


def _e_step(record: RunRecord) -> Tile:
    whole, part = total(record, "perf/epoch_seconds"), total(record, "perf/e_step_seconds")
    return (
        (
            "E-step",
            percent(part / whole),
            f"Of the time goes into features and clustering: {measured_duration(part)}.",
        )
        if whole and part
        else None
    )


def _time(record: RunRecord) -> Tile:
    seconds = total(record, "perf/epoch_seconds") + total(record, "perf/owed_seconds")
    if not seconds:
        return None
    return (
        "Time",
        measured_duration(seconds),
        f"All epochs together, {measured_duration(seconds / record.epochs)} each; without the start.",
    )


def total(record: RunRecord, name: str) -> float:
    return sum(value for _, value in record.finite(name))


def middle(values: Sequence[float]) -> float:
    """The median; the lower of two."""
    return sorted(values)[(len(values) - 1) // 2]


def knob_table(record: RunRecord) -> Html:
    """Knobs that were changed, and all of them to unfold."""
    known = {knob.name: knob for knob in config.describe()}
    values = record.config.flatten()
    changed = [name for name, value in values.items() if name in known and value != known[name].default]
    header = ("Knob", "Value", "Default", "What it is")
    few = (
        table(header, [_knob(name, values[name], known[name]) for name in changed], class_="knobs")
        if changed
        else tag("p", "Every knob has its default.")
    )
    every = table(
        header,
        [_knob(name, value, known.get(name), marked=name in changed) for name, value in values.items()],
        class_="knobs",
    )
    said = f"{len(changed)} of {len(values)} knobs differ from their defaults:" if changed else ""
    return tag("div", tag("p", said), few, tag("details", tag("summary", f"All {len(values)} knobs"), every))


def _knob(name: str, value: Any, knob: Any, marked: bool = False) -> tuple[Any, ...]:
    shown = tag("td", tag("b", setting(value)), class_="changed") if marked else setting(value)
    return knob_name(name), shown, setting(knob.default) if knob else "", knob.sentence if knob else ""


def knob_name(name: str) -> Html:
    """It may break after a dot or an underscore."""
    # names are those of the configuration: nothing to escape
    return tag("code", Html(name.replace(".", ".<wbr>").replace("_", "_<wbr>")))


def setting(value: Any) -> str:
    """A knob's value as one writes it."""
    shown = cut(value, 120) if isinstance(value, str) else value
    return value_text(shown, digits=10, separator=", ")  # 0.12, not 0.12000000000000001


def pairs(rows: Iterable[tuple[str, Any]], class_: str = "facts-list") -> Html:
    """A list of terms and what they are."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_=class_)
