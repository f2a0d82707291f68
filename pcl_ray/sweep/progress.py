"""What the sweep's own process sees of its trials: the live table, the count of failures, the marks of those
stopped early, the parent run's curve.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ray import tune
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pcl_ray.config.figures import SWEEP_BEST_SCORE, SWEEP_ENDED, SWEEP_FAILED
from pcl_ray.report.sweep.leaderboard import OF_RECIPE
from pcl_ray.runs.folder import RunFolder, read_state_at, write_state_at
from pcl_ray.sweep.interruption import Interrupter
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.trial_point import TrialPoint, point_of, run_name_of

_LINES_EVERY_S = 30.0
_NOTE_EVERY_S = 2.0
_ROWS = 12
_COMPARABLE = ("finished", "stopped early")


class ProgressCallback(tune.Callback):
    """Ray Tune calls it in the sweep's process."""

    def __init__(
        self,
        session: SweepSession,
        total: int,
        interrupter: Interrupter,
        *,
        ended_before: Iterable[str] = (),
        first_end: Callable[[], None] = lambda: None,
    ):
        """total: of all trials. interrupter: ends the sweep after too many failures. ended_before: runs of
        trials that ended in earlier sessions. first_end: called once, in a thread, when the first trial ends.
        """
        self._session = session
        self._total = total
        self._interrupter = interrupter
        self._runs_ended = set(ended_before)
        self._first_end = first_end
        self._epochs = session.context.base.train.epochs
        self._trials_begun: set[str] = set()
        self._latest: dict[str, dict[str, Any]] = {}  # trial id: its last result
        self._ended: dict[str, str] = {}  # trial id: how
        self._failures_in_a_row: list[str] = []  # reasons
        self._interrupted = False
        self._live: Live | None = None
        self._begun = time.monotonic()
        self._last_line = time.monotonic()
        self._last_note = 0.0
        self._ended_before = len(self._runs_ended)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with the experiment; a restored one gets a new one

    def setup(
        self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any
    ) -> None:
        console = self._session.console
        if console.is_terminal:
            self._live = Live(self._table(), console=console, refresh_per_second=2, transient=True)
            self._live.start()

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop turns: what wants it to end may have come before it listened."""
        self._interrupter.repeat()
        for trial in trials:
            # of a restored experiment: an earlier session's counts and limits say nothing about this one's
            if trial.trial_id not in self._trials_begun:
                self._trials_begun.add(trial.trial_id)
                trial.max_failures = self._session.context.settings.process_failures
                trial.run_metadata.num_failures = 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._latest[trial.trial_id] = result
        if "failing" in result:
            trial.max_failures = 0  # it failed for a reason of its own: once more would be the same
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = self._latest.get(trial.trial_id, {})
        # Tune itself says done of those it stops
        early = bool(result.get("early")) or result.get("epoch", 0) < result.get("of", self._epochs)
        if early and "run" in result:
            write_state_at(RunFolder.path_of(result["run"]), state="stopped early")
        self._end(trial, "stopped early" if early else "finished", result)
        self._failures_in_a_row.clear()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        settings = self._session.context.settings
        result = {"run": self._run_of(trial), **self._latest.get(trial.trial_id, {})}
        reason = result.get("failing") or f"its process was lost {settings.process_failures + 1} times"
        if "failing" not in result and RunFolder.path_of(result["run"]).is_dir():
            write_state_at(RunFolder.path_of(result["run"]), state="failed", error=reason)
        self._end(trial, f"failed: {reason}", result)
        self._failures_in_a_row.append(reason)
        count = len(self._failures_in_a_row)
        if count >= settings.failures and not self._interrupted:
            self._interrupted = True
            self._interrupter.fail(
                f"{count} trials failed one after the other. {_most_frequent(self._failures_in_a_row)}"
            )

    def _run_of(self, trial: Any) -> str:
        """The run of a trial of Tune's."""
        context = self._session.context
        return run_name_of(context.sweep, point_of(trial.config, context.base.seed, trial.trial_id))

    def _end(self, trial: Any, how: str, result: dict[str, Any]) -> None:
        if not self._ended:
            threading.Thread(target=self._first_end, name="preload", daemon=True).start()
        self._ended[trial.trial_id] = how
        self._runs_ended.add(result.get("run") or trial.trial_id)
        if self._live is None:
            self._print_end(trial.trial_id, how, result)
        scores = [latest["score"] for latest in self._latest.values() if "score" in latest]
        figures = {
            SWEEP_ENDED.name: float(len(self._runs_ended)),
            SWEEP_FAILED.name: float(sum(text.startswith("failed") for text in self._ended.values())),
        }
        figures |= {SWEEP_BEST_SCORE.name: max(scores)} if scores else {}
        self._session.tracker.log(figures, len(self._runs_ended))
        self._show()

    def _print_end(self, trial_id: str, how: str, result: dict[str, Any]) -> None:
        state = _state_of(result)
        value = (state.get("trial") or {}).get("objective")
        objective = f"  {self._session.context.objective.metric} {value:.4f}" if value is not None else ""
        own = self._session.request.recipe_point
        of_recipe = own is not None and state.get("point") == own
        self._session.console.print(
            f"trial {len(self._runs_ended)}/{self._total}  {state.get('title', trial_id)}  {how},"
            f" {result.get('epoch', 0)} epochs{objective}{f'  ({OF_RECIPE})' if of_recipe else ''}",
            markup=False,
            soft_wrap=True,
        )

    def _note_progress(self) -> None:
        """Writes into the sweep's state.json what `pcl-ray status` shows."""
        now = time.monotonic()
        if now - self._last_note < _NOTE_EVERY_S and len(self._runs_ended) < self._total:
            return
        self._last_note = now
        best = self._best()
        running = [result for trial, result in self._latest.items() if trial not in self._ended]
        progress = {
            "trials": self._total,
            "ended": len(self._runs_ended),
            "running": len(running),
            "at": time.time(),
            "figure": self._session.context.objective.metric,
            "value": best.get("objective") if best else None,
        }
        # of this session: what was trained before it took no time of it
        parts = sum(result.get("epoch", 0) / max(result.get("of", self._epochs), 1) for result in running)
        done = len(self._runs_ended) - self._ended_before + parts
        left = self._total - self._ended_before - done
        if done > 0:
            progress["left_s"] = (now - self._begun) / done * max(left, 0.0)
        self._session.folder.write_state(phase="training", progress=progress)

    def _best(self) -> dict[str, Any] | None:
        """The last result of the best trial that has ended; None before the first."""
        ended = [self._latest.get(trial, {}) for trial, how in self._ended.items() if how in _COMPARABLE]
        measured = [result for result in ended if "score" in result]
        return max(measured, key=lambda result: result["score"], default=None)

    def _show(self) -> None:
        self._note_progress()
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._table())
        elif now - self._last_line > _LINES_EVERY_S:
            self._last_line = now
            running = [result for trial, result in self._latest.items() if trial not in self._ended]
            epochs = ", ".join(f"{result['epoch']}/{self._epochs}" for result in running)
            self._session.console.print(
                f"running     {len(running)} trials at epochs {epochs};"
                f" {len(self._runs_ended)} of {self._total} ended",
                markup=False,
                soft_wrap=True,
            )

    def _table(self) -> Group:
        """The running trials and the best of those that have ended."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("trial", "state", "epoch", self._session.context.objective.metric):
            table.add_column(title, no_wrap=True)
        running = [trial for trial in self._latest if trial not in self._ended]
        ended = sorted(self._ended, key=lambda trial: -self._latest.get(trial, {}).get("score", -1e9))
        for trial in [*running, *ended][:_ROWS]:
            result = self._latest.get(trial, {})
            title = _state_of(result).get("title", trial)
            value = f"{result['objective']:.4f}" if "objective" in result else ""
            state = self._ended.get(trial, "waiting" if result.get("waiting") else "running")
            table.add_row(
                title, state[:60], f"{result.get('epoch', 0)}/{result.get('of', self._epochs)}", value
            )
        minutes = (time.monotonic() - self._begun) / 60
        own = self._of_recipe()
        counts = f"{len(self._runs_ended)} of {self._total} trials ended, {len(running)} running"
        best = self._best()
        shown = (
            f"{_state_of(best).get('title', '')} {best['objective']:.4f}"
            if best and "objective" in best
            else "–"
        )
        lines = [f"best so far {shown}; {counts}, {minutes:.1f} minutes"]
        return Group(table, *map(Text, [*lines, *([f"recipe      {own}"] if own else [])]))

    def _of_recipe(self) -> str:
        """What the recipe's own values reach so far; "" where they are not tried."""
        point, context = self._session.request.recipe_point, self._session.context
        if point is None:
            return ""
        seeds = range(context.base.seed, context.base.seed + context.settings.seeds)
        names = [run_name_of(context.sweep, TrialPoint(point, seed)) for seed in seeds]
        summaries = [read_state_at(RunFolder.path_of(name)).get("trial") or {} for name in names]
        values = [summary["objective"] for summary in summaries if summary.get("objective") is not None]
        if not values:
            return "its own values are not measured yet"
        of = f", {len(values)} of {len(names)} seeds" if len(names) > 1 else ""
        return f"its own values reach {sum(values) / len(values):.4f}{of}"


def _state_of(result: dict[str, Any]) -> dict[str, Any]:
    """state.json of the run that a result is of; {} where it does not say which."""
    return read_state_at(RunFolder.path_of(result["run"])) if "run" in result else {}


def _most_frequent(reasons: list[str]) -> str:
    """The most frequent reason; numbers in it do not make another one of it."""
    kinds = [re.sub(r"\d[\d.e-]*", "#", reason) for reason in reasons]
    kind, count = Counter(kinds).most_common(1)[0]
    return f"{count} of them: {reasons[kinds.index(kind)]}"
