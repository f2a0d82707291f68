"""What a running experiment reports to its driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pcl_ray.config.figures import IMAGES_PER_SECOND, LEARNING_RATE
from pcl_ray.plan import RunPlan

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


class OnceSafe:
    """Posts events in their order, from that of an epoch on once its checkpoint is safe: until then they are
    held. What says what is being done now is not. What is to be shown and cannot be costs a warning: others
    would wait for this worker.
    """

    def __init__(self, post: Post, is_safe: Callable[[], bool] = lambda: True):
        """is_safe: whether the checkpoint of the last epoch is."""
        self._post, self._is_safe = post, is_safe
        self._held: list[Event] = []

    def __call__(self, event: Event) -> None:
        if event.kind in ("alive", "phase"):
            self._post(event)
        else:
            self._held.append(event)
            self.release(before_epoch=event.kind != "epoch" and len(self._held) == 1)

    def release(self, *, before_epoch: bool = False) -> None:
        """Posts what is held, where the checkpoint is safe. before_epoch: nothing of it waits for one."""
        while self._held and (before_epoch or self._is_safe()):
            self._deliver(self._held.pop(0))

    def _deliver(self, event: Event) -> None:
        if event.kind not in ("snapshot", "views"):
            self._post(event)
            return
        try:
            self._post(event)
        except Exception as error:
            self._post(not_shown(error))


def show(post: Post, make: Callable[[], Event]) -> None:
    """Posts an event to show. A missing picture must not fail a run: others would wait for this worker."""
    try:
        event = make()
    except Exception as error:
        event = not_shown(error)
    post(event)


def post_nothing(event: Event) -> None:
    """Stands for `post` on all ranks but 0."""


def not_shown(error: Exception) -> Event:
    """The warning about something that could not be shown."""
    text = f"something could not be shown ({type(error).__name__}: {error}); training goes on"
    return Event("warning", text=text)


class EventBoard:
    """Holds events until the driver takes them, and what rank 0 hands out to the others; an actor where the
    run has workers.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._pauses = False
        self._held: tuple[str, list[Any]] = ("", [])

    def post(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)

    def take(self) -> list[Event]:
        with self._lock:
            events, self._events = self._events, []
        return events

    def hold(self, key: str, values: list[Any]) -> None:
        """Keeps references under a key, until the next are kept. In a list, lest they are resolved here."""
        self._held = (key, values)

    def held(self, key: str) -> list[Any]:
        """What was kept under the key; nothing where that was another, or a board that is gone."""
        held_key, values = self._held
        return values if held_key == key else []

    def ask_to_pause(self) -> None:
        """Has the workers end at the end of an epoch, so that others go on from its checkpoint."""
        self._pauses = True

    def take_pause(self) -> bool:
        """Whether the workers are to end now; asked once, it is done."""
        pauses, self._pauses = self._pauses, False
        return pauses


def step_events(
    epoch: int, first_step: int, plan: RunPlan, rate_scale: float, post: Post
) -> Callable[[int, dict[str, float]], None]:
    """What is called after some steps of an epoch, with their global number and means: it posts them with the
    rate of this start, but for those of the epoch's last step.
    """
    start, first = time.perf_counter(), epoch * plan.steps_per_epoch + first_step

    def on_progress(step: int, means: dict[str, float]) -> None:
        if (step + 1) % plan.steps_per_epoch == 0:
            return  # a step has one point: that of the last is the mean of the epoch, which follows
        rate = (step + 1 - first) * plan.global_batch / (time.perf_counter() - start)
        figures = means | {IMAGES_PER_SECOND.name: rate, LEARNING_RATE.name: plan.lr_at(step) * rate_scale}
        post(Event("step", epoch, step, figures))

    return on_progress
