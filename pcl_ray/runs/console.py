"""What the user sees of a run: a live bar in a terminal, else a line every `train.log_every_steps` steps."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pcl_ray.config.figures import AMI, E_STEP_SECONDS, EPOCH_SECONDS, IMAGES_PER_SECOND, KNN_TOP1, LOSS
from pcl_ray.plan import RunPlan
from pcl_ray.training.events import Event

_PATIENCE_S = 5.0
_SHOWN = (LOSS, KNN_TOP1, AMI.at(0), IMAGES_PER_SECOND, E_STEP_SECONDS)


class Display:
    """Writes to `out`; warnings to stderr. `begin` … `end` around the training itself. What is waited for
    longer than `patience_s` is said.
    """

    def __init__(self, out: TextIO | None = None, patience_s: float = _PATIENCE_S):
        self._console = Console(file=out or sys.stdout, highlight=False, force_jupyter=False)
        self._errors = Console(stderr=True, highlight=False, force_jupyter=False)
        self._bar: Progress | None = None
        self._plan: RunPlan | None = None
        self._latest: dict[str, float] = {}
        self._started = False
        self._patience_s = patience_s
        self._wait: threading.Timer | None = None

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"warning: {text}", markup=False, soft_wrap=True)
        else:
            self._errors.print(f"warning: {text}", markup=False, soft_wrap=True)

    def begin(self, plan: RunPlan) -> None:
        self._plan = plan
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._bar.add_task("starting", total=plan.total_steps, figures="")
            self._bar.start()

    def end(self) -> None:
        self._stop_waiting()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def waits_for(self, text: str) -> None:
        """Says it after a while, unless something else has happened by then."""
        self._stop_waiting()
        self._wait = threading.Timer(self._patience_s, self.say, [f"waiting    for {text}"])
        self._wait.daemon = True
        self._wait.start()

    def counting(self, text: str) -> Callable[[int, int], None]:
        """What takes the numbers done and of all, and says them where it takes long: "TEXT 400 of 1,205"."""
        said_at = time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= self._patience_s:
                said_at = time.monotonic()
                self.say(f"{text} {done:,} of {total:,}")

        return count

    def _stop_waiting(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def handle(self, event: Event) -> None:
        self._stop_waiting()
        self._started = self._started or event.kind not in ("phase", "waiting", "warning")
        self._latest |= event.metrics
        if event.kind == "warning":
            self.warn(event.text)
        elif event.kind == "waiting":
            self.say(event.text or "there is room now")
        elif event.kind == "figures":
            pass  # shown with the next line
        elif self._bar is not None:
            self._update_bar(self._bar, event)
        else:
            self._print_line(event)

    def _update_bar(self, bar: Progress, event: Event) -> None:
        assert self._plan is not None
        task = bar.task_ids[0]
        epoch = f"epoch {min(event.epoch + 1, self._plan.epochs)}/{self._plan.epochs}"
        if event.kind == "phase":
            phase = f"epoch {event.epoch}/{self._plan.epochs} {event.text}"
            bar.update(
                task, description=phase if self._started else event.text, figures=_figures(self._latest)
            )
        elif event.kind == "epoch":
            bar.update(task, completed=event.step + 1, figures=_figures(self._latest))
        else:
            bar.update(task, completed=event.step, description=epoch, figures=_figures(self._latest))

    def _print_line(self, event: Event) -> None:
        assert self._plan is not None
        epoch = f"epoch {event.epoch + 1}/{self._plan.epochs}"
        if event.kind == "phase":
            done = f", after epoch {event.epoch}/{self._plan.epochs}" if self._started else ""
            self.waits_for(f"{event.text}{done}")
        elif event.kind == "start" and event.step:
            self.say(f"going on with {epoch}{event.step_text(self._plan.steps_per_epoch)}")
        elif event.kind == "step":
            self.say(f"{epoch}  step {event.step + 1}/{self._plan.total_steps}  {_figures(event.metrics)}")
        elif event.kind == "epoch":
            seconds = event.metrics[EPOCH_SECONDS.name]
            self.say(f"{epoch} done in {seconds:.1f} s  {_figures(event.metrics)}")


def _figures(metrics: dict[str, float]) -> str:
    """The figures that tell most, those of them that were measured."""
    return "  ".join(figure.phrase(metrics[figure.name]) for figure in _SHOWN if figure.name in metrics)
