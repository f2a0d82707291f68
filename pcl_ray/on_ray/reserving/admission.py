"""Admission of a run to a cluster that others use too.

wait for the turn ─→ wait for room ─→ (actors, workers start) ─→ the turn goes on to the next
   named actor          placement group of everything at once

Runs start one after the other, so that no two of them hold a part each of what both need. The one whose turn
it is reserves all it needs as one placement group: Ray then finds the nodes, and an autoscaler sees what is
missing. It is given back just before actors and workers take its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayError, RuntimeEnvSetupError
from ray.util.placement_group import placement_group, remove_placement_group

from pcl_ray.errors import RunFailed
from pcl_ray.support import machine
from pcl_ray.support.text import duration

Say = Callable[[str], None]

POLL_S = 1.0
# Earlier versions wait for their turn by these names too.
_NAMESPACE, _ACTOR_NAME = "pcl_ray", "turn"
_SAY_EVERY_S = 60.0
_ANSWER_S = 10.0  # how long an actor, or Ray's removing of a reservation, is waited for


@dataclass(frozen=True)
class Applicant:
    """A run that wants to start, or whose turn it is."""

    run: str
    user: str
    since: float  # seconds since 1970
    needs: str  # as `resources_text` says it

    def __str__(self) -> str:
        return f"run {self.run} of {self.user}, which needs {self.needs}"


class TurnActor:
    """Says whose turn it is. A named actor, at most one a cluster; it ends with the driver that made it."""

    def __init__(self, applicant: Applicant):
        self._applicant = applicant

    def holder(self) -> Applicant:
        return self._applicant


class Admission:
    """The turn of a run: nobody else starts until it is released, or until this process ends."""

    def __init__(self, actor: Any):
        self.actor = actor

    def release(self) -> None:
        """Lets the next one start. A second call does nothing."""
        if self.actor is not None:
            with suppress(RayError):
                ray.kill(self.actor)
            self.actor = None


class Waiting:
    """How long a run has been waiting, and when that is said."""

    def __init__(self, timeout_s: float, say: Say):
        self._timeout_s, self._say = timeout_s, say
        self._started_at = self._said_at = time.monotonic()
        self._last_cause = ""

    def go_on(self, reason: str, cause: str) -> None:
        """Says the reason where the cause is another one than before, and once a minute. Raises RunFailed
        where the run has been waiting for too long.
        """
        now = time.monotonic()
        waited = now - self._started_at
        if waited > self._timeout_s:
            raise RunFailed(
                f"gave up after {duration(waited)} (resources.queue_timeout_s = {self._timeout_s:g}) of"
                f" {reason}"
            )
        if cause != self._last_cause or now - self._said_at >= _SAY_EVERY_S:
            self._say(f"{reason}; {duration(waited)} so far" if self._last_cause else reason)
            self._last_cause, self._said_at = cause, now

    def end(self) -> None:
        """Says "", if anything has been said."""
        if self._last_cause:
            self._say("")


def admit(run: str, bundles: Sequence[dict[str, float]], timeout_s: float, say: Say) -> Admission:
    """Waits until it is the run's turn and the cluster has room for all the bundles at this moment.

    `say` gets what is waited for, each minute for how long, "" at the end. RunFailed after `timeout_s`.
    """
    waiting = Waiting(timeout_s, say)
    needs = resources_text(bundles)
    admission = wait_for_turn(Applicant(run, machine.user(), time.time(), needs), waiting)
    try:
        _wait_for_room(bundles, needs, waiting)
    except BaseException:
        admission.release()
        raise
    waiting.end()
    return admission


def resources_text(bundles: Sequence[Mapping[str, float]]) -> str:
    """What the bundles need together: `4 GPUs and 9 CPUs`."""
    totals = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("GPU", "CPU")}
    parts = [f"{total:g} {kind}{'s' * (total != 1)}" for kind, total in totals.items() if total]
    return " and ".join(parts) or "nothing"


def wait_for_turn(applicant: Applicant, waiting: Waiting) -> Admission:
    """Waits until nobody else is starting. Raises RunFailed if it takes too long or no process can start."""
    while True:
        admission = _apply(applicant)
        if admission is not None and _is_up(admission, waiting):
            return admission
        holder = _holder()
        before = f"before us is {holder}" if holder else "another run has it"
        waiting.go_on(
            f"waiting for the turn to start: {before}", cause=f"turn {holder.run if holder else ''}"
        )
        time.sleep(POLL_S)


def _apply(applicant: Applicant) -> Admission | None:
    """Makes the actor; None where somebody else has it already."""
    options: Any = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    try:
        actor = ray.remote(TurnActor).options(name=_ACTOR_NAME, namespace=_NAMESPACE, **options)
        return Admission(actor.remote(applicant))
    except ValueError:
        return None


def _is_up(admission: Admission, waiting: Waiting) -> bool:
    """Waits until the actor answers, a while on a fresh node. False where it died: the turn is free again."""
    try:
        while True:
            try:
                ray.get(admission.actor.holder.remote(), timeout=_ANSWER_S)
                return True
            except GetTimeoutError:
                waiting.go_on("waiting for the cluster to start a process", cause="process")
    except (RuntimeEnvSetupError, ActorUnschedulableError) as error:
        admission.release()
        raise RunFailed(
            f"the cluster cannot start a process for the run: {str(error).strip().splitlines()[-1]}"
        ) from error
    except RayError:
        admission.release()
        return False
    except BaseException:
        admission.release()
        raise


def _holder() -> Applicant | None:
    """Whose turn it is, None where nobody answers."""
    try:
        actor: Any = ray.get_actor(_ACTOR_NAME, namespace=_NAMESPACE)
        holder: Any = ray.get(actor.holder.remote(), timeout=_ANSWER_S)
    except (ValueError, RayError, GetTimeoutError):
        return None
    return holder


def _wait_for_room(bundles: Sequence[dict[str, float]], needs: str, waiting: Waiting) -> None:
    """Reserves everything together once, and gives it back."""
    parts = [bundle for bundle in bundles if any(bundle.values())] or [{"CPU": 0.001}]
    reservation = placement_group(parts, strategy="PACK")
    try:
        while not reservation.wait(timeout_seconds=POLL_S):
            waiting.go_on(f"waiting for {needs}: {_free_text()}", cause="room")
    finally:
        give_back(reservation)


def give_back(reservation: Any) -> None:
    """Removes a placement group and waits for it: Ray's removing is asynchronous, and what starts next must
    find the room free again.
    """
    from ray.util import placement_group_table

    remove_placement_group(reservation)
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        if placement_group_table(reservation).get("state") in ("REMOVED", None):
            return
        time.sleep(0.05)


def _free_text() -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = [kind for kind in ("GPU", "CPU") if total.get(kind)]
    parts = [f"{free.get(kind, 0.0):g} of {total[kind]:g} {kind}s" for kind in kinds]
    return f"the cluster has {' and '.join(parts) or 'nothing'} free"
