"""What any run, trial or sweep needs before it trains: the process's state, images, plan, its MLflow run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.config import RunConfig, public_config
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits, in_memory
from pcl_ray.data.inspection import summary as summaries
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.on_ray import current_job
from pcl_ray.on_ray.starting import warm_start
from pcl_ray.plan import RunPlan
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import RunFolder, StateEntries
from pcl_ray.runs.storage_mirror import NullMirror, StorageMirror
from pcl_ray.support import machine, provenance
from pcl_ray.support.paths import CHECKED_IMAGES, check_writable, home, path_text
from pcl_ray.support.text import count


def prepare_process() -> None:
    """Sets what has to be set before torch is loaded. Raises ConfigError where nothing can be written."""
    machine.let_idle_threads_sleep()
    current_job.hide_gpus()
    check_writable()


def prepare_evaluation() -> None:
    """The same for a process that uses an encoder and trains none.

    Ray lets the driver of a job see every GPU, unless it was submitted with --entrypoint-num-gpus: then those
    that are not its own are hidden.
    """
    machine.let_idle_threads_sleep()
    if current_job.current() is not None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    check_writable()


def load_data(config: RunConfig, display: Display) -> tuple[DataSplits, RunPlan]:
    """The images, decoded into memory where the plan says so, and the plan. Raises DataError. Meanwhile the
    process loads from which the run's others will be forked.
    """
    with warm_start.ahead(config.resources):
        return _load_data(config, display)


def _load_data(config: RunConfig, display: Display) -> tuple[DataSplits, RunPlan]:
    show_shards = display.counting("shards     read:")
    try:
        splits = datasets.load(
            config.data,
            cache_dir=home() / CHECKED_IMAGES,
            progress=display.counting("pictures   looked at:"),
            shards=show_shards,
        )
    except OSError as error:  # a folder that may be listed but not read, a disk that fails
        file = error.filename or config.data.path
        raise DataError(f"{path_text(file or '')} cannot be read: {error.strerror or error}") from error
    if splits.bad:
        lines = "\n".join(f"  {entry.file}: {entry.reason}" for entry in splits.bad)
        are = "is" if len(splits.bad) == 1 else "are"
        display.warn(f"{count(len(splits.bad), 'image')} cannot be read and {are} left out:\n{lines}")
    if splits.summary is not None:
        for line in summaries.lines(splits.summary):
            display.say(f"pictures   {line}")
    for note in (*splits.notes, *(summaries.cautions(splits.summary) if splits.summary else ())):
        display.say(f"note       {note}")
    plan = plans.make(config, len(splits.train), splits.num_holdout)
    if splits.summary is not None and (why := summaries.too_few_different(splits.summary, plan.num_clusters)):
        raise DataError(why)
    if not plan.in_memory and not config.resources.workers:
        datasets.fetch(splits, show_shards)
    if plan.in_memory and config.data.source in plans.FILE_SOURCES:
        splits = in_memory(splits, plan.memory_side, display.counting("pictures   decoded:"), home())
    return splits, plan


def image_entries(splits: DataSplits) -> StateEntries:
    """What state.json keeps of a run's images, by which they are known again."""
    return {"fingerprint": splits.train.fingerprint, "content": splits.content}


def check_same_images(whose: str, state: Mapping[str, Any], splits: DataSplits) -> None:
    """Raises DataError where a run or sweep (`whose`) began with other images."""
    kind = whose.partition(" ")[0]
    fingerprint, content = state.get("fingerprint"), state.get("content")
    if fingerprint and fingerprint != splits.train.fingerprint:
        raise DataError(
            f"the images of {whose} have changed since it began (others, or in another order); start a new"
            f" {kind}"
        )
    if content and splits.content and content != splits.content:
        raise DataError(
            f"the images of {whose} have changed since it began: files of the same names have other content;"
            f" put those back that were there, or start a new {kind}"
        )


def begin_with_weights(
    folder: RunFolder,
    config: RunConfig,
    say: Callable[[str], None],
    mirror: StorageMirror | NullMirror | None = None,
) -> None:
    """Writes the checkpoint with the weights of `encoder.init_from`, and puts it where workers look for it.
    Does nothing where none are wanted, or the run has a checkpoint. Raises DataError or RunFailed.
    """
    if config.encoder.init_from is None or folder.newest_checkpoint() is not None:
        return
    from pcl_ray.model import weights  # torch

    try:
        path, note = weights.initial_checkpoint(config, folder.checkpoints)
        if mirror is not None:
            mirror.upload_first_checkpoint(path)
    except (DataError, RunFailed) as failure:
        folder.write_state(state="failed", error=str(failure))
        raise
    folder.write_state(weights=note)
    say(f"weights    {note}")


def num_classes(splits: DataSplits) -> int:
    """The number of classes of the training images; 0 where they have no labels."""
    return len(splits.train.class_names) if splits.train.labels is not None else 0


@dataclass(frozen=True)
class TrackingDetails:
    """What MLflow gets of a run beside its configuration."""

    title: str | None = None  # the name shown there; None: the folder's
    tags: Mapping[str, str] = field(default_factory=dict)
    plan: RunPlan | None = None  # of a run that is about to train
    classes: int = 0  # of its images; 0: no labels
    sweep: tracking.Sweep | None = None  # what the saved view of a sweep is made from
    excluded_knobs: Iterable[str] = ()  # not recorded as parameters
    always_charted: Iterable[str] = ()  # figures that are charted in any case
    hold_s: float = 0.0  # MLflow is left alone for so long, or until the tracker's `release`


def open_tracker(
    folder: RunFolder,
    config: RunConfig,
    fingerprint: str,
    warn: Callable[[str], None],
    details: TrackingDetails | None = None,
) -> tracking.MlflowRun | tracking.NullRun:
    """The MLflow run of this folder, a new one or the one that its state.json names. fingerprint: of its
    images. warn: gets one sentence when something is wrong with the server, from another thread.
    """
    details = details or TrackingDetails()
    public = public_config(config)  # without the password that a URI may hold
    excluded = set(details.excluded_knobs)
    params = {name: value for name, value in public.flatten().items() if name not in excluded}
    dataset = None
    if details.plan is not None:
        params |= _plan_params(details.plan)
        dataset = _dataset(config, fingerprint, details.plan, details.classes)
    own_tags = {"pcl_ray.run_dir": str(folder.path), "data.fingerprint": fingerprint}
    description = tracking.RunDescription(
        name=folder.name,
        params=params,
        tags=provenance.run_tags() | current_job.tags() | own_tags | dict(details.tags),
        config_yaml=public.to_yaml(),
        run_id=folder.read_state().get("mlflow_run_id"),
        title=details.title,
        dataset=dataset,
        clusterings=_clusterings(config, details.plan, folder),
        sweep=details.sweep,
    )
    return tracking.open_run(
        config.tracking,
        description,
        home=home(),
        run_dir=folder.path,
        always_charted=details.always_charted,
        hold_s=details.hold_s,
        warn=warn,
    )


def _clusterings(config: RunConfig, plan: RunPlan | None, folder: RunFolder) -> int:
    """How many clusterings the run has."""
    configured = config.e_step.num_clusters
    if plan is not None:
        return len(plan.num_clusters)
    # of a run that has ended already, the folder knows what auto chose
    return len(folder.read_state().get("num_clusters", ()) if configured == "auto" else configured)


def _plan_params(plan: RunPlan) -> dict[str, Any]:
    """Numbers that follow from knobs and data, for the axes of charts: K as counts, N, steps."""
    return {
        "plan.num_images": plan.num_images,
        "plan.steps": plan.total_steps,
        "plan.num_clusters_total": sum(plan.num_clusters),
        **{f"plan.num_clusters_{m}": count for m, count in enumerate(plan.num_clusters)},
    }


def _dataset(config: RunConfig, fingerprint: str, plan: RunPlan, classes: int) -> tracking.DataSet:
    source, path = config.data.source, config.data.list or config.data.path or ""
    name = source
    if source in (*plans.FILE_SOURCES, "arrays"):
        name = Path(path.partition("?")[0]).name or source
    return tracking.DataSet(
        path_text(name), fingerprint, path_text(path or source), plan.num_images, plan.num_holdout, classes
    )
