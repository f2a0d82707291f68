"""The report of one run: a single HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pcl_ray.config.figures import NUM_CLUSTERS
from pcl_ray.data.inspection import summary as data_summary
from pcl_ray.report.curves import charts, clustering_names
from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.drawing.html import Html, document, section, tag
from pcl_ray.report.drawing.sprites import Sheet, sheet_of
from pcl_ray.report.drawing.svg import histogram
from pcl_ray.report.evaluations import evaluations_section
from pcl_ray.report.explorer import explorer, summary_sentence
from pcl_ray.report.feature_map import feature_map
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.summary import knob_table, pairs, recipe, state_badge, tiles
from pcl_ray.support.files import write_text
from pcl_ray.support.text import cut

_SEVERITIES = {"problem": "Problem", "warning": "Warning", "note": "Note", "good": "Good"}


def write(record: RunRecord, path: Path) -> Path:
    """Writes the report to `path`, in an existing folder, whole or not at all; returns it. Raises OSError."""
    return save(html_of(record), path)


def save(text: str, path: Path) -> Path:
    """Writes a page whole or not at all; gives back `path`. Raises OSError."""
    write_text(path, text, errors="replace")  # a folder may have a name that no text can have
    return path


def html_of(record: RunRecord) -> str:
    """The whole page."""
    sheet = sheet_of(record.thumbnails)
    parts = [
        section("summary", "Summary", tiles(record)),
        section("findings", "What the curves say", finding_list(diagnosis.findings(record))),
        *_pictures(record),
        section("prototypes", "Prototypes", *_prototypes(record, sheet)),
        section("curves", "Curves", charts(record)),
        *evaluations_section(record.evaluations),
        *_histograms(record),
        *_map(record, sheet),
        section("configuration", "Configuration", knob_table(record.config), _origin(record)),
    ]
    return document(
        f"{record.name} – pcl_ray", sheet.style() if sheet else None, _head(record, parts), parts, footer()
    )


def _head(record: RunRecord, parts: list[Html]) -> Html:
    link = dashboard_link(record.link)
    names = {
        "summary": "Summary",
        "findings": "Findings",
        "pictures": "Pictures",
        "prototypes": "Prototypes",
        "curves": "Curves",
        "evaluations": "Protocols",
        "feature-map-section": "Map",
        "configuration": "Configuration",
    }
    return tag(
        "header",
        tag("p", "Prototypical Contrastive Learning", class_="kind"),
        tag("h1", record.name, " ", state_badge(record.state)),
        tag("p", tag("b", "The run failed: "), record.error, class_="error") if record.error else None,
        pairs(recipe(record)),
        tag("p", tag("code", record.command), class_="command") if record.command else None,
        tag("p", link) if link else None,
        contents(names, parts),
    )


def contents(names: Mapping[str, str], parts: Sequence[Html]) -> Html:
    """Links to those sections that the page has. names: anchor → text."""
    links = [
        tag("a", name, href=f"#{anchor}")
        for anchor, name in names.items()
        if any(f'id="{anchor}"' in part for part in parts)
    ]
    return tag("nav", links, class_="contents", aria_label="Parts of this page")


def dashboard_link(link: str) -> Html | None:
    """The link to the dashboard. Only web addresses are made links: a name must not smuggle in a script."""
    if not link:
        return None
    if not link.startswith(("http://", "https://")):
        return tag("span", link)
    return tag("a", "Open in the dashboard", href=link, rel="noreferrer noopener")


def finding_list(findings: list[diagnosis.Finding]) -> Html:
    """What the doctor says, as a list; a sentence where that is nothing."""
    if not findings:
        return tag("p", "Nothing stands out.", class_="none")
    return tag("ul", [_finding(finding) for finding in findings], class_="findings")


def _finding(finding: diagnosis.Finding) -> Html:
    advice = None
    if finding.advice:
        advice = tag("ul", [tag("li", text) for text in finding.advice], class_="advice")
    severity = _SEVERITIES.get(finding.severity, finding.severity)
    badge = tag("span", severity, class_=f"badge {finding.severity}")
    return tag(
        "li",
        tag("p", badge, tag("b", finding.title), class_="finding-head"),
        tag("p", finding.meaning),
        advice,
        class_=f"finding {finding.severity}",
        data_rule=finding.rule,
    )


def _pictures(record: RunRecord) -> list[Html]:
    """What was found of the pictures before the run."""
    if record.data is None:
        return []
    items = [
        tag("li", f"{text[:1].upper()}{text[1:]}.")
        for text in (*data_summary.lines(record.data), *data_summary.cautions(record.data))
    ]
    return [section("pictures", "The pictures", tag("ul", items, class_="sentences"))] if items else []


def _prototypes(record: RunRecord, sheet: Sheet | None) -> list[Html]:
    snapshot = record.snapshot
    if snapshot is None or not snapshot.clusterings:
        return [tag("p", _why_none(record), class_="none")]
    parts = [tag("p", summary_sentence(snapshot), class_="lead")]
    if not any(len(clustering.selected) for clustering in snapshot.clusterings):
        return [*parts, tag("p", "Every cluster is empty.", class_="none")]
    if sheet is None:
        missing = (
            "The pictures themselves were not kept with this run, so prototypes are shown in numbers alone."
        )
        parts.append(tag("p", missing, class_="none"))
    return [*parts, explorer(snapshot, sheet, record.class_names)]


def _why_none(record: RunRecord) -> str:
    warmup = record.config.e_step.warmup_epochs
    if record.epochs < warmup:
        return (
            f"The run has done {record.epochs} of its {warmup} warm-up epochs: prototypes come with the first"
            " E-step after them."
        )
    if any(NUM_CLUSTERS.at(0).name in entry["metrics"] for entry in record.history):
        return "The run has clustered, but no pictures of its prototypes were kept."
    if record.epochs <= warmup:
        return f"The run ended within its warm-up of {warmup} epochs: no E-step made prototypes."
    return "The run has no clusters to show."


def _histograms(record: RunRecord) -> list[Html]:
    """Histograms of φ and of sizes, for each clustering from coarse to fine; empty clusters have neither."""
    snapshot = record.snapshot
    if snapshot is None:
        return []
    phi, sizes = [], []
    tau = (f"τ = {record.config.loss.temperature:g}", record.config.loss.temperature)
    for m in snapshot.coarse_to_fine():
        clustering = snapshot.clusterings[m]
        filled = (clustering.sizes > 0) & np.isfinite(clustering.concentration)
        if not filled.any():
            continue
        name = _name_of(record, m, clustering.num_clusters)
        empty = int((clustering.sizes == 0).sum())
        left_out = f" {empty:,} empty ones are left out." if empty else ""
        title, caption = f"φ of the prototypes, {name}", "Left: tight or large."
        values = clustering.concentration[filled]
        phi.append(histogram(f"histogram-phi-{m}", title, caption, values, mark=tau))
        title, caption = f"Sizes of the clusters, {name}", f"Images a cluster.{left_out}"
        values = clustering.sizes[filled]
        sizes.append(histogram(f"histogram-size-{m}", title, caption, values, whole=True))
    if not phi:
        return []
    lead = (
        "How the last clusterings divide the images: how many prototypes there are of each concentration and"
        " size."
    )
    charts = tag("div", phi, sizes, class_="charts")
    return [section("histograms", "Concentrations and sizes", charts, lead=lead)]


def _name_of(record: RunRecord, m: int, num_clusters: int) -> str:
    """The clustering's name in the curves, where it says the K of the snapshot."""
    names = clustering_names(record)
    if m < len(names) and f"{num_clusters:,}" in names[m]:
        return names[m]
    return f"K = {num_clusters:,}"


def _map(record: RunRecord, sheet: Sheet | None) -> list[Html]:
    snapshot = record.snapshot
    if snapshot is None or not len(snapshot.projection):
        return []
    lead = (
        f"{len(snapshot.projection):,} images, placed so that neighbours in feature space lie together as far"
        " as that is possible in two dimensions. Distances between far groups mean little."
    )
    title = f"{snapshot.map_name or 'Map'} of the features"
    drawn = feature_map(snapshot, sheet, record.class_names)
    return [section("feature-map-section", title, drawn, lead=lead)]


def _origin(record: RunRecord) -> Html:
    rows = [(cut(str(name)), str(value)) for name, value in record.versions.items()]
    if record.fingerprint:
        rows.append(("images' fingerprint", record.fingerprint))
    if not rows:
        return tag("p", "Versions were not recorded.", class_="none")
    return tag("div", tag("h3", "Where it comes from"), pairs(rows))


def footer() -> Html:
    """When the page was written, and that it stands by itself."""
    now = datetime.datetime.now(datetime.UTC)
    text = (
        f"Written by pcl_ray on {now.day} {now:%B %Y at %H:%M} UTC. The file needs no network and can be"
        " passed on as it is."
    )
    return tag("footer", tag("p", text))
