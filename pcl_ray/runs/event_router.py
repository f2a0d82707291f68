"""Passes every event of a run on to whoever needs it: in the driver's thread, so nothing here may wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pcl_ray import tracking
from pcl_ray.config.figures import EPOCH_SECONDS, HEADLINES, LOSS, first_of
from pcl_ray.on_ray.metrics import RayMetrics
from pcl_ray.plan import RunPlan
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import RunFolder
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemLog

if TYPE_CHECKING:
    from pcl_ray.runs.gallery import Gallery  # it loads torch

FIRST_STEP = "first step"  # among the entries of `StateEntries.start`


class EventRouter:
    """Passes events on to the display, to MLflow, to the gallery and to the metrics of the cluster; writes
    into state.json what `pcl-ray status` shows.
    """

    def __init__(
        self,
        tracker: tracking.MlflowRun | tracking.NullRun,
        display: Display,
        folder: RunFolder,
        plan: RunPlan,
        gallery: Gallery,
    ):
        self._tracker, self._display, self._gallery = tracker, display, gallery
        self._folder, self._plan = folder, plan
        self._system = SystemLog(tracker.log, folder.read_state().get("began_at") or time.time())
        self._metrics = RayMetrics(folder.name, plan.epochs)
        self._started = False
        self._start_times: dict[str, float] = {}
        self._phase = ""
        self._waits_since: float | None = None
        self._run_id: str | None = None

    def handle(self, event: Event) -> None:
        if event.kind == "start" and self._started:
            step = event.step_text(self._plan.steps_per_epoch)
            self._display.warn(f"workers were lost and replaced; going on from epoch {event.epoch + 1}{step}")
        self._started = self._started or event.kind == "start"
        self._note_start(event)
        if event.kind in ("step", "epoch", "figures"):
            self._tracker.log(event.metrics, event.step)
        self._system.handle(event, time.time())
        self._metrics.handle(event, self._tracker.dropped)
        self._gallery.handle(event)
        if event.kind == "snapshot" and not event.epoch:
            self._folder.write_state(looked=True)
        if event.kind == "waiting":
            self._waits_since = (self._waits_since or time.time()) if event.text else None
            self._folder.write_state(waits_for=event.text, waits_since=self._waits_since)
            self._tracker.tag({tracking.WAITS_TAG: event.text})
        self._note_phase(event)
        if event.kind == "epoch":
            self._folder.write_state(progress=progress(event, self._plan))
        if self._tracker.run_id != self._run_id:
            self._record_run_id()
        if event.kind not in ("snapshot", "views", "system"):
            self._display.handle(event)

    def _note_start(self, event: Event) -> None:
        """Writes down when each thing began that comes before this process's first step, for whoever asks
        where the seconds from a command to its training go.
        """
        if FIRST_STEP in self._start_times:
            return
        name = {"phase": event.text, "start": "training", "alive": FIRST_STEP}.get(event.kind, "")
        if name and name not in self._start_times:
            self._start_times[name] = event.at
            self._folder.write_state(start=self._start_times)
        if name == FIRST_STEP or event.kind == "waiting":
            self._tracker.release()

    def _note_phase(self, event: Event) -> None:
        """Writes down what the run does, when that is another thing than before."""
        phase = self._phase
        if event.kind == "phase" and self._started:
            phase = event.text
        elif event.kind in ("start", "alive", "step", "epoch"):
            phase = "training"
        if phase != self._phase:
            self._phase = phase
            self._folder.write_state(phase=phase)

    def announce_stop(self) -> None:
        """Marks the run as stopped: at once, from a signal's handler, since a kill may follow in seconds."""
        self._folder.write_state(state="stopped")
        self._tracker.announce("stopped")

    def _record_run_id(self) -> None:
        """Records the run's number as soon as MLflow gives one: it finds the run of a killed process."""
        self._run_id = self._tracker.run_id
        link = self._tracker.link()
        self._folder.write_state(mlflow_run_id=self._run_id, link=link or "")
        if link:
            self._display.say(f"dashboard  {link}")


def progress(event: Event, plan: RunPlan) -> dict[str, Any]:
    """How far a run is after this event's epoch, whose time gives the seconds left; for `pcl-ray status`."""
    done = event.epoch + 1
    figure = (first_of(HEADLINES, event.metrics) or LOSS).name
    return {
        "epoch": done,
        "epochs": plan.epochs,
        "at": time.time(),
        "left_s": event.metrics.get(EPOCH_SECONDS.name, 0.0) * (plan.epochs - done),
        "figure": figure,
        "value": event.metrics.get(figure),
    }
