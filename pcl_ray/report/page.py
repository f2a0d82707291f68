"""The report of one run: a single HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from pcl_ray.report.curves import charts, clustering_names
from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.drawing.html import Html, cut, document, section, tag
from pcl_ray.report.drawing.sprites import Sheet, sheet_of
from pcl_ray.report.drawing.svg import histogram
from pcl_ray.report.explorer import explorer, said
from pcl_ray.report.feature_map import feature_map
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.summary import knob_table, pairs, recipe, state_badge, tiles
from pcl_ray.support.files import write_text

_SEVERITIES = {"problem": "Problem", "warning": "Warning", "note": "Note", "good": "Good"}


def write(record: RunRecord, path: Path) -> Path:
    """Writes the report to `path`, whose folder exists, whole or not at all; gives back `path`. Raises
    OSError.
    """
    return save(html_of(record), path)


def save(text: str, path: Path) -> Path:
    write_text(path, text, errors="replace")  # a folder may have a name that no text can have
    return path


def html_of(record: RunRecord) -> str:
    sheet = sheet_of(record.thumbnails)
    parts = [
        section("summary", "Summary", tiles(record)),
        section("findings", "What the curves say", _findings(record)),
        section("prototypes", "Prototypes", *_prototypes(record, sheet)),
        section("curves", "Curves", charts(record)),
        *_histograms(record),
        *_map(record, sheet),
        section("configuration", "Configuration", knob_table(record), _origin(record)),
    ]
    return document(
        f"{record.name} – pcl_ray", sheet.style() if sheet else None, _head(record, parts), parts, footer()
    )


def _head(record: RunRecord, parts: list[Html]) -> Html:
    link = _link(record.link)
    names = (
        ("summary", "Summary"),
        ("findings", "Findings"),
        ("prototypes", "Prototypes"),
        ("curves", "Curves"),
        ("feature-map-section", "Map"),
    )
    names += (("configuration", "Configuration"),)
    there = [
        tag("a", name, href=f"#{anchor}")
        for anchor, name in names
        if any(f'id="{anchor}"' in part for part in parts)
    ]
    return tag(
        "header",
        tag("p", "Prototypical Contrastive Learning", class_="kind"),
        tag("h1", record.name, " ", state_badge(record)),
        tag("p", tag("b", "The run failed: "), record.error, class_="error") if record.error else None,
        pairs(recipe(record)),
        tag("p", tag("code", record.command), class_="command") if record.command else None,
        tag("p", link) if link else None,
        tag("nav", there, class_="contents", aria_label="Parts of this page"),
    )


def _link(link: str) -> Html | None:
    """Only addresses of the web are made links: a name must not smuggle in a script."""
    if not link:
        return None
    return (
        tag("a", "Open in the dashboard", href=link, rel="noreferrer noopener")
        if link.startswith(("http://", "https://"))
        else tag("span", link)
    )


def _findings(record: RunRecord) -> Html:
    found = diagnosis.findings(record)
    if not found:
        return tag("p", "Nothing stands out.", class_="none")
    return tag("ul", [_finding(one) for one in found], class_="findings")


def _finding(one: diagnosis.Finding) -> Html:
    advice = tag("ul", [tag("li", said_) for said_ in one.advice], class_="advice") if one.advice else None
    head = tag(
        "p",
        tag("span", _SEVERITIES.get(one.severity, one.severity), class_=f"badge {one.severity}"),
        tag("b", one.title),
        class_="finding-head",
    )
    return tag(
        "li", head, tag("p", one.meaning), advice, class_=f"finding {one.severity}", data_rule=one.rule
    )


def _prototypes(record: RunRecord, sheet: Sheet | None) -> list[Html]:
    exhibit = record.exhibit
    if exhibit is None or not exhibit.clusterings:
        return [tag("p", _why_none(record), class_="none")]
    lead = tag("p", said(exhibit), class_="lead")
    if not any(len(shown.chosen) for shown in exhibit.clusterings):
        return [lead, tag("p", "Every cluster is empty.", class_="none")]
    note = (
        None
        if sheet
        else tag(
            "p",
            "The pictures themselves were not kept with this run, so prototypes are shown in numbers alone.",
            class_="none",
        )
    )
    return [lead, *([note] if note else []), explorer(exhibit, sheet, record.class_names)]


def _why_none(record: RunRecord) -> str:
    warmup = record.config.e_step.warmup_epochs
    if record.epochs < warmup:
        return (
            f"The run has done {record.epochs} of its {warmup} warm-up epochs: prototypes come with the first"
            " E-step after them."
        )
    if any("cluster/0/k" in entry["metrics"] for entry in record.history):
        return "The run has clustered, but no pictures of its prototypes were kept."
    return "The run has no clusters to show."


def _histograms(record: RunRecord) -> list[Html]:
    """Of φ and of sizes, for each clustering from coarse to fine; empty clusters have neither."""
    exhibit = record.exhibit
    phi, sizes = [], []
    names = clustering_names(record)
    for m in exhibit.coarse_to_fine() if exhibit else []:
        assert exhibit is not None
        shown = exhibit.clusterings[m]
        filled = (shown.sizes > 0) & np.isfinite(shown.concentration)
        if not filled.any():
            continue
        name = (
            names[m]
            if m < len(names) and f"{shown.num_clusters:,}" in names[m]
            else f"K = {shown.num_clusters:,}"
        )
        tau = (f"τ = {record.config.loss.temperature:g}", record.config.loss.temperature)
        empty = int((shown.sizes == 0).sum())
        left_out = f" {empty:,} empty ones are left out." if empty else ""
        phi.append(
            histogram(
                f"histogram-phi-{m}",
                f"φ of the prototypes, {name}",
                "Left: tight or large.",
                shown.concentration[filled],
                mark=tau,
            )
        )
        sizes.append(
            histogram(
                f"histogram-size-{m}",
                f"Sizes of the clusters, {name}",
                f"Images a cluster.{left_out}",
                shown.sizes[filled],
                whole=True,
            )
        )
    lead = (
        "How the last clusterings divide the images: how many prototypes there are of each concentration and"
        " size."
    )
    return (
        [
            section(
                "histograms", "Concentrations and sizes", tag("div", phi, sizes, class_="charts"), lead=lead
            )
        ]
        if phi
        else []
    )


def _map(record: RunRecord, sheet: Sheet | None) -> list[Html]:
    exhibit = record.exhibit
    if exhibit is None or not len(exhibit.places):
        return []
    name = exhibit.map_name or "Map"
    lead = (
        f"{len(exhibit.places):,} images, placed so that neighbours in feature space lie together as far as"
        " that is possible in two dimensions. "
    )
    lead += "Distances between far groups mean little."
    return [
        section(
            "feature-map-section",
            f"{name} of the features",
            feature_map(exhibit, sheet, record.class_names),
            lead=lead,
        )
    ]


def _origin(record: RunRecord) -> Html:
    rows = [
        *record.versions.items(),
        *([("images' fingerprint", record.fingerprint)] if record.fingerprint else []),
    ]
    if not rows:
        return tag("p", "Versions were not recorded.", class_="none")
    return tag(
        "div", tag("h3", "Where it comes from"), pairs([(cut(str(name)), str(value)) for name, value in rows])
    )


def footer() -> Html:
    now = datetime.datetime.now(datetime.UTC)
    return tag(
        "footer",
        tag(
            "p",
            f"Written by pcl_ray on {now.day} {now:%B %Y at %H:%M} UTC. The file needs no network and can be"
            " passed on as it is.",
        ),
    )
