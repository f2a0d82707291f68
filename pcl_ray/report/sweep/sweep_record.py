"""What is known of a sweep when it is looked at, under way or ended. Read by `sweep.results.sweep_reader`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pcl_ray.config import RunConfig
from pcl_ray.config.figures import HEAD_KNN_TOP1, KNN_TOP1, Direction
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import Configuration, TrialRecord, score

_ACCURACIES = (KNN_TOP1.name, HEAD_KNN_TOP1.name)
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class SweepRecord:
    """A sweep with all trials that have begun."""

    name: str
    config: RunConfig  # what the trials have in common
    objective: str  # the metric that they are compared by
    direction: Direction
    trials: Sequence[TrialRecord]
    knobs: Mapping[str, str]  # the swept ones and what they may be, in words
    state: str = "finished"  # one of `runs.folder.State`
    planned: int = 0  # trials that there are to be; 0: not known
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the sweep, by their names
    space: str = ""  # its name
    recipe: str = ""  # its name or path
    recipe_point: Mapping[str, Any] | None = None  # the recipe's own values; None: they were not to be tried
    num_images: int = 0  # N; 0: not known
    num_holdout: int = 0
    test: Mapping[str, float] = field(default_factory=dict)  # the best one's figures on the test split
    link: str = ""  # of its trials in the dashboard
    best_recipe: str = ""  # the path of best.yaml, "" where there is none
    runs: Mapping[str, RunRecord] = field(default_factory=dict)  # of the trials whose curves are shown

    @cached_property
    def rows(self) -> list[Configuration]:
        """Its configurations, the best first."""
        return leaderboard.ranked(self.trials, self.direction, self.recipe_point)

    @property
    def best(self) -> Configuration | None:
        """The first that finished with all its seeds and passed the guards."""
        return leaderboard.best(self.rows)

    @property
    def of_recipe(self) -> Configuration | None:
        """The configuration with the recipe's own values, once it was measured."""
        return next((row for row in self.rows if row.of_recipe and row.mean is not None), None)

    @cached_property
    def importances(self) -> dict[str, float]:
        """Knob → its share of the objective's variance, {} where that cannot be known."""
        return leaderboard.importances(self.trials, self.direction)

    @property
    def test_images(self) -> int:
        """Held-out images that compared no trials."""
        return round(self.num_holdout * float(self.settings.get("test_share") or 0.0))

    @property
    def compared_on(self) -> int:
        """Held-out images that the objective is measured on at the most; 0: not known."""
        return min(self.num_holdout - self.test_images, self.config.evaluation.query_images)

    def noise(self, first: Configuration, second: Configuration) -> float | None:
        """How much two means may differ by chance alone: two standard errors of their difference, by the
        spread over seeds (pooled over all configurations), else of accuracies by the number of held-out
        images; None where neither is known.
        """
        if (spread := self._pooled_spread) is not None:
            counts = len(first.values), len(second.values)
            return _STANDARD_ERRORS * spread * math.sqrt(sum(1 / max(count, 1) for count in counts))
        if self.objective not in _ACCURACIES or not self.compared_on:
            return None
        variances = [
            row.mean * (1 - row.mean)
            for row in (first, second)
            if row.mean is not None and 0 <= row.mean <= 1
        ]
        return _STANDARD_ERRORS * math.sqrt(sum(variances) / self.compared_on)

    @property
    def _pooled_spread(self) -> float | None:
        """The sample standard deviation over seeds, pooled over the configurations that have several."""
        several = [row.values for row in self.rows if len(row.values) > 1 and row.state == "finished"]
        freedom = sum(len(values) - 1 for values in several)
        if not freedom:
            return None
        squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
        return math.sqrt(squares / freedom)

    def gain(self) -> float | None:
        """How much better the best is than the recipe's own values; None where one of the two is missing."""
        best, own = self.best, self.of_recipe
        if best is None or own is None or best.mean is None or own.mean is None:
            return None
        return score(best.mean, self.direction) - score(own.mean, self.direction)

    def as_good(self) -> list[Configuration]:
        """The best and those that cannot be told from it, the best first; [] where noise is not known."""
        best = self.best
        if best is None or best.mean is None:
            return []
        near = []
        for row in self.rows:
            if row.mean is None or row.state != "finished" or any(trial.refused for trial in row.trials):
                continue
            noise = self.noise(best, row)
            if noise is None:
                return []
            if score(best.mean, self.direction) - score(row.mean, self.direction) <= noise:
                near.append(row)
        return near


def against_recipe(record: SweepRecord) -> str:
    """What the best gains over the recipe's own values, as a sentence; "" where that cannot be said."""
    gain, best, own = record.gain(), record.best, record.of_recipe
    if gain is None or best is None or own is None or own.mean is None:
        return ""
    measured = f"{own.mean:.4f}"
    if best.of_recipe:
        return f"{measured}: the recipe's own values are the best that was found"
    noise = record.noise(best, own)
    if noise is None:
        return f"{measured}; the best is {gain:.4f} better"
    if gain <= noise:
        return f"{measured}; the best is {gain:.4f} better, within the noise (± {noise:.4f})"
    return f"{measured}; the best is {gain:.4f} better, more than noise (± {noise:.4f})"
