"""What a sweep found out, as one record: its configurations in order, the best of them, what mattered."""

from __future__ import annotations

from dataclasses import dataclass

from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import Configuration, TrialRecord
from pcl_ray.sweep.results import trial_records
from pcl_ray.sweep.session import SweepSession


@dataclass(frozen=True)
class Ranking:
    """All that the closing table, the files and the parent run in MLflow are made from."""

    records: list[TrialRecord]
    knobs: list[str]  # that were swept
    rows: list[Configuration]  # configurations, the best first
    best: Configuration | None  # None: no configuration finished with all its seeds and passed the guards
    importances: dict[str, float]  # knob → its share of the objective's variance
    totals: dict[str, float]


def ranking_of(session: SweepSession, seconds: float) -> Ranking:
    """The ranking of all trials that have begun. seconds: that this session took."""
    direction = session.context.objective.direction
    records = trial_records.read(session.folder.name)
    rows = leaderboard.ranked(records, direction, session.request.recipe_point)
    return Ranking(
        records,
        list(session.request.space.domains),
        rows,
        leaderboard.best(rows),
        leaderboard.importances(records, direction),
        trial_records.totals(records, seconds),
    )
