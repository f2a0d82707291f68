"""The E-step actor as Ray starts it: its class is imported in its own process, since torch takes seconds."""

from __future__ import annotations

import os
from typing import Any

from pcl_ray.config import RunConfig


class EStepActorProcess:
    """`training.e_step_actor.EStepActor`, which see, in a process of its own."""

    def __init__(self, config: RunConfig):
        import torch

        from pcl_ray.training.e_step_actor import EStepActor

        # As torch reads it when it is loaded; a process that was forked has loaded it before.
        if (granted := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(granted):
            torch.set_num_threads(int(granted))
        self._actor = EStepActor(config)

    def ping(self) -> None:
        self._actor.ping()

    def watch(self, interval_s: float, board: Any) -> None:
        self._actor.watch(interval_s, board)

    def push(self, *arguments: Any) -> None:
        self._actor.push(*arguments)

    def push_result(self, *arguments: Any) -> None:
        self._actor.push_result(*arguments)

    def run(self, *arguments: Any) -> Any:
        return self._actor.run(*arguments)
