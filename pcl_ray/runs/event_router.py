"""Follows a run: every event goes to whoever is to know of it. In the driver's thread; nothing here may wait
for anyone.
"""

from __future__ import annotations

import time
from typing import Any

from pcl_ray import tracking
from pcl_ray.on_ray.metrics import RayMetrics
from pcl_ray.plan import RunPlan
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import RunFolder
from pcl_ray.runs.gallery import Gallery
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemLog

WAITS_TAG = "pcl_ray.waits_for"


class EventRouter:
    """Passes events on to the display, to MLflow, to the gallery, to the metrics of the cluster, and to
    state.json what `pcl-ray status` shows.
    """

    def __init__(
        self,
        tracker: tracking.MlflowRun | tracking.NullRun,
        display: Display,
        folder: RunFolder,
        plan: RunPlan,
        gallery: Gallery,
    ):
        self._tracker, self._display, self._folder, self._plan, self._gallery = (
            tracker,
            display,
            folder,
            plan,
            gallery,
        )
        self._system = SystemLog(tracker.log, folder.read_state().get("began_at") or time.time())
        self._metrics = RayMetrics(folder.name, plan.epochs)
        self._started = False
        self._waits_since: float | None = None
        self._run_id: str | None = None

    def handle(self, event: Event) -> None:
        if event.kind == "start" and self._started:
            self._display.warn(f"workers were lost and replaced; going on from epoch {event.epoch + 1}")
        self._started = self._started or event.kind == "start"
        if event.kind in ("step", "epoch", "figures"):
            self._tracker.log(event.metrics, event.step)
        self._system.handle(event, time.time())
        self._metrics.handle(event, self._tracker.dropped)
        self._gallery.handle(event)
        if event.kind == "exhibit" and not event.epoch:
            self._folder.write_state(looked=True)
        if event.kind == "waiting":
            self._waits_since = (self._waits_since or time.time()) if event.text else None
            self._folder.write_state(waits_for=event.text, waits_since=self._waits_since)
            self._tracker.tag({WAITS_TAG: event.text})
        if event.kind == "epoch":
            self._folder.write_state(progress=progress(event, self._plan))
        if self._tracker.run_id != self._run_id:
            self._note_run()
        if event.kind not in ("exhibit", "views", "system"):
            self._display.handle(event)

    def stopped(self) -> None:
        """At once, from a signal's handler: whoever stops us may kill us seconds later."""
        self._folder.write_state(state="stopped")
        self._tracker.announce("stopped")

    def _note_run(self) -> None:
        """As soon as MLflow has the run: by its number it is found where its process is killed."""
        self._run_id = self._tracker.run_id
        link = self._tracker.link()
        self._folder.write_state(mlflow_run_id=self._run_id, link=link or "")
        if link:
            self._display.say(f"dashboard  {link}")


def progress(event: Event, plan: RunPlan) -> dict[str, Any]:
    """How far a run is, for whoever looks at it from outside: seconds that are left follow from its last
    epoch.
    """
    done = event.epoch + 1
    figure = next((name for name in tracking.OBJECTIVES if name in event.metrics), "train/loss")
    return {
        "epoch": done,
        "epochs": plan.epochs,
        "at": time.time(),
        "left_s": event.metrics.get("perf/epoch_seconds", 0.0) * (plan.epochs - done),
        "figure": figure,
        "value": event.metrics.get(figure),
    }
