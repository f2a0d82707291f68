"""What a protocol has measured: a value for each run, their mean and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcl_ray.config.protocol_figures import protocol_figure, protocol_spread


@dataclass(frozen=True)
class Measurement:
    """One protocol on one kind of features.

    values: of each measure, one value a run; a protocol without anything random has one run. settings: what
    it was measured with, as far as the name does not say it. seconds: what it took.
    """

    protocol: str
    features: str
    values: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def mean(self, measure: str) -> float:
        return statistics.fmean(self.values[measure])

    def spread(self, measure: str) -> float | None:
        """Standard deviation over the runs, with N − 1; None of one run."""
        values = self.values[measure]
        return statistics.stdev(values) if len(values) > 1 else None

    def figures(self, *, charted: bool = False) -> dict[str, float]:
        """Means and spreads by the names of the catalogue, of the measures that have a number. charted: only
        those that get a chart.
        """
        result: dict[str, float] = {}
        for measure in self.values:
            mean, spread = self.mean(measure), self.spread(measure)
            pairs = {protocol_figure(self.protocol, self.features, measure): mean}
            if spread is not None:
                pairs[protocol_spread(self.protocol, self.features, measure)] = spread
            result |= {
                figure.name: value
                for figure, value in pairs.items()
                if not math.isnan(value) and (figure.charted or not charted)
            }
        return result

    def as_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "features": self.features,
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
            "figures": {
                measure: {
                    "mean": _finite(self.mean(measure)),
                    "sd": self.spread(measure),
                    "runs": len(values),
                    "values": [_finite(value) for value in values],
                }
                for measure, values in self.values.items()
            },
        }


@dataclass(frozen=True)
class Refusal:
    """A protocol that could not be run, and why in one sentence. features: "" for all of them."""

    protocol: str
    reason: str
    features: str = ""

    def __str__(self) -> str:
        return f"{self.reason} (features: {self.features})" if self.features else self.reason


def accuracies(predicted: Any, labels: Any) -> dict[str, float]:
    """Top-1 accuracy, and the mean of the classes' accuracies, of the queries' classes [Q] by their labels.

    The second counts every class alike: where classes have unequal numbers of images it is the lower the more
    an encoder owes to the large ones.
    """
    hits, labels = np.asarray(predicted) == np.asarray(labels), np.asarray(labels)
    of_classes = [float(hits[labels == label].mean()) for label in np.unique(labels)]
    return {"top1": float(hits.mean()), "balanced": float(np.mean(of_classes))}


def _finite(value: float) -> float | None:
    """The value, None where it is no number: JSON has no NaN."""
    return value if math.isfinite(value) else None
