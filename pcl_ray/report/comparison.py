"""Several runs on one page: what differs in their configurations, and what that did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcl_ray.report.curves import clustering_names, overlaid
from pcl_ray.report.differences import (
    Knob,
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
from pcl_ray.snapshot import Exhibit, Shown
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
    knobs, epoch = differing(records), common_evaluation(records)
    said = [tag("li", sentence) for sentence in sentences(records, knobs, epoch)]
    warned = (
        tag("ul", [tag("li", text) for text in warnings(records)], class_="warnings")
        if warnings(records)
        else None
    )
    parts = [
        _head(records),
        section("summary", "In short", warned, tag("ul", said, class_="sentences")),
        section("knobs", "What differs in the configurations", _knobs(records, knobs)),
        section("figures", "What that did", *_figures(records, knobs, epoch)),
        section("curves", "Curves", overlaid(records, letters(records))),
        *_sheets(records),
    ]
    return document(f"{len(records)} runs compared – pcl_ray", parts, footer())


def _head(records: Sequence[RunRecord]) -> Html:
    cards = [
        tag("li", _card(letter, place, record), class_="run-card")
        for place, (letter, record) in enumerate(zip(letters(records), records, strict=True))
    ]
    kind = tag("p", "Prototypical Contrastive Learning", class_="kind")
    return tag("header", kind, tag("h1", f"{len(records)} runs compared"), tag("ul", cards, class_="runs"))


def _card(letter: str, place: int, record: RunRecord) -> Html:
    data = (
        f"{record.config.data.source}, {count(record.num_images, 'image')}"
        if record.num_images
        else record.config.data.source
    )
    facts = f"{data} · {count(record.epochs, 'epoch')} · {_counts(record)}"
    failed = tag("p", record.error, class_="facts") if record.error else None
    return Html(
        tag("p", swatch(place), tag("b", f"{letter}  "), record.name, " ", state_badge(record))
        + tag("p", facts, class_="facts")
        + (failed or "")
    )


def _counts(record: RunRecord) -> str:
    """ "K = 29, 58, 115"."""
    return "K = " + ", ".join(name.removeprefix("K = ") for name in clustering_names(record)[:6])


def _knobs(records: Sequence[RunRecord], knobs: Sequence[Knob]) -> Html:
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


def _figures(records: Sequence[RunRecord], knobs: Sequence[Knob], epoch: int | None) -> list[Html]:
    """Where all were evaluated, and at the end where that is another epoch for one of them."""
    found = measures(records, knobs)
    if not found:
        return [tag("p", "No run has recorded a figure yet.", class_="none")]
    lead = tag(
        "p", f"Small: the difference to {letters(records)[0]}. Green: the best of a row.", class_="lead"
    )
    same = tag("p", "There is no epoch after which all of them were evaluated.", class_="none")
    if epoch is not None:
        same = tag(
            "div",
            tag("h3", f"After epoch {epoch}, the last that all were evaluated after"),
            _table(records, found, [epoch] * len(records)),
        )
    ends = [record.epochs for record in records]
    end = (
        tag("div", tag("h3", "At the end of each"), _table(records, found, ends))
        if any(done != epoch for done in ends)
        else None
    )
    return [lead, same, *([end] if end else [])]


def _table(records: Sequence[RunRecord], found: Sequence[Measure], epochs: Sequence[int]) -> Html:
    header = [
        "",
        *(
            f"{letter}, epoch {epoch:,}" if len(set(epochs)) > 1 else letter
            for letter, epoch in zip(letters(records), epochs, strict=True)
        ),
    ]
    fair = len(set(epochs)) == 1  # times of different numbers of epochs have no best
    rows = []
    for measure in found:
        values = [measure.at(record, epoch) for record, epoch in zip(records, epochs, strict=True)]
        if any(value is not None for value in values):
            best = best_of(measure, values) if fair or measure.title != "Time" else set()
            name = Html(tag("span", measure.title) + (tag("small", measure.note) if measure.note else ""))
            rows.append([name, *(_figure(measure, values, run, run in best) for run in range(len(values)))])
    return table(header, rows, class_="numbers wide")


def _figure(measure: Measure, values: Sequence[float | None], run: int, best: bool) -> Html:
    value, first = values[run], values[0]
    if value is None:
        return tag("td", "–")
    change = tag("small", difference(measure, value, first)) if run and first is not None else None
    return tag("td", measure.write(value), change, class_="best" if best else None)


def _sheets(records: Sequence[RunRecord]) -> list[Html]:
    """A few prototypes of each run's coarsest clustering."""
    made = []
    for place, (letter, record) in enumerate(zip(letters(records), records, strict=True)):
        exhibit = record.exhibit
        if exhibit is not None and exhibit.clusterings:
            made.append(_sheet(record, exhibit, letter, place))
    if not made:
        return []
    lead = (
        "Of the coarsest clustering: the tightest, the largest and the loosest prototypes with the images"
        " nearest to them. Rows of different runs do not match."
    )
    return [
        section("prototypes", "Prototypes side by side", tag("div", made, class_="runs sheets"), lead=lead)
    ]


def _sheet(record: RunRecord, exhibit: Exhibit, letter: str, place: int) -> Html:
    shown = exhibit.clusterings[exhibit.coarse_to_fine()[0]]
    chosen = [
        (role, int(k)) for role, most in _ROLES for k in shown.roles()[role][:most] if k in shown.chosen
    ]
    images = [
        int(image) for _, k in chosen for image in shown.nearest[shown.row_of(k)][:_PICTURES] if image >= 0
    ]
    sheet = sheet_of(record.thumbnails, images) if images else None
    rows = [_row(record, shown, sheet, role, k) for role, k in chosen]
    head = tag("h4", swatch(place), f" {letter}: K = {shown.num_clusters:,}, after epoch {exhibit.epoch}")
    style = sheet.style(f"sheet-{place}") if sheet else None
    return tag(
        "div",
        style,
        head,
        rows or tag("p", "Every cluster is empty.", class_="none"),
        class_=f"run-card sheet-{place}",
    )


def _row(record: RunRecord, shown: Shown, sheet: Sheet | None, role: str, prototype: int) -> Html:
    row = shown.row_of(prototype)
    facts = [
        f"#{prototype} {role}",
        count(int(shown.sizes[prototype]), "image"),
        f"φ {number(float(shown.concentration[prototype]))}",
    ]
    if shown.top_class[row] >= 0:
        facts.append(
            f"“{class_name(int(shown.top_class[row]), record.class_names)}”"
            f" {percent(float(shown.top_share[row]))}"
        )
    pictures = (
        [sheet.picture(int(image)) for image in shown.nearest[row][:_PICTURES] if image >= 0]
        if sheet
        else None
    )
    return tag(
        "div",
        tag("div", pictures, class_="strip") if pictures else None,
        tag("div", " · ".join(facts), class_="facts"),
        class_="proto-row",
    )
