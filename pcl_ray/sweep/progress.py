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
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pcl_ray.runs.folder import RunFolder, write_state_at
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.space.settings import SweepConfig
from pcl_ray.sweep.trial import read_state

_LINES_EVERY_S = 30.0
_ROWS = 12


def _common(reasons: list[str]) -> str:
    """The most frequent; numbers in them do not make another reason."""
    kinds = [re.sub(r"\d[\d.e-]*", "#", reason) for reason in reasons]
    kind, count = Counter(kinds).most_common(1)[0]
    return f"{count} of them: {reasons[kinds.index(kind)]}"


class Follow(tune.Callback):
    """Ray Tune calls it in the sweep's process. `stop` ends the sweep so that it can be resumed."""

    def __init__(
        self,
        console: Console,
        objective: Objective,
        settings: SweepConfig,
        epochs: int,
        total: int,
        tracker: Any,
        stop: Callable[[], None],
        ended_before: Iterable[str] = (),
        first_end: Callable[[], None] = lambda: None,
        each_turn: Callable[[], None] = lambda: None,
        run_of: Callable[[Any], str] = lambda trial: "",
    ):
        # called at each turn of Tune's loop; the run of a trial of Tune's
        self._each_turn, self._run_of = each_turn, run_of
        self._seen: set[str] = set()
        self._first_end = first_end  # called once, in a thread
        self._runs = set(ended_before)  # that have ended, also in earlier sessions
        self._console, self._objective, self._settings, self._epochs, self._total = (
            console,
            objective,
            settings,
            epochs,
            total,
        )
        self._tracker, self._stop = tracker, stop
        self._latest: dict[str, dict[str, Any]] = {}  # trial id: its last result
        self._ended: dict[str, str] = {}  # trial id: how
        self._in_a_row: list[str] = []  # reasons
        self._live: Live | None = None
        self._told = time.monotonic()
        self._begun = time.monotonic()
        self.failed_of: str = ""  # set: too many failed, and most often for this

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps its callbacks with the experiment; a restored one gets a new Follow

    def setup(
        self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any
    ) -> None:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop turns: what wants it to end may have come before it listened."""
        self._each_turn()
        for trial in trials:
            # of a restored experiment: an earlier session's counts and limits say nothing about this one's
            if trial.trial_id not in self._seen:
                self._seen.add(trial.trial_id)
                trial.max_failures, trial.run_metadata.num_failures = self._settings.process_failures, 0

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
        self._in_a_row.clear()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = {"run": self._run_of(trial), **self._latest.get(trial.trial_id, {})}
        reason = result.get("failing") or f"its process was lost {self._settings.process_failures + 1} times"
        if "failing" not in result and RunFolder.path_of(result["run"]).is_dir():
            write_state_at(RunFolder.path_of(result["run"]), state="failed", error=reason)
        self._end(trial, f"failed: {reason}", result)
        self._in_a_row.append(reason)
        if len(self._in_a_row) >= self._settings.failures and not self.failed_of:
            self.failed_of = (
                f"{len(self._in_a_row)} trials failed one after the other. {_common(self._in_a_row)}"
            )
            self._stop()

    def _end(self, trial: Any, how: str, result: dict[str, Any]) -> None:
        if not self._ended:
            threading.Thread(target=self._first_end, name="preload", daemon=True).start()
        self._ended[trial.trial_id] = how
        self._runs.add(result.get("run") or trial.trial_id)
        state = read_state(result["run"]) if "run" in result else {}
        value = (state.get("trial") or {}).get("objective")
        if self._live is None:
            said = f"  {self._objective.metric} {value:.4f}" if value is not None else ""
            self._console.print(
                f"trial {self._count()}/{self._total}  {state.get('title', trial.trial_id)}  {how},"
                f" {result.get('epoch', 0)} epochs{said}",
                markup=False,
                soft_wrap=True,
            )
        best = self._best()
        figures = {
            "sweep/ended": float(self._count()),
            "sweep/failed": float(sum(text.startswith("failed") for text in self._ended.values())),
        }
        figures |= {"sweep/best_score": best} if best is not None else {}
        self._tracker.log(figures, self._count())
        self._show()

    def _count(self) -> int:
        return len(self._runs)

    def _best(self) -> float | None:
        scores = [result["score"] for result in self._latest.values() if "score" in result]
        return max(scores, default=None)

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._table())
        elif now - self._told > _LINES_EVERY_S:
            self._told = now
            running = [result for trial, result in self._latest.items() if trial not in self._ended]
            epochs = ", ".join(f"{result['epoch']}/{self._epochs}" for result in running)
            self._console.print(
                f"running     {len(running)} trials at epochs {epochs}; {self._count()} of {self._total}"
                " ended",
                markup=False,
                soft_wrap=True,
            )

    def _table(self) -> Group:
        """The running trials and the best of those that have ended."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("trial", "state", "epoch", self._objective.metric):
            table.add_column(title, no_wrap=True)
        running = [trial for trial in self._latest if trial not in self._ended]
        ended = sorted(self._ended, key=lambda trial: -self._latest.get(trial, {}).get("score", -1e9))
        for trial in [*running, *ended][:_ROWS]:
            result = self._latest.get(trial, {})
            title = read_state(result["run"]).get("title", trial) if "run" in result else trial
            value = f"{result['objective']:.4f}" if "objective" in result else ""
            state = self._ended.get(trial, "waiting" if result.get("waiting") else "running")
            table.add_row(
                title, state[:60], f"{result.get('epoch', 0)}/{result.get('of', self._epochs)}", value
            )
        minutes = (time.monotonic() - self._begun) / 60
        return Group(
            table,
            Text(
                f"{self._count()} of {self._total} trials ended, {len(running)} running, {minutes:.1f}"
                " minutes"
            ),
        )
