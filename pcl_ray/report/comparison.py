"""Several runs on one page: what differs in their configurations, and what that did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcl_ray.report.curves import clustering_names, overlaid
from pcl_ray.report.differences import (
    KnobValues,
    Measure,
    best_of,
    common_evaluation,
    difference,
    differing,
    letters,
    measures,
    sentences,
    warnings,
)
from pcl_ray.report.drawing.html import Html, document, section, table, tag
from pcl_ray.report.drawing.sprites import Sheet, sheet_of
from pcl_ray.report.drawing.svg import swatch
from pcl_ray.report.explorer import class_name
from pcl_ray.report.page import footer, save
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.summary import knob_name, setting, state_badge
from pcl_ray.snapshot import ClusteringSnapshot, Snapshot
from pcl_ray.support.text import count, number, percent

_ROLES = (("tightest", 2), ("largest", 2), ("loosest", 2))
_PICTURES = 6


def write(records: Sequence[RunRecord], path: Path) -> Path:
    """Writes the comparison to `path`, whose folder exists, whole or not at all; gives back `path`. The first
    run is what the others are compared with.

    Raises ValueError for fewer than two runs, OSError.
    """
    if len(records) < 2:
        raise ValueError(f"{len(records)} run given: a comparison takes two or more")
    return save(html_of(records), path)


def html_of(records: Sequence[RunRecord]) -> str:
    """The whole page."""
    knobs, epoch = differing(records), common_evaluation(records)
    items = [tag("li", sentence) for sentence in sentences(records, knobs, epoch)]
    cautions = [tag("li", text) for text in warnings(records)]
    warned = tag("ul", cautions, class_="warnings") if cautions else None
    parts = [
        _head(records),
        section("summary", "In short", warned, tag("ul", items, class_="sentences")),
        section("knobs", "What differs in the configurations", _knobs(records, knobs)),
        section("figures", "What that did", *_figures(records, knobs, epoch)),
        section("curves", "Curves", overlaid(records, letters(records))),
        *_sheets(records),
    ]
    return document(f"{len(records)} runs compared – pcl_ray", parts, footer())


def _head(records: Sequence[RunRecord]) -> Html:
    cards = [
        tag("li", _card(letter, number, record), class_="run-card")
        for number, (letter, record) in enumerate(zip(letters(records), records, strict=True))
    ]
    kind = tag("p", "Prototypical Contrastive Learning", class_="kind")
    return tag("header", kind, tag("h1", f"{len(records)} runs compared"), tag("ul", cards, class_="runs"))


def _card(letter: str, number: int, record: RunRecord) -> Html:
    data = record.config.data.source
    if record.num_images:
        data += f", {count(record.num_images, 'image')}"
    summary = f"{data} · {count(record.epochs, 'epoch')} · {_counts(record)}"
    head = tag("p", swatch(number), tag("b", f"{letter}  "), record.name, " ", state_badge(record.state))
    error = tag("p", record.error, class_="summary-line") if record.error else ""
    return Html(head + tag("p", summary, class_="summary-line") + error)


def _counts(record: RunRecord) -> str:
    """ "K = 29, 58, 115"."""
    return "K = " + ", ".join(name.removeprefix("K = ") for name in clustering_names(record)[:6])


def _knobs(records: Sequence[RunRecord], knobs: Sequence[KnobValues]) -> Html:
    if not knobs:
        return tag("p", "Nothing: the runs have the same configuration.", class_="none")
    rows = [
        [
            knob_name(knob.name),
            *(
                tag("td", setting(value), class_="differs" if knob.differs(run) else None)
                for run, value in enumerate(knob.values)
            ),
        ]
        for knob in knobs
    ]
    return table(["", *letters(records)], rows, class_="wide")


def _figures(records: Sequence[RunRecord], knobs: Sequence[KnobValues], epoch: int | None) -> list[Html]:
    """Tables of the figures after the last epoch that all were evaluated after, and at the end where that is
    another epoch for one of them.
    """
    compared = measures(records, knobs)
    if not compared:
        return [tag("p", "No run has recorded a figure yet.", class_="none")]
    first = letters(records)[0]
    parts = [
        tag(
            "p",
            f"Small: the difference to {first}. Green: the best of a row, where that is an aim.",
            class_="lead",
        )
    ]
    if epoch is None:
        parts.append(tag("p", "There is no epoch after which all of them were evaluated.", class_="none"))
    else:
        heading = tag("h3", f"After epoch {epoch}, the last that all were evaluated after")
        parts.append(tag("div", heading, _table(records, compared, [epoch] * len(records))))
    ends = [record.epochs for record in records]
    if any(done != epoch for done in ends):
        parts.append(tag("div", tag("h3", "At the end of each"), _table(records, compared, ends)))
    return parts


def _table(records: Sequence[RunRecord], compared: Sequence[Measure], epochs: Sequence[int]) -> Html:
    fair = len(set(epochs)) == 1  # times of different numbers of epochs have no best
    names = letters(records)
    if not fair:
        names = [f"{letter}, epoch {epoch:,}" for letter, epoch in zip(names, epochs, strict=True)]
    rows = []
    for measure in compared:
        values = [measure.at(record, epoch) for record, epoch in zip(records, epochs, strict=True)]
        errors = [
            None if measure.error is None else measure.error(record, epoch)
            for record, epoch in zip(records, epochs, strict=True)
        ]
        if any(value is not None for value in values):
            best = best_of(measure, values) if fair or measure.title != "Time" else set()
            name = Html(tag("span", measure.title) + (tag("small", measure.note) if measure.note else ""))
            cells = [_figure(measure, values, run, errors[run], run in best) for run in range(len(values))]
            rows.append([name, *cells])
    return table(["", *names], rows, class_="numbers wide")


def _figure(
    measure: Measure, values: Sequence[float | None], run: int, error: float | None, best: bool
) -> Html:
    value, first = values[run], values[0]
    if value is None:
        return tag("td", "–")
    change = tag("small", difference(measure, value, first)) if run and first is not None else None
    text = measure.write(value) + (f" ± {measure.write(error)}" if error is not None else "")
    return tag("td", text, change, class_="best" if best else None)


def _sheets(records: Sequence[RunRecord]) -> list[Html]:
    """A few prototypes of each run's coarsest clustering."""
    sheets = [
        _sheet(record, record.snapshot, letter, number)
        for number, (letter, record) in enumerate(zip(letters(records), records, strict=True))
        if record.snapshot is not None and record.snapshot.clusterings
    ]
    if not sheets:
        return []
    lead = (
        "Of the coarsest clustering: the tightest, the largest and the loosest prototypes with the images"
        " nearest to them. Rows of different runs do not match."
    )
    side_by_side = tag("div", sheets, class_="runs sheets")
    return [section("prototypes", "Prototypes side by side", side_by_side, lead=lead)]


def _sheet(record: RunRecord, snapshot: Snapshot, letter: str, number: int) -> Html:
    clustering = snapshot.clusterings[snapshot.coarse_to_fine()[0]]
    roles = clustering.roles()
    prototypes = [
        (role, int(k)) for role, most in _ROLES for k in roles[role][:most] if k in clustering.selected
    ]
    images = [image for _, k in prototypes for image in _nearest(clustering, k)]
    sheet = sheet_of(record.thumbnails, images) if images else None
    rows = [_row(record, clustering, sheet, role, k) for role, k in prototypes]
    title = f" {letter}: K = {clustering.num_clusters:,}, after epoch {snapshot.epoch}"
    return tag(
        "div",
        sheet.style(f"sheet-{number}") if sheet else None,
        tag("h4", swatch(number), title),
        rows or tag("p", "Every cluster is empty.", class_="none"),
        class_=f"run-card sheet-{number}",
    )


def _nearest(clustering: ClusteringSnapshot, prototype: int) -> list[int]:
    """The images of a prototype that are shown."""
    images = clustering.nearest[clustering.row_of(prototype)][:_PICTURES]
    return [int(image) for image in images if image >= 0]


def _row(
    record: RunRecord, clustering: ClusteringSnapshot, sheet: Sheet | None, role: str, prototype: int
) -> Html:
    row = clustering.row_of(prototype)
    label = int(clustering.top_class[row])
    summary = [
        f"#{prototype} {role}",
        count(int(clustering.sizes[prototype]), "image"),
        f"φ {number(float(clustering.concentration[prototype]))}",
    ]
    if label >= 0:
        name = class_name(label, record.class_names)
        summary.append(f"“{name}” {percent(float(clustering.top_share[row]))}")
    pictures = [sheet.picture(image) for image in _nearest(clustering, prototype)] if sheet else None
    return tag(
        "div",
        tag("div", pictures, class_="strip") if pictures else None,
        tag("div", " · ".join(summary), class_="summary-line"),
        class_="proto-row",
    )
