"""The driver of one run: checks the request, holds the run's folder, trains, and passes on what happens.

request → data → folder (new or resumed) → training (in this process, or on Ray) ─ events → display, MLflow
                                                                                  → state.json → RunResult
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig, public_config, stored_secret
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.inspection import summary
from pcl_ray.errors import DataError, RunFailed, Stopped
from pcl_ray.on_ray import current_job
from pcl_ray.plan import RunPlan, why_so_many
from pcl_ray.runs import final_artifacts, preparation, storage_mirror
from pcl_ray.runs import request as requests
from pcl_ray.runs.console import Display
from pcl_ray.runs.event_router import EventRouter
from pcl_ray.runs.final_artifacts import RunResult
from pcl_ray.runs.folder import DATA_FILE, EndState, RunFolder, State
from pcl_ray.runs.request import Request
from pcl_ray.runs.storage_mirror import NullMirror, StorageMirror
from pcl_ray.runs.upkeep import guardian
from pcl_ray.support import machine, redaction
from pcl_ray.support.signals import heard_as_before, stopped_by_signals
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemWatch
from pcl_ray.training.training_task import TrainingTask

# How long a run's end may wait for drawing and sending. One told to stop may be killed half a minute later.
_DRAWING_S: dict[EndState, float] = {"finished": 180.0, "failed": 30.0, "stopped": 2.0}
_SENDING_S, _SENDING_MODEL_S = 30.0, 180.0
_START_S = 30.0  # MLflow and the pictures wait for the first step, which they would delay, but no longer


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a fork begins with."""

    checkpoint: Path
    run: str
    fingerprint: str | None  # of that run's images

    @property
    def text(self) -> str:
        """RUN@EPOCHS, as it is recorded."""
        return f"{self.run}@{epoch_files.epochs_done(self.checkpoint)}"


def start(
    request: Request,
    *,
    name: str | None = None,
    stem: str = "run",
    command: str = "",
    origin: Origin | None = None,
    display: Display | None = None,
    result_file: Path | None = None,
) -> RunResult:
    """Trains a new run to its end. Raises ConfigError or DataError before anything has started, RunFailed
    after, Stopped on a signal.

    name: None makes one that begins with `stem`. command: what was typed, for the record. origin: where it
    begins, instead of with random weights. result_file: gets the RunResult as JSON however the run ends, once
    it has started.
    """
    display = display or Display()
    preparation.prepare_process()
    if name:
        RunFolder.check_free(name)  # before a million images are looked at
        storage_mirror.check_free(request.config, name)
    splits, plan = preparation.load_data(request.config, display)
    if origin and origin.fingerprint not in (None, splits.train.fingerprint):
        raise DataError(f"the images are not those of run {origin.run!r}; a fork goes on with the same ones")
    _show_plan(request, splits, plan, display)
    name = name or RunFolder.free_name(stem, datetime.now().strftime("%m%d-%H%M%S"))
    with (
        RunFolder.create(name, request.config) as folder,
        storage_mirror.for_new_run(folder, request.config, display.warn) as mirror,
    ):
        folder.write_state(**preparation.image_entries(splits), command=command)
        if origin:
            _begin_with(origin, folder, mirror, display)
        preparation.begin_with_weights(folder, request.config, display.say, mirror)
        return _Run(folder, request.config, plan, splits, mirror, display, result_file).to_its_end()


def _begin_with(
    origin: Origin, folder: RunFolder, mirror: StorageMirror | NullMirror, display: Display
) -> None:
    from pcl_ray.checkpoints import run_state  # it loads torch

    checkpoint = run_state.take_over(origin.checkpoint, folder.checkpoints)
    folder.write_state(forked_from=origin.text)
    try:
        mirror.upload_first_checkpoint(checkpoint)
    except RunFailed as failure:
        folder.write_state(state="failed", error=str(failure))
        raise
    display.say(f"fork       {origin.text}")
    config = folder.read_config()
    if epoch_files.epochs_done(origin.checkpoint) < config.e_step.warmup_epochs:
        display.say(f"note       {_within_warmup(config)}")


def _within_warmup(config: RunConfig) -> str:
    """What a fork from within the warm-up has to know of prototypes."""
    warmup, epochs = config.e_step.warmup_epochs, config.train.epochs
    if warmup >= epochs:
        return f"the run ends within its warm-up ({warmup} epochs of {epochs}): it will have no prototypes"
    return f"it begins within the warm-up: there are no prototypes before epoch {warmup + 1}"


def resume(
    name: str, overrides: list[str], *, display: Display | None = None, result_file: Path | None = None
) -> RunResult:
    """Goes on with a run from its last checkpoint; gives back a finished one's result. Raises as `start`."""
    display = display or Display()
    preparation.prepare_process()
    storage_mirror.fetch(name, overrides)
    with RunFolder.open(name) as folder:
        config = requests.changed(folder.read_config(), overrides, name)
        with storage_mirror.for_resumed_run(folder, config, display.warn) as mirror:
            # the storage may have another one
            config = requests.changed(folder.read_config(), overrides, name)
            newest = folder.newest_checkpoint()
            done = epoch_files.epochs_done(newest) if newest else 0
            state = folder.read_state()
            if state.get("state") == "finished" and done >= config.train.epochs:
                display.say(f"run {name} has finished all its {done} epochs: nothing left to do")
                return _result_of_finished(folder, config, display, result_file)
            if secret := stored_secret(config):
                display.warn(secret)
            request = requests.check_config(config, stored=True)
            splits, plan = preparation.load_data(config, display)
            preparation.check_same_images(f"run {name!r}", state, splits)
            folder.write_config(config)
            preparation.begin_with_weights(folder, config, display.say, mirror)
            _show_plan(request, splits, plan, display)
            return _Run(folder, config, plan, splits, mirror, display, result_file).to_its_end()


def _result_of_finished(
    folder: RunFolder, config: RunConfig, display: Display, result_file: Path | None
) -> RunResult:
    """The result of a run with nothing left to train. What MLflow did not take at the time is sent now."""
    state = folder.read_state()
    run_id = state.get("mlflow_run_id")
    if (folder.path / tracking.PENDING_FILE).exists():
        tracker = preparation.open_tracker(folder, config, state.get("fingerprint", ""), display.warn)
        tracker.finish("finished", _SENDING_MODEL_S)
        run_id = tracker.run_id
        folder.write_state(mlflow_run_id=run_id)
    result = final_artifacts.result_of(folder, "finished", run_id, folder.read_history())
    final_artifacts.write_result(result, result_file)
    return result


def _show_plan(request: Request, splits: DataSplits, plan: RunPlan, display: Display) -> None:
    classes = preparation.num_classes(splits)
    labels = f"{classes} classes" if splits.train.labels is not None else "no labels"
    counts = ", ".join(map(str, plan.num_clusters))
    why = why_so_many(request.config.e_step.num_clusters, plan.num_images)
    display.say(
        f"data       {request.config.data.source}: {plan.num_images} images to train on, {plan.num_holdout}"
        f" held out, {labels}"
    )
    display.say(
        f"plan       {plan.epochs} epochs × {plan.steps_per_epoch} steps of {plan.global_batch} images; K ="
        f" {counts}{f' ({why})' if why else ''}"
    )
    for note in request.notes:
        display.say(f"note       {note}")


class _Run:
    """A run that has its folder, its images and its plan: begins, trains, and concludes however that ends."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        plan: RunPlan,
        splits: DataSplits,
        mirror: StorageMirror | NullMirror,
        display: Display,
        result_file: Path | None,
    ):
        self._folder, self._config, self._plan, self._splits = folder, config, plan, splits
        self._mirror, self._display, self._result_file = mirror, display, result_file
        self._classes = preparation.num_classes(splits)
        stored = folder.read_state()
        # scrubbed: an earlier version may have stored a secret
        self._command = redaction.scrubbed(stored.get("command", ""))
        self._state: EndState = "failed"  # until it is known better
        tags = {tracking.NOTE: self._note("running", {})}
        if origin := stored.get("forked_from"):
            tags["pcl_ray.forked_from"] = origin
        self._tracker = preparation.open_tracker(
            folder,
            config,
            splits.train.fingerprint,
            display.warn,
            preparation.TrackingDetails(tags=tags, plan=plan, classes=self._classes, hold_s=_START_S),
        )
        from pcl_ray.runs.gallery import Gallery

        self._gallery = Gallery(
            folder.path, lambda: splits.train, self._tracker, display.warn, hold_s=_START_S
        )
        self._router = EventRouter(self._tracker, display, folder, plan, self._gallery)

    def to_its_end(self) -> RunResult:
        """Trains the run, and gives back its result. Raises RunFailed or Stopped where it does not finish,
        after everything that is known is written.
        """
        with heard_as_before(), guardian.guarded(self._folder.name):
            self._begin()
            try:
                self._train()
            finally:
                result = self._conclude()
        return result

    def _begin(self) -> None:
        """Says that it trains now, in state.json and on the screen."""
        folder, display = self._folder, self._display
        display.say(f"run        {folder.name} in {folder.path}")
        if self._splits.summary is not None:
            with suppress(OSError):  # the report lacks it then
                summary.write(self._splits.summary, folder.path / DATA_FILE)
        job, history = current_job.current(), folder.read_history()
        folder.write_state(
            state="running",
            phase="starting",
            progress={"epoch": len(history), "epochs": self._plan.epochs},
            error=None,
            submission_id=job.id if job else None,
            waits_for="",
            machine=machine.identity(),
            **final_artifacts.report_entries(self._plan, self._splits.train.class_names, self._command),
        )
        if job is not None:
            display.say(f"job        {job.id}")
        # an epoch whose figures were lost with a killed driver; points that MLflow has are skipped
        self._log(history)

    def _train(self) -> None:
        """Trains to the end, or leaves in state.json why not."""
        folder = self._folder
        try:
            with stopped_by_signals(_resumed_by(folder), self._router.announce_stop, then_deaf=True):
                self._mirror.upload()
                self._display.begin(self._plan)
                _run_training(folder, self._config, self._plan, self._splits, self._handle)
            self._state = "finished"
        except Stopped:
            self._state = "stopped"
            raise
        except RunFailed as failure:
            folder.write_state(error=str(failure))
            self._download_checkpoint(hurried=True)
            message = f"{failure}\n{self._way_on()}"
            if failure.__cause__:
                message += f"\nAll that is known is in {final_artifacts.write_traceback(folder)}"
            raise RunFailed(message) from failure
        except Exception as error:
            folder.write_state(error=repr(error))
            final_artifacts.write_traceback(folder)
            raise

    def _handle(self, event: Event) -> None:
        self._mirror.check_held()
        self._router.handle(event)

    def _conclude(self) -> RunResult:
        """Tells everybody how the run ended, whoever waits for it first."""
        self._display.end()
        # A server that does not answer may hold what follows until we are killed.
        self._folder.write_state(state=self._state, phase="recording", mlflow_run_id=self._tracker.run_id)
        self._tracker.tag({tracking.PHASE_TAG: "recording"})
        # A second Ctrl-C, or one after the training: what waits is kept, nothing is waited for.
        with stopped_by_signals(_resumed_by(self._folder), then_deaf=True):
            try:
                result = self._leave_results()
            finally:
                self._finish_tracking()
                self._folder.write_state(phase="")
        return self._with_late_run_id(result)

    def _leave_results(self) -> RunResult:
        """The result for whoever waits for it, then pictures, report, model and the note in the dashboard."""
        folder, config, state, tracker = self._folder, self._config, self._state, self._tracker
        self._download_checkpoint(hurried=state != "finished")
        history = folder.read_history()
        result = final_artifacts.result_of(folder, state, tracker.run_id, history)
        final_artifacts.write_result(result, self._result_file)
        self._log(history)
        if state == "finished":
            self._display.say("recording  pictures, report and model")
        self._gallery.close(_DRAWING_S[state])
        final_artifacts.write_artifacts(folder, config, state, history, tracker, self._display.warn)
        tracker.tag({tracking.NOTE: self._note(state, result.metrics)})
        return result

    def _finish_tracking(self) -> None:
        with_model = self._state == "finished" and self._config.tracking.model
        self._display.waits_for(f"MLflow to take what is left{', the model above all' * with_model}")
        self._tracker.finish(self._state, _SENDING_MODEL_S if with_model else _SENDING_S)
        self._display.end()

    def _with_late_run_id(self, result: RunResult) -> RunResult:
        """The result with the number that MLflow gave the run, where it did so only at the end."""
        tracker = self._tracker
        if tracker.run_id == result.mlflow_run_id:
            return result
        self._folder.write_state(mlflow_run_id=tracker.run_id, link=tracker.link() or "")
        result = replace(result, mlflow_run_id=tracker.run_id)
        final_artifacts.write_result(result, self._result_file)
        return result

    def _log(self, history: Sequence[Mapping[str, Any]]) -> None:
        for entry in history:
            self._tracker.log(entry["metrics"], entry["step"])

    def _note(self, state: State, metrics: Mapping[str, float]) -> str:
        return final_artifacts.dashboard_note(
            self._folder.name, self._command, self._config, self._plan, self._classes, state, metrics
        )

    def _download_checkpoint(self, *, hurried: bool) -> None:
        self._mirror.download_checkpoint(self._config.train.keep_checkpoints, hurried=hurried)

    def _way_on(self) -> str:
        """Where the last good checkpoint is, and how to go on from it."""
        path, address = self._folder.newest_checkpoint(), self._mirror.checkpoints_address
        if path is not None:
            return f"The last good checkpoint is {path}; {_resumed_by(self._folder)}"
        if address is not None:
            return f"Checkpoints, where there are any, are in {address}; {_resumed_by(self._folder)}"
        return f"No checkpoint was written; the run's folder is {self._folder.path}"


def _resumed_by(folder: RunFolder) -> str:
    return f"go on with: pcl-ray train --resume {folder.name}"


def _run_training(
    folder: RunFolder, config: RunConfig, plan: RunPlan, splits: DataSplits, handle: Callable[[Event], None]
) -> None:
    """Trains in this process, or on Ray where the run has workers. `handle` gets all events, here."""
    first_look = plan.first_look and not folder.read_state().get("looked")
    task = TrainingTask(public_config(config), plan, str(folder.path), first_look=first_look)
    if config.resources.workers:
        from pcl_ray.on_ray import environment

        environment.set_defaults()
        from pcl_ray.on_ray.launch import train_on_ray

        train_on_ray(task, splits, handle)
    else:
        _train_in_this_process(task, splits, handle)


def _train_in_this_process(task: TrainingTask, splits: DataSplits, handle: Callable[[Event], None]) -> None:
    import torch

    from pcl_ray.training.local_e_step import LocalEStep
    from pcl_ray.training.loop import train

    config = task.config
    watch = SystemWatch(config.tracking.system_metrics_s if config.tracking.enabled else 0, handle)
    device = torch.device("cuda" if config.resources.gpus_per_worker else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.threads(task.plan.threads))
    try:
        train(
            task,
            splits,
            device=device,
            e_step=LocalEStep(config, splits),
            broadcast=lambda value: value,
            post=handle,
        )
    finally:
        watch.stop()
        torch.set_num_threads(threads)
