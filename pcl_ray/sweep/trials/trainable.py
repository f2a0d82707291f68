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

from pcl_ray.data.images import Images
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray.connection import SharedData
from pcl_ray.support import machine, redaction
from pcl_ray.sweep.trial_point import point_of
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.sweep.trials.epoch_thread import EpochThread
from pcl_ray.sweep.trials.trial import Trial, link
from pcl_ray.sweep.warm_ups import Claim
from pcl_ray.training.events import Post
from pcl_ray.training.training_task import TrainingTask, longest_silence

_ANSWER_S = 60
_DATA_S = 600
_CHECKPOINT = "trial.json"  # in a checkpoint of Tune's: whose it is, and which file of ours goes with it


@dataclass(frozen=True)
class RayHandles:
    """What all trials of a sweep use of Ray: data in its store, and the actor of the warm-ups."""

    data: SharedData
    warmups: Any


class TrialProcess(tune.Trainable):
    """`setup` gets the trial's values from Tune, the rest by `tune.with_parameters`."""

    def setup(self, config: dict[str, Any], context: SweepContext, handles: RayHandles) -> None:  # type: ignore[override]
        os.environ["PCL_RAY_HOME"] = context.home
        redaction.take_tracking_environment(context.tracking_environment)
        self.context = context
        self.handles = handles
        self._splits: Any = None
        self._trial: Trial | None = None
        self._refusal = ""  # why there is no trial
        self._refusal_reported = False
        self._new(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The process goes on with another trial, or with another member's weights."""
        self.cleanup()
        self._new(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._trial is not None:
            return self._trial.step()
        if self._refusal_reported:
            raise RunFailed(self._refusal)
        self._refusal_reported = True
        return {"epoch": 0, "failing": self._refusal}

    def cleanup(self) -> None:
        if self._trial is not None:
            self._trial.close()
        self._trial = None
        # its loader processes and its memory end with it, not some time later beside the next trial's
        gc.collect()

    def save_checkpoint(self, checkpoint_dir: str) -> str:  # type: ignore[override]
        """Copies the newest checkpoint of a population's member, which others may go on from. The checkpoints
        of its run are written by the trial itself.
        """
        assert self._trial is not None
        point, newest = self._trial.point, self._trial.checkpoint()
        content: dict[str, Any] = {"member": point.member, "values": dict(point.values)}
        if point.member is not None and newest is not None:
            link(newest, Path(checkpoint_dir))
            content["file"] = newest.name
        Path(checkpoint_dir, _CHECKPOINT).write_text(json.dumps(content))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from the folder that another member's `save_checkpoint` filled. Where the folder is the
        trial's own there is nothing to do: it has that checkpoint already.
        """
        content = json.loads(Path(checkpoint, _CHECKPOINT).read_text())
        trial = self._trial
        if trial is None or trial.point.member is None:
            return
        if content["member"] == trial.point.member or "file" not in content:
            return
        exploit = {
            "from": content["member"],
            "file": content["file"],
            "old": content["values"],
            "new": dict(trial.point.values),
        }
        trial.take_over(Path(checkpoint, content["file"]), exploit)

    def _new(self, config: dict[str, Any]) -> None:
        self._refusal = ""
        self._refusal_reported = False
        try:
            self._trial = Trial(
                point_of(config, self.context.base.seed, self.trial_id),
                self.context,
                self._epochs,
                _RemoteWarmups(self.handles.warmups),
                self._images,
            )
        except ConfigError as error:
            self._refusal = redaction.scrubbed(str(error))

    def _images(self) -> Images:
        if self._splits is None:  # once a process; the arrays are read where they lie in the store
            self._splits = ray.get(self.handles.data.splits, timeout=_DATA_S)
        return self._splits.train

    def _epochs(self, task: TrainingTask, post: Post) -> Iterator[int]:
        if task.config.resources.workers:
            from pcl_ray.on_ray.launch import train_shared  # torch

            train = partial(train_shared, task, self.handles.data)
            return EpochThread(train, post, longest_silence(task.config))
        return self._epochs_in_this_process(task, post)

    def _epochs_in_this_process(self, task: TrainingTask, post: Post) -> Iterator[int]:
        import torch  # takes seconds, which a trial with workers of its own does not need here

        from pcl_ray.training.local_e_step import LocalEStep
        from pcl_ray.training.loop import epochs

        self._images()
        torch.set_num_threads(machine.threads(int(task.config.resources.cpus_per_worker)))
        device = torch.device("cuda" if task.config.resources.gpus_per_worker else "cpu")
        return epochs(
            task,
            self._splits,
            device=device,
            e_step=LocalEStep(task.config, self._splits),
            broadcast=lambda value: value,
            post=post,
        )


class _RemoteWarmups:
    """`trials.trial.WarmupClaims` through the actor."""

    def __init__(self, actor: Any):
        self._actor = actor

    def claim(self, key: str, trial: str) -> Claim:
        return ray.get(self._actor.claim.remote(key, trial), timeout=_ANSWER_S)

    def alive(self, key: str, trial: str) -> None:
        self._actor.alive.remote(key, trial)

    def release(self, key: str, trial: str) -> None:
        self._actor.release.remote(key, trial)
