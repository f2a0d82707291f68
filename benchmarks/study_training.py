"""One run of the study without Ray: a warm-up that all arms of a seed share, and an arm that goes on from it.

    warm-up (InfoNCE) ─ checkpoint ─┬─ infonce: InfoNCE to the end
                                    ├─ pcl: E-steps, ProtoNCE
                                    ├─ pcl_shuffled: the same, but each image gets another image's clusters
                                    └─ infonce_longer: as many epochs more as PCL took longer

The loop is the product's own (`training.loop`). Interrupted, a run goes on from its last checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_runs import ListedRun
from study_settings import ARMS, Knobs, Run, base_knobs
from torch import Tensor

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import E_STEP_SECONDS, M_STEP_SECONDS
from pcl_ray.data.datasets import DataSplits
from pcl_ray.features import FeatureShard
from pcl_ray.plan import RunPlan
from pcl_ray.support import files
from pcl_ray.training.e_step_schedule import EStep, PendingEStep
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.events import Event
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import epochs
from pcl_ray.training.training_task import TrainingTask


@dataclass(frozen=True)
class Trained:
    """A run that has finished training."""

    checkpoint: Path
    config: RunConfig
    plan: RunPlan
    # of training alone, without evaluation: of the CPU, on a GPU of the clock
    seconds: float
    warm_up_seconds: float
    further_epochs: int = 0


class Paused(Exception):
    """Time is up; what is done is on disk."""


def trained(
    run: Run,
    splits: DataSplits,
    data_path: str,
    folder: Path,
    *,
    pause: Callable[[], bool] = lambda: False,
    seconds_of: Callable[[str], tuple[float, float]] | None = None,
) -> Trained:
    """Trains a run, or what is left of it. folder: where its checkpoints lie, and warm-ups for all runs.

    pause: asked after each epoch. seconds_of: training seconds and epochs after the warm-up of another arm of
    the same data set and seed, which `Arm.longer` needs. Raises Paused.
    """
    arm, device = ARMS[run.arm], torch.device(run.device)
    base = config_of(run, data_path, len(splits.train), splits.num_holdout)
    warm_up_seconds = _warm_up(run, splits, data_path, folder, pause)
    further = 0
    config = base
    if arm.longer:
        assert seconds_of is not None
        further = further_epochs(seconds_of("infonce"), seconds_of("pcl"))
        total = base.train.epochs + further
        config = configs.with_overrides(base, {"train.epochs": total, "e_step.warmup_epochs": total})
    plan = plans.make(config, len(splits.train), splits.num_holdout)
    run_dir = run_folder(run, folder)
    seconds = trained_part(
        TrainingTask(config, plan, str(run_dir)),
        splits,
        device,
        e_step_of(run, config, splits),
        plan.epochs,
        pause,
        begin=epoch_files.latest(epoch_files.folder_of(folder / "warm_ups" / run.warm_up)),
    )
    checkpoint = epoch_files.latest(epoch_files.folder_of(run_dir))
    assert checkpoint is not None
    return Trained(checkpoint, config, plan, seconds, warm_up_seconds, further)


def further_epochs(shorter: tuple[float, float], longer: tuple[float, float]) -> int:
    """Whole epochs of the shorter that fill the time that the longer takes more, rounded up in its favour.

    Both: seconds, and epochs that took them.
    """
    an_epoch = shorter[0] / shorter[1]
    return max(math.ceil((longer[0] - shorter[0]) / an_epoch - 1e-9), 1)


def _warm_up(run: Run, splits: DataSplits, data_path: str, folder: Path, pause: Callable[[], bool]) -> float:
    """Trains the shared warm-up where that is not done yet; gives back its seconds. Raises Paused."""
    run_dir = folder / "warm_ups" / run.warm_up
    owner = replace(run, arm="reference" if ARMS[run.arm].reference else "pcl")
    config = config_of(owner, data_path, len(splits.train), splits.num_holdout)
    epochs_of_it = config.e_step.warmup_epochs
    config = configs.with_overrides(config, {"e_step.warmup_epochs": config.train.epochs})
    plan = plans.make(config, len(splits.train), splits.num_holdout)
    run_dir.mkdir(parents=True, exist_ok=True)
    with files.file_lock(run_dir / "lock", timeout_s=files.WAIT_FOREVER):
        return trained_part(
            TrainingTask(config, plan, str(run_dir)),
            splits,
            torch.device(run.device),
            LocalEStep(config, splits),
            epochs_of_it,
            pause,
        )


def config_of(run: Run, data_path: str, num_images: int, num_holdout: int) -> RunConfig:
    """The configuration of a run, but for the further epochs of `Arm.longer`."""
    arm = ARMS[run.arm]
    knobs: Knobs = base_knobs(run) | arm.knobs | machinery()
    knobs |= {"data.path": data_path, "seed": run.seed}
    config = configs.with_overrides(RunConfig(), knobs)
    if not arm.clusters:
        return configs.with_overrides(config, {"e_step.warmup_epochs": config.train.epochs})
    if arm.one_clustering:
        counts = sorted(plans.make(config, num_images, num_holdout).num_clusters)
        return configs.with_overrides(config, {"e_step.num_clusters": [counts[len(counts) // 2]]})
    return config


def machinery() -> Knobs:
    """Where and how runs of the study are computed: in this process, by one thread, recorded nowhere."""
    return {
        "resources.workers": 0,
        "e_step.threads": 1,
        "e_step.backend": "auto" if importlib.util.find_spec("faiss") else "torch",
        "tracking.enabled": False,
        "evaluation.every_epochs": 0,
        "evaluation.reference_lines": False,
        "evaluation.final": [],
        "train.keep_checkpoints": 1,
    }


def trained_part(
    task: TrainingTask,
    splits: DataSplits,
    device: torch.device,
    e_step: EStep,
    until: int,
    pause: Callable[[], bool],
    begin: Path | None = None,
) -> float:
    """Trains to the epoch `until`; gives back the seconds that it took over all attempts. Raises Paused.

    begin: the checkpoint that a run without one of its own begins with.
    """
    run_dir = Path(task.run_dir)
    record = run_dir / "seconds.json"
    done, seconds = _record_of(record)
    newest = epoch_files.latest(task.checkpoints)
    if newest is None or (begin != newest and epoch_files.epochs_done(newest) != done):
        # nothing yet, or killed between a checkpoint and the record of its time: from the start
        shutil.rmtree(task.checkpoints, ignore_errors=True)
        task.checkpoints.mkdir(parents=True)
        done, seconds = 0, 0.0
        if begin is not None:
            run_state.take_over(begin, task.checkpoints)
            done = epoch_files.epochs_done(begin)
    if done >= until:
        return seconds
    clock = TrainingClock(device, task.plan.epochs)
    arguments: dict[str, Any] = {"device": device, "e_step": e_step, "broadcast": lambda value: value}
    clock.start()
    for done in epochs(task, splits, post=clock.see, **arguments):
        seconds += clock.seconds(done)
        files.write_text(record, json.dumps({"epochs": done, "seconds": seconds}))
        if done >= until:
            break
        if pause():
            raise Paused
        clock.start()
    return seconds


class TrainingClock:
    """Seconds of training: of this process's CPU; on a GPU of the clock, after what was asked of it is done.

    What comes after the last epoch, the final clustering and the evaluation, is no training.
    """

    def __init__(self, device: torch.device, epochs: int):
        self._device, self._epochs = device, epochs
        self._begin = self._end = 0.0

    def start(self) -> None:
        self._begin = self._now()

    def see(self, event: Event) -> None:
        """Takes the loop's events."""
        if event.kind == "phase" and event.epoch == self._epochs and event.text == "features":
            self._end = self._now()

    def seconds(self, done: int) -> float:
        """Since the start, where so many epochs are done."""
        return (self._end if done == self._epochs else self._now()) - self._begin

    def _now(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _record_of(path: Path) -> tuple[int, float]:
    """Epochs done and seconds, 0 where there is no record."""
    if not path.is_file():
        return 0, 0.0
    content = json.loads(path.read_text())
    return content["epochs"], content["seconds"]


# --- E-steps whose clusters are changed


def e_step_of(run: Run, config: RunConfig, splits: DataSplits) -> EStep:
    """The E-step of a run's arm."""
    inner = LocalEStep(config, splits)
    match ARMS[run.arm].change:
        case "shuffled":
            order = np.random.default_rng([run.seed, 20211018]).permutation(len(splits.train))
            return ChangedEStep(inner, Shuffle(torch.from_numpy(order)))
        case "constant":
            return ChangedEStep(inner, ConstantConcentration(config.loss.temperature))
        case _:
            return inner


@dataclass(frozen=True, eq=False)
class Shuffle:
    """Gives image i the clusters of image order[i]: the same prototypes, concentrations and cluster sizes,
    and the same pairs of a coarse and a fine cluster, for other images. The order is that of all epochs.
    """

    order: Tensor  # [N] int64, a permutation

    def apply(self, clustering: Clustering) -> Clustering:
        return replace(clustering, assignments=clustering.assignments[self.order])

    def undo(self, clustering: Clustering) -> Clustering:
        assignments = torch.empty_like(clustering.assignments)
        assignments[self.order] = clustering.assignments
        return replace(clustering, assignments=assignments)


@dataclass(frozen=True)
class ConstantConcentration:
    """The same φ for all prototypes: the mean that they are scaled to anyhow."""

    temperature: float

    def apply(self, clustering: Clustering) -> Clustering:
        concentration = torch.full_like(clustering.concentration, self.temperature)
        return replace(clustering, concentration=concentration)

    def undo(self, clustering: Clustering) -> Clustering:
        return clustering


class ChangedEStep:
    """An E-step whose clusters are changed before anything is trained with them. It goes on itself, with a
    warm start or whatever needs the last clusters, from those that it made.
    """

    def __init__(self, inner: EStep, change: Shuffle | ConstantConcentration):
        self._inner, self._change = inner, change

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> PendingEStep:
        own = None if previous is None else _each(previous, self._change.undo)
        return _Changed(self._inner.begin(key, request, shards, own), self._change)


@dataclass(frozen=True)
class _Changed:
    pending: PendingEStep
    change: Shuffle | ConstantConcentration

    def ready(self) -> bool:
        return self.pending.ready()

    def wait(self) -> Any:
        answer = self.pending.wait()
        if answer.clusters is None:
            return answer
        return replace(answer, clusters=_each(answer.clusters, self.change.apply))


def _each(clusters: ClusterSet, change: Callable[[Clustering], Clustering]) -> ClusterSet:
    return ClusterSet(clusters.epoch, tuple(change(clustering) for clustering in clusters.clusterings))


# --- what a line of the results says of a run


def described(result: Trained, warmup_epochs: int) -> dict[str, Any]:
    """Lengths, counts, seconds and the last epoch's losses of a trained run. Seconds of the steps are those
    after the warm-up.
    """
    history = run_state.load(result.checkpoint).history
    last = history[-1]["metrics"]

    def total(figure: str) -> float:
        return round(sum(entry["metrics"].get(figure, 0.0) for entry in history[warmup_epochs:]), 2)

    return {
        "epochs": result.plan.epochs,
        "warmup_epochs": warmup_epochs,
        "further_epochs": result.further_epochs,
        "num_clusters": list(result.plan.num_clusters) if result.plan.e_step_epochs else [],
        "seconds": round(result.seconds, 2),
        "warm_up_seconds": round(result.warm_up_seconds, 2),
        "e_step_seconds": total(E_STEP_SECONDS.name),
        "m_step_seconds": total(M_STEP_SECONDS.name),
        "training": {name: value for name, value in last.items() if name.startswith(("train/", "cluster/"))},
    }


def run_folder(run: ListedRun, folder: Path) -> Path:
    """Where the checkpoints of a run lie while it is trained."""
    return folder / "runs" / f"{run.name}.{run.digest}"


def tidy(run_dir: Path) -> None:
    """Removes the checkpoints of a run that is done. Its warm-up stays, for the other arms."""
    shutil.rmtree(run_dir, ignore_errors=True)
