"""What the curves of a run mean, in plain words, and what to try. The rules are in curve_rules,
accuracy_rules, cluster_rules, data_rules and time_rules; what they share is in findings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from pcl_ray.config import figures
from pcl_ray.report.doctor import accuracy_rules, cluster_rules, curve_rules, data_rules, time_rules
from pcl_ray.report.doctor.findings import (
    LINES,
    Finding,
    Severity,
    accuracy_figure,
    each,
    knn_noise,
    newest,
    reference_lines,
)
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import listed

__all__ = ["RULES", "Finding", "Severity", "as_text", "findings"]

# in the order in which findings of one severity are shown: what matters most to a user first
RULES: tuple[Callable[[RunRecord], Finding | None], ...] = (
    curve_rules.failed,
    curve_rules.diverged,
    curve_rules.collapse,
    accuracy_rules.no_better_than_pixels,
    accuracy_rules.still_improving,
    data_rules.copies,
    data_rules.blank,
    cluster_rules.rejected,
    curve_rules.instance_stuck,
    curve_rules.rank_lost,
    cluster_rules.prototype_accuracy_zero,
    curve_rules.prototype_stuck,
    accuracy_rules.knn_falling,
    cluster_rules.never_settles,
    cluster_rules.dominant_cluster,
    cluster_rules.empty_clusters,
    cluster_rules.many_clusters,
    cluster_rules.phi_collapse,
    cluster_rules.collisions,
    time_rules.waiting_for_data,
    time_rules.e_step_seconds,
    cluster_rules.too_early,
)
_ORDER: tuple[Severity, ...] = ("problem", "warning", "note", "good")
_MARKS: dict[Severity, str] = {"problem": "PROBLEM", "warning": "warning", "note": "note", "good": "good"}
_SETTLED = 0.8  # NMI of two E-steps; between this and the limit of `never_settles` nothing is said


def findings(record: RunRecord) -> list[Finding]:
    """What there is to say about a run, problems first; where nothing is wrong, what is good about it."""
    every = _without_consequences([finding for rule in RULES if (finding := rule(record)) is not None])
    if not any(
        finding.severity in ("problem", "warning") or finding.rule == "too_early" for finding in every
    ):
        every += healthy(record)
    return problems_first(every)


def problems_first(every: list[Finding]) -> list[Finding]:
    """The findings by severity, else in their order."""
    return sorted(every, key=lambda finding: _ORDER.index(finding.severity))


def _without_consequences(every: list[Finding]) -> list[Finding]:
    """The findings without those that another one explains, whose own advice would lead elsewhere."""
    seen = {finding.rule: finding.severity for finding in every}
    hidden: set[str] = set()
    if seen.get("diverged") == "problem":
        hidden |= {"prototype_accuracy_zero", "no_better_than_pixels"}
    if seen.get("collapse") == "problem":
        hidden |= {
            "instance_stuck",
            "prototype_stuck",
            "rank_lost",
            "prototype_accuracy_zero",
            "never_settles",
            "knn_falling",
            "no_better_than_pixels",
        }
    if "instance_stuck" in seen:
        hidden |= {"prototype_stuck", "knn_falling", "no_better_than_pixels"}
    return [finding for finding in every if finding.rule not in hidden]


def healthy(record: RunRecord) -> list[Finding]:
    """What the curves of a run show that has nothing wrong."""
    good = [_loss(record), _knn(record), _spread(record), _clusters(record), _agreement(record)]
    return [Finding("healthy", "good", title, meaning, ()) for title, meaning in filter(None, good)]


def _loss(record: RunRecord) -> tuple[str, str] | None:
    loss = record.finite(figures.LOSS_INSTANCE)
    if len(loss) < 3:
        return None
    (first, _), (last, low) = loss[1], loss[-1]  # the first epoch has a queue of random keys
    right = newest(record, figures.ACCURACY_INSTANCE)
    meaning = f"train/loss_instance went from {loss[1][1]:.3f} in epoch {first} to {low:.3f} in epoch {last}"
    if right:
        meaning += f"; it picks the right one of {record.config.loss.queue_size + 1} keys for {right:.0%}"
    return "The encoder tells images apart", f"{meaning}."


def _knn(record: RunRecord) -> tuple[str, str] | None:
    figure = accuracy_figure(record)
    knn = record.finite(figure)
    if len(knn) < 2 or knn[-1][1] - knn[0][1] <= knn_noise(record, knn[-1][1]):
        return None
    (first, low), (last, high) = knn[0], knn[-1]
    meaning = f"{figure.name} rose from {low:.3f} after epoch {first} to {high:.3f} after epoch {last}."
    if lines := reference_lines(record):
        values = listed([f"{value:.3f} by {LINES[line]}" for line, value in lines.items()])
        meaning += f" Without training it is {values}."
    return "The features tell classes apart", meaning


def _spread(record: RunRecord) -> tuple[str, str] | None:
    rank, std = newest(record, figures.RANKME), newest(record, figures.FEATURE_STD)
    if rank is None:
        return None
    meaning = f"They use {rank:.0f} of {record.config.encoder.dim} dimensions (RankMe)"
    if std is not None and std > 0.8:
        meaning += f" and are spread evenly (standard deviation {std:.2f}, 1 at most)"
    return "The features use their space", f"{meaning}."


def _clusters(record: RunRecord) -> tuple[str, str] | None:
    nmi = [(k, value) for _, k, value in each(record, figures.NMI_PREVIOUS)]
    if not nmi or min(value for _, value in nmi) < _SETTLED:
        return None
    values = ", ".join(f"{value:.2f} for K = {k}" for k, value in nmi)
    return "The clusters settle", f"NMI to the E-step before: {values}."


def _agreement(record: RunRecord) -> tuple[str, str] | None:
    ami = [(k, value) for _, k, value in each(record, figures.AMI)]
    if not ami:
        return None
    values = listed([f"{value:.2f} for K = {k}" for k, value in ami])
    return "Clusters and labels", f"They agree with an AMI (0 by chance, 1 perfect) of {values}."


def as_text(record: RunRecord, findings: list[Finding], width: int = 100) -> str:
    """The findings for a terminal: plain, wrapped, problems first."""
    done, planned = len(record.history), record.config.train.epochs
    nothing = "nothing to say: no epoch is done" if not done else "nothing to say"
    heading = f"{record.name} ({record.state}): {done} of {planned} epochs"
    return text_of(heading, findings, nothing, width)


def text_of(heading: str, findings: list[Finding], nothing: str, width: int = 100) -> str:
    """The heading, then the findings, problems first; `nothing` where there are none."""
    lines = [heading]
    for finding in problems_first(findings):
        lines += [
            "",
            f"{_MARKS[finding.severity]}: {finding.title} [{finding.rule}]",
            _wrapped(finding.meaning, "  ", width),
        ]
        lines += [_wrapped(text, "  - ", width) for text in finding.advice]
    if not findings:
        lines += ["", nothing]
    return "\n".join(lines)


def _wrapped(text: str, indent: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
