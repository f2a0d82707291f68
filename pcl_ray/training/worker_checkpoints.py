"""A worker's checkpoints: all go on from the same one, rank 0 writes them, and puts them into the storage of
the run where it has one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray.checkpoints import remote, run_state, storage
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.checkpoints.storage import Storage
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import RunFailed
from pcl_ray.m_step import Learner
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import all_gather, any_worker, rank, world_size
from pcl_ray.training.e_step_schedule import Progress
from pcl_ray.training.events import Event, Post
from pcl_ray.training.training_task import Job


class Share(Protocol):
    """Gives every worker rank 0's value."""

    def __call__(self, value: Any, /) -> Any: ...


def restore(job: Job, learner: Learner, splits: DataSplits, share: Share, post: Post) -> Progress:
    """The newest checkpoint's state, or that of a fresh run. Rank 0 chooses the file for all."""
    # dropout and the like: another stream on each worker
    torch.manual_seed(job.config.seed + 7919 * (rank() + 1))
    place = _place(job)
    name = _chosen(job, place, share)
    if place is not None:
        remote.forget_newer(job.checkpoints, name)
    if name is None:
        return Progress(0, None, [])
    state, problem = None, ""
    try:
        state = _loaded(job, place, name)
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
        mine = np.array_split(np.arange(len(splits.train)), world_size())[rank()]
        rows = state.e_step.bank[torch.from_numpy(mine)].to(learner.device)
        learner.bank = FeatureBank(int(mine[0]) if len(mine) else 0, rows, job.config.e_step.bank_momentum)
    return Progress(state.epoch, state.clusters, state.history, replace(state.e_step, bank=None))


def _place(job: Job) -> Storage | None:
    uri = job.config.resources.storage
    return storage.of_run(uri, Path(job.run_dir).name) if uri else None


def _chosen(job: Job, place: Storage | None, share: Share) -> str | None:
    """The name of the checkpoint that all go on from: the newest of the storage where there is one, else of
    rank 0's folder.
    """
    name, problem = None, ""
    if rank() == 0:
        try:
            newest = run_state.latest(job.checkpoints)
            name = remote.newest(place) if place is not None else newest.name if newest else None
        except RunFailed as error:
            problem = str(error)
    name, problem = share((name, problem))
    if problem:
        raise RunFailed(problem)
    return name


def _loaded(job: Job, place: Storage | None, name: str) -> RunState:
    if place is None:
        path = job.checkpoints / name
        if not path.is_file():
            raise RunFailed(
                f"worker {rank()} does not see {path}: PCL_RAY_HOME must lie on storage that all nodes share,"
                " or resources.storage name one that all can reach (s3://bucket/path)"
            )
        return run_state.load(path)
    path = remote.fetch(place, name, job.checkpoints, job.config.train.keep_checkpoints)
    try:
        return run_state.load(path)
    except RunFailed as error:
        raise RunFailed(f"{error}, there and in the storage {place}") from error


def save(job: Job, learner: Learner, progress: Progress, share: Share, folder: Path) -> None:
    """Rank 0 writes, and puts it into the storage of the run; all learn whether that worked."""
    states = list(all_gather(_random_state(learner.device)[None].to(learner.device)).cpu())
    problem = None
    bank = _whole_bank(learner)
    if rank() == 0:
        encoder, channels = job.config.encoder, job.config.data.channels
        e_step = replace(progress.e_step, bank=bank)
        state = RunState(
            progress.epoch,
            learner.state_dict(),
            progress.clusters,
            states,
            progress.history,
            encoder,
            channels,
            e_step,
        )
        keep, before = job.config.train.keep_checkpoints, run_state.latest(folder)
        try:
            path = run_state.save(state, folder, keep)
            if folder == job.checkpoints and (place := _place(job)) is not None:
                remote.put(place, path, keep, before.name if before else None)
        except RunFailed as error:
            problem = str(error)
    if problem := share(problem):
        raise RunFailed(problem)


def _whole_bank(learner: Learner) -> Tensor | None:
    """[N, C] on the CPU, from all workers' parts, which follow each other in rank order."""
    if learner.bank is None:
        return None
    group = TorchGroup(device=learner.device) if world_size() > 1 else Group()
    return group.gather(learner.bank.rows).cpu()


def _random_state(device: torch.device) -> Tensor:
    """Torch's generators of this process as bytes: the CPU's, followed by the device's where it is a GPU."""
    parts = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(parts)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
