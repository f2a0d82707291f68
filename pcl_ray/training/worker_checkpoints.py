"""A worker's checkpoints: all workers go on from the same one; rank 0 writes them, and puts them into the
storage of the run where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray.checkpoints import epoch_files, remote, run_state
from pcl_ray.checkpoints.run_state import EStepState, RunState
from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.config.figures import E_STEP_SECONDS, FEATURE_SECONDS
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import RunFailed
from pcl_ray.m_step import Learner
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import all_gather, any_worker, rank, world_size
from pcl_ray.support import storage
from pcl_ray.support.storage import Storage
from pcl_ray.training.events import Event, Post
from pcl_ray.training.training_task import TrainingTask

# An epoch may wait for two E-steps: the first of a run has one before it and one after.
_SECONDS_THAT_ADD_UP = (E_STEP_SECONDS.name, FEATURE_SECONDS.name)


@dataclass
class EpochRecord:
    """The figures of one epoch, which arrive in several parts; an entry of a checkpoint's history."""

    epoch: int
    step: int = 0  # global step of the last batch
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, figures: dict[str, float]) -> None:
        """Takes over more figures; seconds of features and E-steps add up, others replace earlier ones."""
        sums = {
            name: self.metrics[name] + figures[name]
            for name in _SECONDS_THAT_ADD_UP
            if name in figures and name in self.metrics
        }
        self.metrics |= figures | sums


@dataclass
class Progress:
    """Where the run is between two epochs: exactly what a checkpoint keeps beside the learner."""

    epoch: int  # the next to train
    clusters: ClusterSet | None
    history: list[EpochRecord]
    e_step: EStepState = EStepState()


class Broadcast(Protocol):
    """Gives every worker rank 0's value."""

    def __call__(self, value: Any, /) -> Any: ...


def restore(
    task: TrainingTask, learner: Learner, splits: DataSplits, broadcast: Broadcast, post: Post
) -> Progress:
    """The newest checkpoint's state, or that of a fresh run. Rank 0 chooses the file for all.

    Raises RunFailed on all workers where one of them cannot read it; that one also posts a warning.
    """
    # dropout and the like: another stream on each worker
    torch.manual_seed(task.config.seed + 7919 * (rank() + 1))
    run_storage = _storage_of(task)
    name = _checkpoint_for_all(task, run_storage, broadcast)
    if run_storage is not None:
        remote.remove_newer(task.checkpoints, name)
    if name is None:
        return Progress(0, None, [])
    state, problem = None, ""
    try:
        state = _load(task, run_storage, name)
    except RunFailed as error:
        problem = str(error)
        if rank():
            post(Event("warning", text=problem))
    if any_worker(state is None, learner.device) or state is None:
        raise RunFailed(
            problem or f"another worker could not read the checkpoint {name}; its warning says why"
        )
    learner.load_state_dict(state.learner)
    if len(state.random_states) == world_size():
        _set_random_state(state.random_states[rank()], learner.device)
    if state.e_step.bank is not None:
        images = np.array_split(np.arange(len(splits.train)), world_size())[rank()]
        first = int(images[0]) if len(images) else 0
        rows = state.e_step.bank[torch.from_numpy(images)].to(learner.device)
        learner.bank = FeatureBank(first, rows, task.config.e_step.bank_momentum)
    history = [EpochRecord(**entry) for entry in state.history]
    return Progress(state.epoch, state.clusters, history, replace(state.e_step, bank=None))


def _storage_of(task: TrainingTask) -> Storage | None:
    uri = task.config.resources.storage
    return storage.of_run(uri, Path(task.run_dir).name) if uri else None


def _checkpoint_for_all(task: TrainingTask, run_storage: Storage | None, broadcast: Broadcast) -> str | None:
    """The checkpoint that all go on from: the newest in the storage, else in rank 0's folder."""
    name, problem = None, ""
    if rank() == 0:
        try:
            newest = epoch_files.latest(task.checkpoints)
            if run_storage is not None:
                name = remote.newest(run_storage)
            elif newest is not None:
                name = newest.name
        except RunFailed as error:
            problem = str(error)
    name, problem = broadcast((name, problem))
    if problem:
        raise RunFailed(problem)
    return name


def _load(task: TrainingTask, run_storage: Storage | None, name: str) -> RunState:
    if run_storage is None:
        path = task.checkpoints / name
        if not path.is_file():
            raise RunFailed(
                f"worker {rank()} does not see {path}: PCL_RAY_HOME must lie on storage that all nodes share,"
                " or resources.storage name one that all can reach (s3://bucket/path)"
            )
        return run_state.load(path)
    path = remote.download(run_storage, name, task.checkpoints, task.config.train.keep_checkpoints)
    try:
        return run_state.load(path)
    except RunFailed as error:
        raise RunFailed(f"{error}, there and in the storage {run_storage}") from error


def save(
    task: TrainingTask, learner: Learner, progress: Progress, broadcast: Broadcast, folder: Path
) -> None:
    """Writes a checkpoint into `folder` on rank 0 and, where that is the run's own folder, puts it into the
    run's storage. All workers learn whether that worked: RunFailed on all of them if not.
    """
    states = list(all_gather(_random_state(learner.device)[None].to(learner.device)).cpu())
    problem = None
    bank = _whole_bank(learner)
    if rank() == 0:
        state = RunState(
            progress.epoch,
            learner.state_dict(),
            progress.clusters,
            states,
            [vars(record) for record in progress.history],
            task.config.encoder,
            task.config.data.channels,
            replace(progress.e_step, bank=bank),
        )
        keep, before = task.config.train.keep_checkpoints, epoch_files.latest(folder)
        try:
            path = run_state.save(state, folder, keep)
            run_storage = _storage_of(task) if folder == task.checkpoints else None
            if run_storage is not None:
                remote.upload(run_storage, path, keep, before.name if before else None)
        except RunFailed as error:
            problem = str(error)
    if problem := broadcast(problem):
        raise RunFailed(problem)


def _whole_bank(learner: Learner) -> Tensor | None:
    """[N, C] on the CPU, from all workers' parts, which follow each other in rank order."""
    if learner.bank is None:
        return None
    group = TorchGroup(device=learner.device) if world_size() > 1 else Group()
    return group.gather(learner.bank.rows).cpu()


def _random_state(device: torch.device) -> Tensor:
    """Torch's generators of this process as bytes: the CPU's, followed by the device's where it is a GPU."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
