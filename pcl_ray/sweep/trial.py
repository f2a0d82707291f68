"""One trial of a sweep: a run of its own under runs/, taken epoch by epoch. A plain class; `trainable` wraps
it for Ray Tune.

folder free? → warm-up: found (go on from it), mine (train it, leave a copy), or somebody else's (wait) →
epochs → summary in state.json
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig, properties
from pcl_ray.data.images import Images
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.plan import RunPlan
from pcl_ray.runs import final_artifacts, preparation
from pcl_ray.runs.folder import Busy, RunFolder, read_state_at
from pcl_ray.runs.gallery import Gallery
from pcl_ray.support.files import atomic_file
from pcl_ray.support.paths import home
from pcl_ray.support.redaction import scrubbed
from pcl_ray.sweep import warm_ups
from pcl_ray.sweep.point import Point, run_name_of, title_of
from pcl_ray.sweep.space.objective import WORST, Objective
from pcl_ray.sweep.space.settings import SweepConfig
from pcl_ray.sweep.warm_ups import Claim
from pcl_ray.training.events import Event, Post
from pcl_ray.training.training_task import TrainingTask

_WAIT_S = 2.0  # a trial that waits for another gives word this often
_ALIVE_EVERY_S = 5.0
_PICTURES_S = 5.0  # Tune ends the process soon


@dataclass(frozen=True)
class Setting:
    """What all trials of a sweep have in common."""

    sweep: str
    base: RunConfig
    settings: SweepConfig
    objective: Objective
    num_images: int
    num_holdout: int
    fingerprint: str
    home: str
    parent_run_id: str | None
    class_names: tuple[str, ...] = ()  # () without labels
    # of the sweep's process, with its passwords: never on a disk
    tracking_environment: dict[str, str] = field(default_factory=dict, repr=False)

    def plan(self, config: RunConfig) -> RunPlan:
        return plans.make(config, self.num_images, self.num_holdout)


class Office(Protocol):
    """`warmups.Warmups` as a trial sees it, wherever it runs."""

    def claim(self, key: str, trial: str) -> Claim: ...
    def alive(self, key: str, trial: str) -> None: ...
    def release(self, key: str, trial: str) -> None: ...


class Epochs(Protocol):
    """Trains the job: gives back how many epochs are done, one after the other. Raises RunFailed."""

    def __call__(self, task: TrainingTask, post: Post, /) -> Iterator[int]: ...


class Trial:
    """One point's run. `step` until its result says done; then, or at any time before, `close`."""

    def __init__(
        self,
        point: Point,
        setting: Setting,
        epochs: Epochs,
        office: Office,
        images: Callable[[], Images] | None = None,
    ):
        """images: of the training part, for pictures of the prototypes; None: none are drawn."""
        self.point, self._setting, self._make_epochs, self._office, self._images = (
            point,
            setting,
            epochs,
            office,
            images,
        )
        self._gallery: Gallery | None = None
        self.config = point.config(setting.base)
        self.plan = setting.plan(self.config)
        self.title = title_of(point, self.config, self.plan)
        self.name = run_name_of(setting.sweep, point)
        self._folder: RunFolder | None = None
        self._tracker: tracking.MlflowRun | tracking.NullRun | None = None
        self._epochs: Iterator[int] | None = None
        self._history: list[dict[str, Any]] = []
        self._began = 0  # epochs that another trial trained for it
        self._failed = ""
        self._claimed = ""  # key of the warm-up that it trains
        self._told = 0.0

    def step(self) -> dict[str, Any]:
        """Trains one epoch; its figures for Ray Tune. Raises RunFailed one step after a result that says
        failing, which Tune then takes for final.
        """
        if self._failed:
            raise RunFailed(self._failed)
        try:
            if self._epochs is None:
                if not self._open():
                    time.sleep(_WAIT_S)
                    return {"epoch": 0, "waiting": True}
                if (known := self._known()) is not None:
                    return known
                self._start()
            assert self._epochs is not None
            done = next(self._epochs, None)
        except (RunFailed, ConfigError) as failure:
            return self._fail(str(failure))
        except Exception as error:  # out of memory, a bug: it costs this trial
            if self._folder is not None:
                final_artifacts.write_traceback(self._folder)
            return self._fail(f"{type(error).__name__}: {error}")
        if done is None or done >= self.plan.epochs:
            self._conclude("finished")
            return self._result() | {"done": True}
        return self._result()

    def close(self) -> None:
        """Ends a trial that has not come to its own end: its scheduler or its user wants no more of it,
        now.
        """
        if isinstance(self._epochs, Generator):
            self._epochs.close()
        self._epochs = None
        if self._folder is not None and not self._failed:
            early = self._folder.read_state().get("state") == "stopped early"
            self._conclude("stopped early" if early else "stopped")

    def checkpoint(self) -> Path | None:
        """The newest of its own."""
        return epoch_files.latest(epoch_files.folder_of(RunFolder.path_of(self.name)))

    def take_over(self, donor: Path, exploit: dict[str, Any]) -> None:
        """Population-based training: goes on from another member's checkpoint, with its own values; clusters
        are made anew with them.
        """
        from pcl_ray.checkpoints import run_state

        known = read_state(self.name).get("exploits", [])
        if known and known[-1] == exploit and self.checkpoint() is not None:
            return  # a process that was lost and came back: what was taken over has been trained on
        deadline = time.monotonic() + self.config.resources.start_timeout_s
        while not self._open():
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"the folder of run {self.name} was not free within resources.start_timeout_s"
                )
            time.sleep(_WAIT_S)
        assert self._folder is not None
        run_state.take_over(donor, self._folder.checkpoints)
        self._folder.write_state(exploits=[*known, exploit], began=0)

    def _open(self) -> bool:
        """Takes the folder, and the warm-up where there is one to share; False where another trial has
        either.
        """
        if self._folder is None:
            path = RunFolder.path_of(self.name)
            try:
                self._folder = (
                    RunFolder.open(self.name)
                    if (path / "config.yaml").is_file()
                    else RunFolder.create(self.name, self.config)
                )
            except Busy:  # a second trial of the same point: it takes the first one's result
                return False
            point = {
                "point": dict(self.point.values),
                "seed": self.point.seed,
                "member": self.point.member,
                "title": self.title,
            }
            self._folder.write_state(sweep=self._setting.sweep, **point)
        if self.point.member is not None:
            self._folder.write_config(self.config)
        elif differing := _differing(self._folder.read_config(), self.config):
            raise ConfigError(
                f"run {self.name} is there already with other settings ({', '.join(differing)}): remove it,"
                " or give the sweep another --name"
            )
        return self._share_warmup(self._folder)

    def _share_warmup(self, folder: RunFolder) -> bool:
        """Whether training can begin."""
        newest = folder.newest_checkpoint()
        done = epoch_files.epochs_done(newest) if newest else 0
        if (
            not self._setting.settings.shared_warmup
            or not warm_ups.exists(self.config)
            or done >= self.plan.warmup_epochs
        ):
            return True
        key = warm_ups.key_of(self.config)
        claim = self._office.claim(key, self.name)
        if claim.kind == "wait" and not done:  # one that was interrupted in the warm-up rather trains on
            return False
        if claim.kind == "yours":
            self._claimed = key
            threading.Thread(target=self._keep_claim, args=(key,), name="claim", daemon=True).start()
        elif claim.kind == "found":
            link(Path(claim.path), folder.checkpoints)
            folder.write_state(began=self.plan.warmup_epochs)
        return True

    def _keep_claim(self, key: str) -> None:
        """A feature pass or a compilation may take minutes without any event."""
        while self._claimed == key:
            with suppress(Exception):  # an office that is being restarted
                self._office.alive(key, self.name)
            time.sleep(_ALIVE_EVERY_S)

    def _known(self) -> dict[str, Any] | None:
        """The outcome of a run that has ended already."""
        assert self._folder is not None
        state = self._folder.read_state()
        if state.get("state") not in ("finished", "stopped early") or (
            state["state"] == "finished" and state.get("epochs") != self.plan.epochs
        ):
            return None
        summary = state.get("trial") or {}
        self._folder.lock.release()
        self._folder = None
        score = {"score": summary["score"]} if summary.get("score") is not None else {}
        return {
            "epoch": state.get("epochs", 0),
            "of": self.plan.epochs,
            "done": True,
            "known": True,
            "early": state["state"] == "stopped early",
            "run": self.name,
        } | score

    def _start(self) -> None:
        assert self._folder is not None
        folder, setting = self._folder, self._setting
        state = folder.read_state()
        self._began = int(state.get("began", 0))
        self._history = folder.read_history()
        tags = {
            "pcl_ray.sweep": setting.sweep,
            "pcl_ray.trial": self.title,
            "trial.status": "running",
            "objective.name": setting.objective.metric,
        }
        tags |= {"mlflow.parentRunId": setting.parent_run_id} if setting.parent_run_id else {}
        tags |= {tracking.NOTE: self._note("running", {})}
        self._tracker = preparation.open_tracker(
            folder,
            self.config,
            setting.fingerprint,
            lambda text: None,
            preparation.TrackingDetails(
                title=self.title,
                tags=tags,
                data=preparation.DataSummary(self.plan, len(setting.class_names)),
                always_charted=(setting.objective.metric,),
            ),
        )
        if self._images is not None:
            self._gallery = Gallery(folder.path, self._images, self._tracker, lambda text: None, small=True)
        for entry in self._history:  # the shared warm-up's, and what a killed process could not send
            self._tracker.log(entry["metrics"], entry["step"])
        folder.write_state(
            state="running",
            error=None,
            recorded=False,
            fingerprint=setting.fingerprint,
            **final_artifacts.report_entries(self.plan, setting.class_names, ""),
        )
        leave = str(home() / "sweeps" / setting.sweep / "warmups" / self._claimed) if self._claimed else None
        self._epochs = self._make_epochs(
            TrainingTask(self.config, self.plan, str(folder.path), leave), self._handle
        )

    def _handle(self, event: Event) -> None:
        if self._tracker is not None and event.kind in ("step", "epoch", "figures"):
            self._tracker.log(event.metrics, event.step)
        if self._gallery is not None:
            self._gallery.handle(event)
        if event.kind == "epoch":
            if self._claimed and event.epoch + 1 >= self.plan.warmup_epochs:  # it lies in the folder by now
                self._release()
            self._history.append({"epoch": event.epoch, "step": event.step, "metrics": dict(event.metrics)})
            self._summarise()
        elif event.kind == "figures" and self._history:
            self._history[-1]["metrics"] |= event.metrics
        if time.monotonic() - self._told > _ALIVE_EVERY_S:
            self._told = time.monotonic()
            if self._folder is not None:
                os.utime(self._folder.path / "lock")  # the driver looks whether anything happens

    def _done(self) -> int:
        """Epochs."""
        return self._history[-1]["epoch"] + 1 if self._history else 0

    def _summary(self) -> dict[str, Any]:
        """What the leaderboard is made from. The objective is that of the last evaluation: the best of many
        would be a choice of its own.
        """
        setting = self._setting
        metrics: dict[str, float] = {}
        for entry in self._history:
            metrics |= entry["metrics"]
        value = metrics.get(setting.objective.metric)
        refused = setting.objective.refusal(metrics, setting.settings)
        score = None if value is None else WORST if refused else setting.objective.score(value)
        seconds = [entry["metrics"].get("perf/epoch_seconds", 0.0) for entry in self._history]
        owed = sum(entry["metrics"].get("perf/owed_seconds", 0.0) for entry in self._history)
        resources = self.config.resources
        devices = max(resources.workers, 1) * (resources.gpus_per_worker or 1)
        return {
            "objective": value,
            "score": score,
            "refused": refused,
            "device_seconds": devices * (sum(seconds[self._began :]) + owed),
            "saved_seconds": devices * sum(seconds[: self._began]),
            "metrics": metrics,
        }

    def _summarise(self) -> None:
        if self._folder is not None:
            self._folder.write_state(
                epochs=self._done(),
                trial=self._summary(),
                mlflow_run_id=self._tracker.run_id if self._tracker else None,
            )

    def _result(self) -> dict[str, Any]:
        summary = self._summary()
        result: dict[str, Any] = {"epoch": self._done(), "of": self.plan.epochs, "run": self.name}
        result |= {name: summary[name] for name in ("objective", "score") if summary[name] is not None}
        return result | ({"refused": summary["refused"]} if summary["refused"] else {})

    def _fail(self, reason: str) -> dict[str, Any]:
        self._failed = scrubbed(reason) or "unknown"  # Tune keeps it too
        if self._folder is not None:
            self._folder.write_state(error=self._failed)
        self._conclude("failed")
        return {"epoch": self._done(), "failing": self._failed, "run": self.name}

    def _note(self, state: Any, metrics: dict[str, float]) -> str:
        return final_artifacts.dashboard_note(
            f"{self.title} of sweep {self._setting.sweep}",
            "",
            self.config,
            self.plan,
            len(self._setting.class_names),
            state,
            metrics,
        )

    def _release(self) -> None:
        if self._claimed:
            key, self._claimed = self._claimed, ""
            self._office.release(key, self.name)

    def _conclude(self, state: Any) -> None:
        """Writes down how it ended, closes its MLflow run, gives its folder and its claim back."""
        self._release()
        folder, tracker, gallery = self._folder, self._tracker, self._gallery
        self._folder = self._tracker = self._gallery = None
        if folder is None:
            return
        if tracker is not None:
            folder.write_state(state=state, epochs=self._done(), trial=self._summary())
            if gallery is not None:
                gallery.close(_PICTURES_S)
            tracker.tag({"trial.status": state, tracking.NOTE: self._note(state, self._summary()["metrics"])})
            tracker.finish(state)
            folder.write_state(mlflow_run_id=tracker.run_id, recorded=True)
        elif state == "failed":
            folder.write_state(state=state)
        folder.lock.release()


def _differing(stored: RunConfig, wanted: RunConfig) -> list[str]:
    one, two = stored.flatten(), wanted.flatten()
    return [name for name in two if one.get(name) != two[name] and not properties(name).changeable_on_resume]


def link(source: Path, folder: Path) -> None:
    """The same file in another folder, whole or not at all: one file for all who go on from it, since
    checkpoints are never written in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / source.name) as partial:
        try:
            os.link(source, partial)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, partial)


def read_state(run_name: str) -> dict[str, Any]:
    return read_state_at(RunFolder.path_of(run_name))
