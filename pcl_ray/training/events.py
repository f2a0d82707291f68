"""What a running experiment reports to its driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from pcl_ray.snapshot import Snapshot


@dataclass(frozen=True)
class Event:
    """One thing that happened, with what is to be shown or recorded of it.

    kind: start (training begins or goes on at `epoch`), alive (a step is about to be taken), step (means over
    some steps), epoch (all figures of an epoch, after its checkpoint is safe), figures (more of an epoch that
    was reported before), phase (what is being done now), warning, snapshot (what is to be shown of an
    E-step), views (of some images), system (how busy a node is; `text` names it), waiting (for its turn and
    for resources on the cluster; `text` says for what, "": no more).
    """

    kind: Literal[
        "start",
        "alive",
        "step",
        "epoch",
        "figures",
        "phase",
        "warning",
        "snapshot",
        "views",
        "system",
        "waiting",
    ]
    epoch: int = 0
    step: int = 0  # global step of the last batch trained
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""
    snapshot: Snapshot | None = None
    at: float = field(default_factory=time.time, compare=False)  # seconds since 1970, where it was made
    # [n, v, S, S, channels] uint8, the v views of an image as the network sees them, before normalisation
    views: np.ndarray | None = None

    def step_text(self, steps_per_epoch: int) -> str:
        """The step with which the training of a start goes on, for a sentence: ", step 41"; "" for step 1."""
        steps = self.step - self.epoch * steps_per_epoch
        return f", step {steps + 1}" if steps > 0 else ""


Post = Callable[[Event], None]


class EventBoard:
    """Holds events until the driver takes them; an actor where the run has workers."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def post(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)

    def take(self) -> list[Event]:
        with self._lock:
            events, self._events = self._events, []
        return events
