"""What `pcl-ray evaluate` has measured of a run, as tables of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from pcl_ray.config.protocol_figures import Features, measured_text, protocol_figure
from pcl_ray.report.drawing.html import Html, section, table, tag
from pcl_ray.support.text import count


@dataclass(frozen=True)
class StoredEvaluation:
    """What was measured on one set of images: `bank` to learn from, `queries` held out. epochs: those that
    the encoder had been trained. figures: mean and standard deviation over runs by protocol, features and
    measure; the mean is None where it is no number, the deviation where there was one run.
    """

    data: str
    bank: int
    queries: int
    epochs: int | None
    figures: Mapping[tuple[str, str, str], tuple[float | None, float | None]]


def evaluations_section(evaluations: tuple[StoredEvaluation, ...]) -> list[Html]:
    """A table for each set of images; nothing where nothing was measured."""
    if not evaluations:
        return []
    lead = "Measured by `pcl-ray evaluate`: mean and standard deviation over draws, not over trainings."
    tables = [part for evaluation in evaluations for part in _tables(evaluation)]
    return [section("evaluations", "Protocols", *tables, lead=lead)]


def _tables(evaluation: StoredEvaluation) -> list[Html]:
    sizes = f"{count(evaluation.bank, 'image')} to learn from, {evaluation.queries:,} held out"
    epochs = "" if evaluation.epochs is None else f"; after {count(evaluation.epochs, 'epoch')}"
    present = {features for _, features, _ in evaluation.figures}
    kinds = [kind for kind in get_args(Features) if kind in present]
    rows = [
        [
            protocol_figure(protocol, "backbone", measure).title,
            *(_cell(evaluation, protocol, kind, measure) for kind in kinds),
        ]
        for protocol, measure in dict.fromkeys((key[0], key[2]) for key in evaluation.figures)
    ]
    return [tag("p", tag("b", evaluation.data), f" ({sizes}{epochs})"), table(["measure", *kinds], rows)]


def _cell(evaluation: StoredEvaluation, protocol: str, features: str, measure: str) -> str:
    if (protocol, features, measure) not in evaluation.figures:
        return ""
    mean, spread = evaluation.figures[protocol, features, measure]
    return measured_text(protocol, features, measure, math.nan if mean is None else mean, spread)
