"""What is recorded of a trial while it trains: MLflow run, pictures, figures, summary for the leaderboard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from pcl_ray import tracking
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import EPOCH_SECONDS, OWED_SECONDS
from pcl_ray.data.images import Images
from pcl_ray.plan import RunPlan
from pcl_ray.runs import event_router, final_artifacts, preparation
from pcl_ray.runs.folder import LOCK_FILE, RunFolder
from pcl_ray.runs.gallery import Gallery
from pcl_ray.support import machine
from pcl_ray.sweep.space.objective import WORST
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.training.events import Event

_ALIVE_EVERY_S = 5.0
_PICTURES_S = 5.0  # Tune ends the process soon


class TrialRecording:
    """`begin`, then `handle` for every event, then `conclude`. The folder is the trial's, and stays open."""

    def __init__(
        self, folder: RunFolder, context: SweepContext, config: RunConfig, plan: RunPlan, title: str
    ):
        self._folder = folder
        self._context = context
        self._config = config
        self._plan = plan
        self._title = title
        # epochs that another trial trained for it
        self._epochs_from_others = int(folder.read_state().get("began", 0))
        self._history = folder.read_history()
        self._gallery: Gallery | None = None
        self._last_sign_of_life = 0.0
        self._run_id: str | None = None
        metric = context.objective.metric
        tags = {
            "pcl_ray.sweep": context.sweep,
            "pcl_ray.trial": title,
            "trial.status": "running",
            "objective.name": metric,
            tracking.NOTE: self._note("running", {}),
        }
        if context.parent_run_id:
            tags["mlflow.parentRunId"] = context.parent_run_id
        self._tracker = preparation.open_tracker(
            folder,
            config,
            context.fingerprint,
            lambda text: None,
            preparation.TrackingDetails(
                title=title, tags=tags, plan=plan, classes=len(context.class_names), always_charted=(metric,)
            ),
        )

    def begin(self, images: Callable[[], Images] | None) -> None:
        """images: of the training part, to draw prototypes with; None: no pictures."""
        if images is not None:
            self._gallery = Gallery(self._folder.path, images, self._tracker, lambda text: None, small=True)
        for entry in self._history:  # the shared warm-up's, and what a killed process could not send
            self._tracker.log(entry["metrics"], entry["step"])
        self._folder.write_state(
            state="running",
            phase="training",
            machine=machine.identity(),
            progress={"epoch": self.epochs_done, "epochs": self._plan.epochs},
            error=None,
            recorded=False,
            fingerprint=self._context.fingerprint,
            **final_artifacts.report_entries(self._plan, self._context.class_names, ""),
        )

    @property
    def epochs_done(self) -> int:
        return self._history[-1]["epoch"] + 1 if self._history else 0

    def handle(self, event: Event) -> None:
        if event.kind in ("step", "epoch", "figures"):
            self._tracker.log(event.metrics, event.step)
        if self._gallery is not None:
            self._gallery.handle(event)
        if self._tracker.run_id != self._run_id:
            self._run_id = self._tracker.run_id
            # at once: it finds the run of a killed process
            self._folder.write_state(mlflow_run_id=self._run_id)
        if event.kind == "epoch":
            self._history.append({"epoch": event.epoch, "step": event.step, "metrics": dict(event.metrics)})
            summary = self._summary()
            progress = event_router.progress(event, self._plan)
            if summary["objective"] is not None:
                progress |= {"figure": self._context.objective.metric, "value": summary["objective"]}
            self._folder.write_state(epochs=self.epochs_done, trial=summary, progress=progress)
        elif event.kind == "figures" and self._history:
            self._history[-1]["metrics"] |= event.metrics
        if time.monotonic() - self._last_sign_of_life > _ALIVE_EVERY_S:
            self._last_sign_of_life = time.monotonic()
            os.utime(self._folder.path / LOCK_FILE)  # the driver looks whether anything happens

    def result(self) -> dict[str, Any]:
        """What Ray Tune hears after an epoch."""
        summary = self._summary()
        result: dict[str, Any] = {"epoch": self.epochs_done, "of": self._plan.epochs}
        result["run"] = self._folder.name
        for name in ("objective", "score"):
            if summary[name] is not None:
                result[name] = summary[name]
        if summary["refused"]:
            result["refused"] = summary["refused"]
        return result

    def conclude(self, state: Any) -> None:
        """Writes down how the run ended, and closes its MLflow run."""
        summary = self._summary()
        self._folder.write_state(state=state, phase="recording", epochs=self.epochs_done, trial=summary)
        if self._gallery is not None:
            self._gallery.close(_PICTURES_S)
        self._tracker.tag({"trial.status": state, tracking.NOTE: self._note(state, summary["metrics"])})
        self._tracker.finish(state)
        self._folder.write_state(mlflow_run_id=self._tracker.run_id, recorded=True, phase="")

    def _summary(self) -> dict[str, Any]:
        """The figures that the leaderboard is made from. The objective is that of the last evaluation: taking
        the best of many would be a selection of its own.
        """
        objective = self._context.objective
        metrics: dict[str, float] = {}
        for entry in self._history:
            metrics |= entry["metrics"]
        value = metrics.get(objective.metric)
        refused = objective.refusal(metrics, self._context.settings)
        score = None
        if value is not None:
            score = WORST if refused else objective.score(value)
        seconds = [entry["metrics"].get(EPOCH_SECONDS.name, 0.0) for entry in self._history]
        owed = sum(entry["metrics"].get(OWED_SECONDS.name, 0.0) for entry in self._history)
        resources = self._config.resources
        devices = max(resources.workers, 1) * (resources.gpus_per_worker or 1)
        return {
            "objective": value,
            "score": score,
            "refused": refused,
            "device_seconds": devices * (sum(seconds[self._epochs_from_others :]) + owed),
            "saved_seconds": devices * sum(seconds[: self._epochs_from_others]),
            "metrics": metrics,
        }

    def _note(self, state: Any, metrics: dict[str, float]) -> str:
        return final_artifacts.dashboard_note(
            f"{self._title} of sweep {self._context.sweep}",
            "",
            self._config,
            self._plan,
            len(self._context.class_names),
            state,
            metrics,
        )
