"""One warm-up for all trials that are alike in everything that acts before the first E-step.

Whoever comes first trains it, as part of its own run, and leaves a copy of its state from before the first
E-step under sweeps/NAME/warmups/KEY. The others go on from that copy and become, bit by bit, what they would
have been alone: until then α, K and the other knobs that act later have no effect.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig, properties

FOLDER = "warmups"  # below the folder of a sweep
_STALE_S = 30.0  # a trial that trains a warm-up says so every few seconds


def key_of(config: RunConfig) -> str:
    """A key that is the same for configurations whose runs are the same up to the first E-step."""
    acting = {
        name: value for name, value in config.flatten().items() if properties(name).acts_before_first_e_step
    }
    return hashlib.sha256(json.dumps(acting, sort_keys=True, default=str).encode()).hexdigest()[:16]


def exists(config: RunConfig) -> bool:
    """Whether the run has a warm-up that is followed by anything."""
    return 0 < config.e_step.warmup_epochs < config.train.epochs


@dataclass(frozen=True)
class Claim:
    """What a trial has to do about its warm-up. ready: `path` is the state to go on from. train: train it,
    and leave it in the folder `path`. wait: another trial is at it.
    """

    kind: Literal["ready", "train", "wait"]
    path: str = ""


class Warmups:
    """The warm-ups of a sweep: says which trial trains which; wrapped as an actor. What has been trained is
    on disk, so a new instance knows it too.
    """

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic):
        """clock: in seconds."""
        self._folder = Path(folder)
        self._clock = clock
        self._holders: dict[str, tuple[str, float]] = {}  # key → which trial, when it was last heard of

    def claim(self, key: str, trial: str) -> Claim:
        """What this trial has to do. A trial that must wait asks again and again."""
        path = self._folder / key
        trained = epoch_files.latest(path)
        if trained is not None:
            self._holders.pop(key, None)
            return Claim("ready", str(trained))
        holder, heard = self._holders.get(key, (trial, 0.0))
        if holder != trial and self._clock() - heard < _STALE_S:
            return Claim("wait")
        self._holders[key] = (trial, self._clock())
        return Claim("train", str(path))

    def alive(self, key: str, trial: str) -> None:
        """The trial is still at it."""
        if self._is_held(key, trial):
            self._holders[key] = (trial, self._clock())

    def release(self, key: str, trial: str) -> None:
        """The trial has ended; whether it left the warm-up shows on disk."""
        if self._is_held(key, trial):
            del self._holders[key]

    def _is_held(self, key: str, trial: str) -> bool:
        return key in self._holders and self._holders[key][0] == trial
