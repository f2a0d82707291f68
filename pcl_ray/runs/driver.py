"""The driver of one run: checks the request, holds the run's folder, trains, and follows what happens.

request → data → folder (new or resumed) → training (in this process, or on Ray) ─ events → display, MLflow
                                                                                  → state.json → RunResult
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.on_ray import current_job
from pcl_ray.plan import RunPlan
from pcl_ray.runs import final_artifacts, request, run_result, storage_mirror
from pcl_ray.runs.console import Display
from pcl_ray.runs.event_router import EventRouter
from pcl_ray.runs.folder import RunFolder, State
from pcl_ray.runs.gallery import Gallery
from pcl_ray.runs.request import Request
from pcl_ray.runs.run_result import RunResult
from pcl_ray.runs.signals import Stopped as Stopped
from pcl_ray.runs.signals import stopped_by_signals
from pcl_ray.runs.storage_mirror import Keeper
from pcl_ray.support import machine, redaction
from pcl_ray.support.paths import check_writable, home
from pcl_ray.training.events import Event
from pcl_ray.training.system_metrics import SystemWatch

# How long the end of a run may wait for what is drawn and sent; one that is told to stop may be killed half a
# minute later.
_PICTURES_S, _MODEL_S, _HURRY_S, _STOPPED_S = 180.0, 180.0, 30.0, 2.0


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a fork begins with."""

    checkpoint: Path
    run: str
    fingerprint: str | None  # of that run's images

    @property
    def text(self) -> str:
        return f"{self.run}@{epoch_files.epochs_done(self.checkpoint)}"


def start(
    asked: Request,
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

    command: what was typed, for the record. origin: where it begins, instead of with random weights.
    result_file: gets the RunResult as JSON however the run ends, once it has started.
    """
    display = display or Display()
    before_anything()
    if name:
        RunFolder.check_free(name)  # before a million images are looked at
        storage_mirror.check_free(asked.config, name)
    splits, plan = load(asked.config, display)
    if origin and origin.fingerprint not in (None, splits.train.fingerprint):
        raise DataError(f"the images are not those of run {origin.run!r}; a fork goes on with the same ones")
    _say(asked, splits, plan, display)
    with (
        RunFolder.create(
            name or RunFolder.free_name(stem, datetime.now().strftime("%m%d-%H%M%S")), asked.config
        ) as folder,
        Keeper(folder, asked.config.resources.storage, display.warn, new=True) as keeper,
    ):
        folder.write_state(fingerprint=splits.train.fingerprint, began_at=time.time(), command=command)
        if origin:
            _begin_with(origin, folder, keeper, display)
        return _run(folder, asked.config, plan, splits, display, result_file, keeper)


def _begin_with(origin: Origin, folder: RunFolder, keeper: Keeper, display: Display) -> None:
    from pcl_ray.checkpoints import run_state  # torch: after the checks

    taken = run_state.take_over(origin.checkpoint, folder.checkpoints)
    folder.write_state(forked_from=origin.text)
    try:
        keeper.put_first(taken)
    except RunFailed as failure:
        folder.write_state(state="failed", error=str(failure))
        raise
    display.say(f"fork       {origin.text}")


def resume(
    name: str, overrides: list[str], *, display: Display | None = None, result_file: Path | None = None
) -> RunResult:
    """Goes on with a run from its last checkpoint; of a finished one it gives back the result. Raises as
    `start` does.
    """
    display = display or Display()
    before_anything()
    storage_mirror.fetch(name, overrides)
    with (
        RunFolder.open(name) as folder,
        Keeper.resuming(folder, request.changed(folder.read_config(), overrides), display.warn) as keeper,
    ):
        config = request.changed(folder.read_config(), overrides)
        newest = folder.newest_checkpoint()
        done = epoch_files.epochs_done(newest) if newest else 0
        state = folder.read_state()
        if state.get("state") == "finished" and done >= config.train.epochs:
            display.say(f"run {name} has finished all its {done} epochs: nothing left to do")
            run_id = state.get("mlflow_run_id")
            if (folder.path / tracking.PENDING_FILE).exists():  # what MLflow did not take at the time
                tracker = run_result.open_tracker(folder, config, state.get("fingerprint", ""), display.warn)
                tracker.finish("finished", _MODEL_S)
                run_id = tracker.run_id
                folder.write_state(mlflow_run_id=run_id)
            result = run_result.result(folder, "finished", run_id, folder.read_history())
            result.write(result_file)
            return result
        if secret := tracking.stored_secret(config):
            display.warn(secret)
        asked = request.check_config(config, stored=True)
        splits, plan = load(config, display)
        known = state.get("fingerprint")
        if known and known != splits.train.fingerprint:
            raise DataError(
                f"the images of run {name!r} have changed since it began (others, or in another order); start"
                " a new run"
            )
        folder.write_config(config)
        _say(asked, splits, plan, display)
        return _run(folder, config, plan, splits, display, result_file, keeper)


def before_anything() -> None:
    """Of a run or a sweep. Raises ConfigError where nothing can be written."""
    # Idle OpenMP threads that spin instead of sleeping slow small work down a hundredfold where others want
    # the cores. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    current_job.without_gpus()
    check_writable()


def load(config: RunConfig, display: Display) -> tuple[DataSplits, RunPlan]:
    """The images, in memory where they are to be, and the plan. Raises DataError."""

    def progress(done: int, total: int) -> None:
        display.say(f"checking images: {done} of {total}")

    try:
        splits = datasets.load(config.data, cache_dir=home() / "checked_images", progress=progress)
    except OSError as error:  # a folder that may be listed but not read, a disk that fails
        raise DataError(
            f"{error.filename or config.data.path} cannot be read: {error.strerror or error}"
        ) from error
    if splits.bad:
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in splits.bad)
        display.warn(f"{len(splits.bad)} images cannot be read and are left out:\n{listed}")
    plan = plans.make(config, len(splits.train), splits.num_holdout)
    if plan.in_memory and config.data.source in plans.FILE_SOURCES:
        from pcl_ray.data.memory import in_memory

        splits = in_memory(
            splits, plan.memory_side, lambda done, total: display.say(f"decoding images: {done} of {total}")
        )
    return splits, plan


def _say(asked: Request, splits: DataSplits, plan: RunPlan, display: Display) -> None:
    classes = (
        f", {len(splits.train.class_names)} classes" if splits.train.labels is not None else ", no labels"
    )
    display.say(
        f"data       {asked.config.data.source}: {plan.num_images} images to train on, {plan.num_holdout}"
        f" held out{classes}"
    )
    display.say(
        f"plan       {plan.epochs} epochs × {plan.steps_per_epoch} steps of {plan.global_batch} images; K ="
        f" {', '.join(map(str, plan.num_clusters))}"
    )
    for note in asked.notes:
        display.say(f"note       {note}")


def _run(
    folder: RunFolder,
    config: RunConfig,
    plan: RunPlan,
    splits: DataSplits,
    display: Display,
    result_file: Path | None,
    keeper: Keeper,
) -> RunResult:
    stored, names = folder.read_state(), splits.train.class_names
    classes = len(names) if splits.train.labels is not None else 0
    command = redaction.scrubbed(stored.get("command", ""))  # that of an earlier version may hold one
    forked = {"pcl_ray.forked_from": stored["forked_from"]} if stored.get("forked_from") else {}
    told = forked | {
        tracking.NOTE: final_artifacts.note(folder.name, command, config, plan, classes, "running", {})
    }
    tracker = run_result.open_tracker(
        folder,
        config,
        splits.train.fingerprint,
        display.warn,
        tags=told,
        known=run_result.DataSummary(plan, classes),
    )
    display.say(f"run        {folder.name} in {folder.path}")
    job = current_job.current()
    here = {"submission_id": job.id if job else None, "waits_for": "", "machine": machine.identity()}
    folder.write_state(state="running", error=None, **here, **final_artifacts.facts(plan, names, command))
    if job is not None:
        display.say(f"job        {job.id}")
    # an epoch whose figures were lost with a killed driver; known points are skipped
    for entry in folder.read_history():
        tracker.log(entry["metrics"], entry["step"])
    gallery = Gallery(folder.path, lambda: splits.train, tracker, display.warn)
    follow = EventRouter(tracker, display, folder, plan, gallery)
    state: State = "failed"
    try:
        with stopped_by_signals(folder.name, told=follow.stopped):
            keeper.send()
            display.begin(plan)
            _train(folder, config, plan, splits, keeper.watched(follow.handle))
        state = "finished"
    except Stopped:
        state = "stopped"
        raise
    except RunFailed as failure:
        folder.write_state(error=str(failure))
        keeper.bring(config, hurried=True)
        details = (
            f"\nAll that is known is in {run_result.write_traceback(folder)}" if failure.__cause__ else ""
        )
        raise RunFailed(f"{failure}\n{_what_is_kept(folder, keeper)}{details}") from failure
    except Exception as error:
        folder.write_state(error=repr(error))
        run_result.write_traceback(folder)
        raise
    finally:
        display.end()
        # What others wait for first: a server that does not answer may hold `finish` until we are killed.
        folder.write_state(state=state, mlflow_run_id=tracker.run_id)
        # a second Ctrl-C, or one after the training: what waits is kept, nothing is waited for
        with stopped_by_signals(folder.name):
            try:
                keeper.bring(config, hurried=state != "finished")
                history = folder.read_history()
                result = run_result.result(folder, state, tracker.run_id, history)
                result.write(result_file)
                for entry in history:
                    tracker.log(entry["metrics"], entry["step"])
                if state == "finished":
                    display.say("recording  pictures, report and model")
                gallery.close({"finished": _PICTURES_S, "failed": _HURRY_S}.get(state, _STOPPED_S))
                final_artifacts.leave(folder, config, state, history, tracker, display.warn)
                tracker.tag(
                    {
                        tracking.NOTE: final_artifacts.note(
                            folder.name, command, config, plan, classes, state, result.metrics
                        )
                    }
                )
            finally:
                tracker.finish(state, _MODEL_S if state == "finished" and config.tracking.model else _HURRY_S)
        if tracker.run_id != result.mlflow_run_id:
            folder.write_state(mlflow_run_id=tracker.run_id, link=tracker.link() or "")
            result = replace(result, mlflow_run_id=tracker.run_id)
            result.write(result_file)
    return result


def _train(
    folder: RunFolder, config: RunConfig, plan: RunPlan, splits: DataSplits, handle: Callable[[Event], None]
) -> None:
    from pcl_ray.training.local_e_step import LocalEStep  # torch takes seconds to import: after the checks
    from pcl_ray.training.loop import train
    from pcl_ray.training.training_task import TrainingTask

    first_look = plan.first_look and not folder.read_state().get("looked")
    task = TrainingTask(tracking.public_config(config), plan, str(folder.path), first_look=first_look)
    if config.resources.workers:
        from pcl_ray.on_ray import environment

        environment.set_defaults()
        from pcl_ray.on_ray.launch import train_on_ray

        train_on_ray(task, splits, handle)
        return
    import torch

    watch = SystemWatch(config.tracking.system_metrics_s if config.tracking.enabled else 0, handle)
    device, threads = (
        torch.device("cuda" if config.resources.gpus_per_worker else "cpu"),
        torch.get_num_threads(),
    )
    torch.set_num_threads(min(threads, plan.threads))
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


def _what_is_kept(folder: RunFolder, keeper: Keeper) -> str:
    path = folder.newest_checkpoint()
    if path is None and keeper.where:
        return (
            f"Checkpoints, where there are any, are in {keeper.where}; go on with: pcl-ray train --resume"
            f" {folder.name}"
        )
    if path is None:
        return f"No checkpoint was written; the run's folder is {folder.path}"
    return f"The last good checkpoint is {path}; go on with: pcl-ray train --resume {folder.name}"
