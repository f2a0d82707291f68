"""A worker's checkpoints: all workers go on from the same one; rank 0 writes them, and puts them into the
storage of the run where it has one.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray.checkpoints import epoch_files, remote, run_state
from pcl_ray.checkpoints.background import BackgroundWriter
from pcl_ray.checkpoints.run_state import DamagedCheckpoint, EpochPart, EStepState, RunState
from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.config import TrainConfig
from pcl_ray.config.figures import E_STEP_SECONDS, FEATURE_SECONDS
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import RunFailed
from pcl_ray.m_step import Learner
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import all_gather, any_worker, fill_buffers, flat_buffers, rank, world_size
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
        # one text for a name in all epochs: of a thousand each would hold its own
        self.metrics |= {sys.intern(name): value for name, value in (figures | sums).items()}


@dataclass
class Progress:
    """Where the run is, between two epochs or within one: what a checkpoint keeps beside the learner."""

    epoch: int  # the next to train, or that is trained
    clusters: ClusterSet | None
    history: list[EpochRecord]
    e_step: EStepState = EStepState()
    part: EpochPart | None = None
    rollbacks: int = 0

    @property
    def steps(self) -> int:
        """The steps of the epoch that are done; 0 between two epochs."""
        return self.part.steps if self.part is not None else 0


class CheckpointCadence:
    """When there is a checkpoint within an epoch, by steps and by rank 0's clock."""

    def __init__(self, settings: TrainConfig, device: torch.device):
        self._every_steps, self._every_minutes = (
            settings.checkpoint_every_steps,
            settings.checkpoint_every_minutes,
        )
        self._device = device
        self._steps, self._time = 0, time.monotonic()

    def restart(self, steps: int = 0) -> None:
        """There is a checkpoint now, after so many steps of the epoch that is trained next."""
        self._steps, self._time = steps, time.monotonic()

    def next_epoch(self) -> None:
        """An epoch ended without a checkpoint: steps are counted from its end."""
        self._steps = 0

    def is_due(self, steps: int) -> bool:
        """Whether there is to be one after so many steps of the epoch; all workers have to ask, at the same
        steps, and get the same answer.
        """
        every = self._every_steps
        if every is not None and steps // every > self._steps // every:
            return True
        if self._every_minutes is None:
            return False
        late = time.monotonic() - self._time > 60 * self._every_minutes
        return any_worker(late and rank() == 0, self._device)


class Broadcast(Protocol):
    """Gives every worker rank 0's value."""

    def __call__(self, value: Any, /) -> Any: ...


def restore(
    task: TrainingTask, learner: Learner, splits: DataSplits, broadcast: Broadcast, post: Post
) -> Progress:
    """The state of the newest checkpoint that is whole, or that of a fresh run. Rank 0 chooses it for all.

    Raises RunFailed on all workers where one of them cannot read it; that one also posts a warning.
    """
    # dropout and the like: another stream on each worker
    torch.manual_seed(task.config.seed + 7919 * (rank() + 1))
    run_storage = _storage_of(task)
    name, state, problem = None, None, ""
    if rank() == 0:
        try:
            name, state = _newest_whole(task, run_storage, post)
        except RunFailed as error:
            problem = str(error)
    name, problem = broadcast((name, problem))
    if problem:
        raise RunFailed(problem)
    if run_storage is not None:
        remote.remove_newer(task.checkpoints, name)
    if name is None:
        return Progress(0, None, [])
    try:
        state = state or _load(task, run_storage, name)
    except RunFailed as error:
        problem = str(error)
        if rank():
            post(Event("warning", text=problem))
    if any_worker(state is None, learner.device) or state is None:
        raise RunFailed(
            problem or f"another worker could not read the checkpoint {name}; its warning says why"
        )
    return _taken_over(state, task, learner, splits)


def _taken_over(state: RunState, task: TrainingTask, learner: Learner, splits: DataSplits) -> Progress:
    """Puts a state into the learner and the random generators of this worker; gives back the rest of it."""
    learner.load_state_dict(state.learner)
    if len(state.random_states) == world_size():
        _set_random_state(state.random_states[rank()], learner.device)
    if state.part is not None:
        _set_buffers(learner, state.part.buffers)
    if state.e_step.bank is not None:
        images = np.array_split(np.arange(len(splits.train)), world_size())[rank()]
        first = int(images[0]) if len(images) else 0
        rows = state.e_step.bank[torch.from_numpy(images)].to(learner.device)
        learner.bank = FeatureBank(first, rows, task.config.e_step.bank_momentum)
    history = [EpochRecord(**entry) for entry in state.history]
    e_step = replace(state.e_step, bank=None)
    return Progress(state.epoch, state.clusters, history, e_step, state.part, state.rollbacks)


def _storage_of(task: TrainingTask) -> Storage | None:
    uri = task.config.resources.storage
    return storage.of_run(uri, Path(task.run_dir).name) if uri else None


def _newest_whole(
    task: TrainingTask, run_storage: Storage | None, post: Post
) -> tuple[str | None, RunState | None]:
    """The newest checkpoint that is whole, by name and with its content: of the storage, else of the folder.
    None both where there is none at all.

    Damaged ones get another name in the folder, and are left in the storage, where the next of that name
    replaces them. Raises RunFailed where all are damaged, or one cannot be reached.
    """
    if run_storage is not None:
        names = remote.names(run_storage)
    else:
        names = [path.name for path in epoch_files.complete(task.checkpoints)]
    problem = ""
    for name in reversed(names):
        try:
            return name, _load(task, run_storage, name)
        except DamagedCheckpoint as error:
            problem = str(error)
            if run_storage is None:
                with suppress(OSError):
                    problem += f" and is called {epoch_files.set_aside(task.checkpoints / name).name} now"
            post(Event("warning", text=f"{problem}; going on from the one before"))
    if problem:
        raise RunFailed(f"no checkpoint of the run can be read: {problem}")
    return None, None


def _load(task: TrainingTask, run_storage: Storage | None, name: str) -> RunState:
    if run_storage is None:
        path = task.checkpoints / name
        if not path.exists():
            raise RunFailed(
                f"worker {rank()} does not see {path}: PCL_RAY_HOME must lie on storage that all nodes share,"
                " or resources.storage name one that all can reach (s3://bucket/path)"
            )
        return run_state.load(path)
    keep = task.config.train.keep_checkpoints
    path = remote.download(run_storage, name, task.checkpoints, keep)
    with suppress(DamagedCheckpoint):
        return run_state.load(path)
    path.unlink(missing_ok=True)  # perhaps it is only the copy here
    path = remote.download(run_storage, name, task.checkpoints, keep)
    try:
        return run_state.load(path)
    except DamagedCheckpoint as error:
        path.unlink(missing_ok=True)
        raise DamagedCheckpoint(f"{error}, there and in the storage {run_storage}") from error


def save(
    task: TrainingTask,
    learner: Learner,
    progress: Progress,
    broadcast: Broadcast,
    folder: Path,
    writer: BackgroundWriter | None = None,
) -> None:
    """Writes a checkpoint into `folder` on rank 0 and, where that is the run's own folder, puts it into the
    run's storage. All workers learn whether that worked: RunFailed on all of them if not.

    writer: it writes beside what follows, and `settle` has to be asked how that went before the next one.
    """
    states = list(all_gather(_random_state(learner.device)[None].to(learner.device)).cpu())
    problem = ""
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
            progress.part,
            progress.rollbacks,
        )
        if writer is not None:
            writer.start(partial(_write, task, run_state.copied(state), folder))
        else:
            try:
                _write(task, state, folder)
            except RunFailed as error:
                problem = str(error)
    if writer is None and (problem := broadcast(problem)):
        raise RunFailed(problem)


def settle(writer: BackgroundWriter, broadcast: Broadcast) -> None:
    """Waits for the write that is under way. All workers learn whether it worked: RunFailed on all if not."""
    if problem := broadcast(writer.wait()):
        raise RunFailed(problem)


def _write(task: TrainingTask, state: RunState, folder: Path) -> None:
    """Raises RunFailed."""
    settings, before = task.config.train, epoch_files.latest(folder)
    best = epoch_files.best_epochs(state.history, settings.keep_best)
    path = run_state.save(state, folder, settings.keep_checkpoints, best)
    run_storage = _storage_of(task) if folder == task.checkpoints else None
    if run_storage is not None:
        name_before = before.name if before else None
        remote.upload(run_storage, path, settings.keep_checkpoints, name_before, best)


def buffers_of_workers(learner: Learner) -> Tensor:
    """[W, n] on the CPU: the floating-point buffers (batch-norm statistics) of each worker, in rank order."""
    return all_gather(flat_buffers(learner.pair).to(learner.device)[None]).cpu()


def _set_buffers(learner: Learner, rows: Tensor) -> None:
    """Those of this worker out of [W, n]; their mean where there were more workers, or fewer."""
    own = rows[rank()] if len(rows) == world_size() else rows.mean(dim=0)
    fill_buffers(learner.pair, own)


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
