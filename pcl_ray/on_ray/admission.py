"""A place for a run on a cluster that others use too.

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

NAMESPACE = "pcl_ray"
_TURN = "turn"
_POLL_S = 1.0
_SAY_EVERY_S = 60.0
_ASK_S = 10.0


@dataclass(frozen=True)
class Holder:
    """Who has the turn."""

    run: str
    user: str
    since: float
    needs: str

    def __str__(self) -> str:
        return f"run {self.run} of {self.user}, which needs {self.needs}"


class TurnActor:
    """There is at most one on a cluster, since it has a name; it ends with the driver that made it."""

    def __init__(self, holder: Holder):
        self._holder = holder

    def holder(self) -> Holder:
        return self._holder


class Turn:
    """Held from `take` to `release`, or to the end of this process."""

    def __init__(self, actor: Any):
        self.actor = actor

    def release(self) -> None:
        """A second call does nothing."""
        if self.actor is not None:
            with suppress(RayError):
                ray.kill(self.actor)
            self.actor = None


def take(run: str, bundles: Sequence[dict[str, float]], timeout_s: float, say: Say) -> Turn:
    """The turn, with room for all the bundles on the cluster at this moment. `say` hears for what is waited,
    and for how long it has been, once a minute.

    Raises RunFailed after `timeout_s` seconds.
    """
    patience = _Patience(timeout_s, say)
    needs = needed(bundles)
    turn = _turn(Holder(run, machine.user(), time.time(), needs), patience)
    try:
        _wait_for_room(bundles, needs, patience)
    except BaseException:
        turn.release()
        raise
    patience.over()
    return turn


def needed(bundles: Sequence[Mapping[str, float]]) -> str:
    """`4 GPUs and 9 CPUs`."""
    totals = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("GPU", "CPU")}
    return (
        " and ".join(f"{total:g} {kind}{'s' * (total != 1)}" for kind, total in totals.items() if total)
        or "nothing"
    )


class _Patience:
    """How long has been waited, and who is told when."""

    def __init__(self, timeout_s: float, say: Say):
        self._timeout_s, self._say = timeout_s, say
        self._begun = self._told = time.monotonic()
        self._what = ""

    def wait(self, reason: str, what: str) -> None:
        """Says the reason where `what` is new, and once a minute. Raises RunFailed where it has been too
        long.
        """
        now = time.monotonic()
        waited = now - self._begun
        if waited > self._timeout_s:
            raise RunFailed(
                f"gave up after {duration(waited)} (resources.queue_timeout_s = {self._timeout_s:g}) of"
                f" {reason}"
            )
        if what != self._what or now - self._told >= _SAY_EVERY_S:
            self._say(reason if not self._what else f"{reason}; {duration(waited)} so far")
            self._what, self._told = what, now

    def over(self) -> None:
        if self._what:
            self._say("")


def _turn(mine: Holder, patience: _Patience) -> Turn:
    while True:
        turn = _made(mine)
        if turn is not None and _is_up(turn, patience):
            return turn
        other = _holder()
        before = f"before us is {other}" if other else "another run has it"
        patience.wait(f"waiting for the turn to start: {before}", what=f"turn {other.run if other else ''}")
        time.sleep(_POLL_S)


def _made(mine: Holder) -> Turn | None:
    """None where somebody has the turn already."""
    try:
        return Turn(
            ray.remote(TurnActor)
            .options(name=_TURN, namespace=NAMESPACE, num_cpus=0, scheduling_strategy="DEFAULT")
            .remote(mine)
        )
    except ValueError:
        return None


def _is_up(turn: Turn, patience: _Patience) -> bool:
    """Waits until it answers: on a node that has run nothing yet, a process takes a while. False where it
    died; then it is free again.
    """
    try:
        while True:
            try:
                ray.get(turn.actor.holder.remote(), timeout=_ASK_S)
                return True
            except GetTimeoutError:
                patience.wait("waiting for the cluster to start a process", what="process")
    except (RuntimeEnvSetupError, ActorUnschedulableError) as error:
        turn.release()
        raise RunFailed(
            f"the cluster cannot start a process for the run: {str(error).strip().splitlines()[-1]}"
        ) from error
    except RayError:
        turn.release()
        return False
    except BaseException:
        turn.release()
        raise


def _holder() -> Holder | None:
    try:
        actor: Any = ray.get_actor(_TURN, namespace=NAMESPACE)
        found: Any = ray.get(actor.holder.remote(), timeout=_ASK_S)
    except (ValueError, RayError, GetTimeoutError):
        return None
    return found


def _wait_for_room(bundles: Sequence[dict[str, float]], needs: str, patience: _Patience) -> None:
    reserved = placement_group(
        [bundle for bundle in bundles if any(bundle.values())] or [{"CPU": 0.001}], strategy="PACK"
    )
    try:
        while not reserved.wait(timeout_seconds=_POLL_S):
            patience.wait(f"waiting for {needs}: {_free()}", what="room")
    finally:
        remove_placement_group(reserved)
        _wait_until_gone(reserved)


def _wait_until_gone(reserved: Any) -> None:
    """Removing is asynchronous; what starts next must find the room free again."""
    from ray.util import placement_group_table

    deadline = time.monotonic() + _ASK_S
    while (
        placement_group_table(reserved).get("state") not in ("REMOVED", None) and time.monotonic() < deadline
    ):
        time.sleep(0.05)


def _free() -> str:
    free, has = ray.available_resources(), ray.cluster_resources()
    told = [f"{free.get(kind, 0.0):g} of {has[kind]:g} {kind}s" for kind in ("GPU", "CPU") if has.get(kind)]
    return f"the cluster has {' and '.join(told) or 'nothing'} free"
