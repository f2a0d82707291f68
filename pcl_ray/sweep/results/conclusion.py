"""What a sweep ends with: leaderboard, importances, figures, the best configuration as a recipe, and its
accuracy on the test split; written, shown, and logged to MLflow.
"""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import with_overrides
from pcl_ray.config.figures import (
    KNN_TOP1,
    SWEEP_BEST,
    SWEEP_DEVICE_MINUTES,
    SWEEP_FAILED,
    SWEEP_FINISHED,
    SWEEP_IMPORTANCE,
    SWEEP_SAVED_MINUTES,
    SWEEP_SHARED_WARMUPS,
    SWEEP_TRIALS,
    TEST_KNN_TOP1,
    TEST_KNN_TOP1_LEAST,
)
from pcl_ray.data.datasets import DataSplits
from pcl_ray.report.sweep import leaderboard, sweep_page
from pcl_ray.report.sweep.leaderboard import Configuration
from pcl_ray.report.sweep.sweep_record import SweepRecord, against_recipe
from pcl_ray.runs.folder import REPORT_FILE, RunFolder
from pcl_ray.support.text import value_text
from pcl_ray.sweep.results import files, sweep_reader, trial_records
from pcl_ray.sweep.results.ranking import Ranking, ranking_of
from pcl_ray.sweep.session import SweepSession

if TYPE_CHECKING:
    import pandas as pd

_ROWS_SHOWN = 12
_WIDE = 100  # columns of a terminal
_NARROWEST = 6


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended. `best_recipe` is a path that `pcl-ray train` takes; `metrics` are the best
    configuration's means over its seeds, with totals.
    """

    sweep_name: str
    mlflow_run_id: str | None
    state: str
    sweep_dir: str
    objective: str
    best: dict[str, Any]
    best_recipe: str | None
    trials: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def leaderboard(self) -> pd.DataFrame:
        """Its configurations, the best first, as its folder has them."""
        import pandas as pd

        return pd.read_csv(Path(self.sweep_dir, "leaderboard.csv"))


def preload() -> None:
    """Imports what `conclude` needs, in seconds: done beside the training, so that no device waits for it."""
    for name in (
        "optuna.importance",
        "sklearn.ensemble",
        "scipy.stats",
        "pcl_ray.report.sweep.plots",
        "pcl_ray.sweep.results.test_accuracy",
    ):
        importlib.import_module(name)


def conclude(session: SweepSession, whole: DataSplits, *, seconds: float, unfinished: str) -> SweepResult:
    """Ranks, writes, shows and logs. Works on what there is, so that an interrupted sweep has its leaderboard
    too. whole: the data with the labels of the test split. unfinished: why the sweep did not end, else "".
    """
    folder, tracker = session.folder, session.tracker
    ranking = ranking_of(session, seconds)
    best = ranking.best
    recipe = files.write_best_recipe(session, best) if best else None
    written = files.write(session, ranking)
    trial_records.close_mlflow_runs(session.context)
    test = _test_accuracy(session, whole, best) if best and not unfinished else {}
    folder.write_state(results=test)
    record = sweep_reader.read_at(folder.path, state="stopped" if unfinished else "finished")
    written += _write_page(session, record)
    _show(session, ranking, test, against_recipe(record))
    _show_next(session, recipe, unfinished)
    _log(session, ranking, test, written, recipe)
    metrics = trial_records.means(best) | ranking.totals | test if best else ranking.totals
    return SweepResult(
        sweep_name=folder.name,
        mlflow_run_id=tracker.run_id,
        state="stopped" if unfinished else "finished",
        sweep_dir=str(folder.path),
        objective=session.context.objective.metric,
        best=dict(best.point) if best else {},
        best_recipe=str(recipe) if recipe else None,
        trials=len(ranking.records),
        metrics=metrics,
    )


def _write_page(session: SweepSession, record: SweepRecord) -> list[tuple[Path, str]]:
    """The sweep's report in its folder; [] where it cannot be written: its results stand without it."""
    folder = session.folder
    try:
        path = sweep_page.write(record, folder.path / REPORT_FILE, folder.path / files.FIGURES)
    except OSError as error:
        text = f"warning: no {REPORT_FILE} ({error.strerror or error})"
        session.console.print(text, markup=False, soft_wrap=True)
        return []
    return [(path, REPORT_FILE)]


def _test_accuracy(session: SweepSession, whole: DataSplits, best: Configuration) -> dict[str, float]:
    """kNN accuracy of the best configuration on held-out images that compared no trials; {} without any."""
    context, holdout = session.context, whole.holdout
    share = context.settings.test_share
    if whole.train.labels is None or holdout is None or holdout.labels is None or not share:
        return {}
    from pcl_ray.sweep.results.test_accuracy import test_accuracy  # torch

    values = []
    for trial in best.trials:
        newest = epoch_files.latest(epoch_files.folder_of(RunFolder.path_of(trial.run_name)))
        if newest is not None:
            config = with_overrides(context.base, {**trial.point, "seed": trial.seed})
            try:
                values.append(test_accuracy(newest, config, whole, share))
            # too little memory here, an image that has gone: the sweep's results stand without this figure
            except Exception as error:
                session.console.print(
                    f"warning: no figure on the test split ({type(error).__name__}: {error})",
                    markup=False,
                    soft_wrap=True,
                )
    if not values:
        return {}
    return {TEST_KNN_TOP1.name: sum(values) / len(values), TEST_KNN_TOP1_LEAST.name: min(values)}


def _show(session: SweepSession, ranking: Ranking, test: dict[str, float], of_recipe: str) -> None:
    """of_recipe: what the best gains over the recipe's own values, "" where that cannot be said."""
    console, totals = session.console, ranking.totals
    _show_leaderboard(console, ranking, session.context.objective.metric)
    if of_recipe:
        console.print(f"recipe      {of_recipe}", markup=False, soft_wrap=True)
    if not ranking.importances and len(ranking.knobs) > 1:
        console.print("importance  not said of fewer than ten trials, or of equal ones")
    if ranking.importances:
        by_share = sorted(ranking.importances.items(), key=lambda entry: -entry[1])
        shares = ", ".join(f"{leaderboard.short(name)} {share:.0%}" for name, share in by_share)
        console.print(f"importance  {shares} (fANOVA)", markup=False)
    agreement = leaderboard.agreement_with_labels(ranking.records)
    if agreement:
        correlations = ", ".join(f"{name} {value:+.2f}" for name, value in agreement.items())
        console.print(f"no labels   rank correlation with kNN accuracy: {correlations}", markup=False)
    console.print(
        f"device time {totals[SWEEP_DEVICE_MINUTES.name]:.1f} minutes in {len(ranking.records)} trials",
        markup=False,
    )
    if totals[SWEEP_SHARED_WARMUPS.name]:
        console.print(
            f"warm-up     {totals[SWEEP_SHARED_WARMUPS.name]:.0f} trials began from another's:"
            f" {totals[SWEEP_SAVED_MINUTES.name]:.1f} device minutes saved",
            markup=False,
        )
    if session.context.settings.scheduler == "pbt":
        console.print(
            f"population  {len(trial_records.exploits(session.context.sweep))} times a member went on from a"
            " stronger one (exploits.json)",
            markup=False,
        )
    if test and ranking.best is not None:
        for line in _selection_and_test(session, ranking, test[TEST_KNN_TOP1.name]):
            console.print(line, markup=False, soft_wrap=True)
    for reason in sorted({record.error for record in ranking.records if record.state == "failed"})[:5]:
        console.print(f"failed      {reason}", markup=False, soft_wrap=True)


def _selection_and_test(session: SweepSession, ranking: Ranking, test: float) -> list[str]:
    """The accuracy that the best configuration was chosen by, and that on the test split beside it."""
    context, best = session.context, ranking.best
    tested = round(context.num_holdout * context.settings.test_share)
    if context.objective.metric != KNN_TOP1.name or best is None or best.mean is None:
        return [f"test split  kNN accuracy of the best {test:.3f}, on {tested} images that chose no trial"]
    selected = leaderboard.MeasuredShare(best.mean, context.num_holdout - tested)
    return leaderboard.selection_and_test(
        selected, leaderboard.MeasuredShare(test, tested), len(ranking.records)
    )


def _show_leaderboard(console: Console, ranking: Ranking, metric: str) -> None:
    heading, *lines = leaderboard.table(ranking.rows, ranking.knobs, metric, _ROWS_SHOWN)
    table = Table(box=None, padding=(0, 1 if console.width < _WIDE else 2, 0, 0))
    # what tells configurations apart is never cut, at whatever width; the others may be folded
    whole = 2 + len(ranking.knobs)
    for number, title in enumerate(heading):
        table.add_column(title, no_wrap=number == 0, overflow="fold", min_width=_least(lines, number, whole))
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))  # a reason may hold brackets, which are no markup
    console.print()
    console.print(table, markup=False)
    if len(ranking.rows) > _ROWS_SHOWN:
        console.print(f"… and {len(ranking.rows) - _ROWS_SHOWN} more in leaderboard.csv")


def _least(lines: list[list[str]], number: int, whole: int) -> int:
    """The width that a column has at least: the first ones, which are read whole, that of their cells."""
    widest = max((len(line[number]) for line in lines), default=0)
    return widest if number < whole else min(widest, _NARROWEST)


def _show_next(session: SweepSession, recipe: Path | None, unfinished: str) -> None:
    """What the user can do now."""
    if unfinished:
        text = f"unfinished  {unfinished}; go on with: pcl-ray sweep --resume {session.folder.name}"
        session.console.print(text, markup=False, soft_wrap=True)
    elif recipe:
        text = (
            f"\nNext:\n  pcl-ray train {shlex.quote(str(recipe))}"
            f" train.epochs={4 * session.context.base.train.epochs}"
            f"\n  pcl-ray doctor {session.folder.name}        what the sweep has shown, and what to try"
        )
        session.console.print(text, markup=False, soft_wrap=True)
    else:
        session.console.print(
            "no winner   no configuration finished with all its seeds and passed the guards; the notes above"
            " say why",
            markup=False,
        )


def _log(
    session: SweepSession,
    ranking: Ranking,
    test: dict[str, float],
    written: list[tuple[Path, str]],
    recipe: Path | None,
) -> None:
    """Logs figures, files and a note to the parent run in MLflow."""
    tracker, best = session.tracker, ranking.best
    step = int(ranking.totals[SWEEP_TRIALS.name])
    importances = {SWEEP_IMPORTANCE.of(name).name: share for name, share in ranking.importances.items()}
    tracker.log(ranking.totals | importances | test, step)
    for path, name in written:
        tracker.log_file(path, name)
    if best is not None and recipe is not None:
        tracker.log({SWEEP_BEST.name: best.mean} if best.mean is not None else {}, step)
        tracker.log_file(recipe, "best.yaml")
        tracker.tag({f"best.{name}": str(value) for name, value in best.point.items()})
    tracker.tag({tracking.NOTE: _note(session, ranking)})


def _note(session: SweepSession, ranking: Ranking) -> str:
    """The sweep in Markdown."""
    settings, metric = session.context.settings, session.context.objective.metric
    folder, totals, best = session.folder, ranking.totals, ranking.best
    lines = [
        (
            f"**{folder.name}**: {totals[SWEEP_TRIALS.name]:.0f} trials, {totals[SWEEP_FINISHED.name]:.0f}"
            f" finished, {totals[SWEEP_FAILED.name]:.0f} failed"
        ),
        "",
        (
            f"- objective {metric}, scheduler {settings.scheduler}, {settings.seeds} seeds;"
            f" {totals[SWEEP_DEVICE_MINUTES.name]:.1f} device minutes"
        ),
        f"- go on: `pcl-ray sweep --resume {folder.name}`; folder `{folder.path}`",
    ]
    if best is not None and best.mean is not None:
        point = ", ".join(f"{name} = {value_text(value)}" for name, value in best.point.items())
        lines += [
            f"- best: {point}: {metric} {best.mean:.4f} (`best.yaml`, `leaderboard.md` among the artifacts)"
        ]
    return "\n".join(lines)
