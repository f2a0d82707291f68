"""The trial as Ray Tune runs it: a process that takes one trial after the other.

A trial without workers trains in this process; one with workers starts its Train group from here, and the
process ends with it.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from pcl_ray.config import RunConfig
from pcl_ray.data.images import Images
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray.connection import SharedData
from pcl_ray.support import redaction
from pcl_ray.sweep.epoch_thread import InThread
from pcl_ray.sweep.point import Point
from pcl_ray.sweep.trial import Setting, Trial, link
from pcl_ray.sweep.warm_ups import Claim
from pcl_ray.training.events import Post
from pcl_ray.training.training_task import TrainingTask, longest_silence

POINT = "point"  # of a list of points made beforehand: {"values", "seed", "member"}
SEED_INDEX = "__trial_index__"  # Ray's name for the number of a repetition
_ASK_S = 60
_DATA_S = 600
_SAVED = "trial.json"


@dataclass(frozen=True)
class Shared:
    """Handles: what lies in Ray's store, or is an actor."""

    data: SharedData
    warmups: Any


class TrialProcess(tune.Trainable):
    """`setup` gets the trial's values from Tune, the rest by `tune.with_parameters`."""

    def setup(self, config: dict[str, Any], setting: Setting, shared: Shared) -> None:  # type: ignore[override]
        os.environ["PCL_RAY_HOME"] = setting.home
        redaction.take_tracking_environment(setting.tracking_environment)
        # as in `preparation.prepare_process`; on a cluster the driver's environment is not ours
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.setting, self.shared = setting, shared
        self._splits: Any = None
        self._trial: Trial | None = None
        self._broken = ""
        self._new(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The process goes on with another trial, or with another member's weights."""
        self.cleanup()
        self._new(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._trial is not None:
            return self._trial.step()
        if self._told:
            raise RunFailed(self._broken)
        self._told = True
        return {"epoch": 0, "failing": self._broken}

    def cleanup(self) -> None:
        if self._trial is not None:
            self._trial.close()
        self._trial = None
        # its loader processes and its memory end with it, not some time later beside the next trial's
        gc.collect()

    def save_checkpoint(self, checkpoint_dir: str) -> str:  # type: ignore[override]
        """For populations: a copy of the trial's newest checkpoint, which others may go on from. Its own are
        kept by the trial itself.
        """
        assert self._trial is not None
        point, newest = self._trial.point, self._trial.checkpoint()
        saved: dict[str, Any] = {"member": point.member, "values": dict(point.values)}
        if point.member is not None and newest is not None:
            link(newest, Path(checkpoint_dir))
            saved["file"] = newest.name
        Path(checkpoint_dir, _SAVED).write_text(json.dumps(saved))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: Any) -> None:
        """checkpoint: the folder that `save_checkpoint` filled. Another member's: the trial goes on from
        there. Its own: it has that already.
        """
        saved = json.loads(Path(checkpoint, _SAVED).read_text())
        trial = self._trial
        if (
            trial is None
            or trial.point.member is None
            or saved["member"] == trial.point.member
            or "file" not in saved
        ):
            return
        exploit = {
            "from": saved["member"],
            "file": saved["file"],
            "old": saved["values"],
            "new": dict(trial.point.values),
        }
        trial.take_over(Path(checkpoint, saved["file"]), exploit)

    def _new(self, config: dict[str, Any]) -> None:
        self._told, self._broken = False, ""
        try:
            self._trial = Trial(
                point_of(config, self.setting.base.seed, self.trial_id),
                self.setting,
                self._epochs,
                _Office(self.shared.warmups),
                self._images,
            )
        except ConfigError as error:
            self._broken = redaction.scrubbed(str(error))

    def _images(self) -> Images:
        if self._splits is None:  # once a process; the arrays are read where they lie in the store
            self._splits = ray.get(self.shared.data.splits, timeout=_DATA_S)
        return self._splits.train

    def _epochs(self, task: TrainingTask, post: Post) -> Iterator[int]:
        if task.config.resources.workers:
            from pcl_ray.on_ray.launch import train_shared  # torch

            return InThread(partial(train_shared, task, self.shared.data), post, longest_silence(task.config))
        return self._here(task, post)

    def _here(self, task: TrainingTask, post: Post) -> Iterator[int]:
        import torch

        from pcl_ray.training.local_e_step import LocalEStep
        from pcl_ray.training.loop import epochs

        self._images()
        torch.set_num_threads(
            max(1, min(torch.get_num_threads(), int(task.config.resources.cpus_per_worker)))
        )
        device = torch.device("cuda" if task.config.resources.gpus_per_worker else "cpu")
        return epochs(
            task,
            self._splits,
            device=device,
            e_step=LocalEStep(task.config, self._splits),
            broadcast=lambda value: value,
            post=post,
        )


def point_of(config: dict[str, Any], first_seed: int, trial_id: str = "") -> Point:
    """From what Tune hands over: a point of a list, its values perturbed by a population, or a searcher's
    suggestion.

    A member that takes over from another gets all of that one's config, its point too: which member it is,
    Tune's number of the trial says.
    """
    if POINT in config:
        listed = config[POINT]
        perturbed = {name: value for name, value in config.items() if name != POINT}
        number = trial_id.rpartition("_")[2]
        member = int(number) if listed["member"] is not None and number.isdigit() else listed["member"]
        return Point({**listed["values"], **perturbed}, listed["seed"], member)
    values = {name: value for name, value in config.items() if name != SEED_INDEX}
    return Point(values, first_seed + int(config.get(SEED_INDEX, 0)))


class _Office:
    """`trial.Office` through the actor."""

    def __init__(self, actor: Any):
        self._actor = actor

    def claim(self, key: str, trial: str) -> Claim:
        return ray.get(self._actor.claim.remote(key, trial), timeout=_ASK_S)

    def alive(self, key: str, trial: str) -> None:
        self._actor.alive.remote(key, trial)

    def release(self, key: str, trial: str) -> None:
        self._actor.release.remote(key, trial)


def resources(config: RunConfig) -> Any:
    """What Tune reserves for the process: all of a trial that trains in it, next to nothing for one with
    workers of its own.
    """
    from pcl_ray.sweep.capacity import TRIAL_CPUS

    taken = config.resources
    if taken.workers:
        return tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS}])
    gpus = {"GPU": taken.gpus_per_worker} if taken.gpus_per_worker else {}
    return tune.PlacementGroupFactory([{"CPU": taken.cpus_per_worker} | gpus])
