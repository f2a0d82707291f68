"""The number of workers of a run that may have fewer than `resources.workers`.

    room for how many? ──→ training with so many ─┬─→ its end
            ▲                                     ├─→ workers were lost ────────────┐
            │                                     └─→ room for more: epoch's end ───┤
            └───────────────────────────────────────────────────────────────────────┘

Ray Train has such a range, too, but takes any number within it, and a batch must be divided evenly; and it
ends the workers of a group that grows wherever they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group

from pcl_ray.config import RunConfig
from pcl_ray.errors import RunFailed
from pcl_ray.on_ray.reserving import admission
from pcl_ray.on_ray.reserving.bundles import Bundle, fitting, total, worker_bundle
from pcl_ray.plan import worker_counts
from pcl_ray.support.text import count as counted
from pcl_ray.training.events import Event

GRANT_S = 2.0  # how long Ray may take to find places that are free
# After a loss: until Ray has seen that a node is gone, or has given the places of dead workers free.
SETTLE_S = 20.0
LOOK_EVERY_S = 10.0

Handle = Callable[[Event], None]


class WorkersLost(RunFailed):
    """Workers died, failed or did not start: others may go on from the newest checkpoint."""


def is_elastic(config: RunConfig) -> bool:
    """Whether the run may have another number of workers than `resources.workers`."""
    return len(worker_counts(config)) > 1 and config.resources.workers > 0


def train(
    config: RunConfig,
    fit: Callable[[int, Callable[[], bool]], bool],
    handle: Handle,
    cluster: RayCluster | None = None,
) -> None:
    """Trains with as many workers as there is room for, until the run ends.

    fit: trains with so many workers; gives back whether the run has ended, else it was paused at the end of
    an epoch, since the function that it is given had said that there is room for more. Raises WorkersLost
    where they may be replaced, `resources.max_failures` times; RunFailed where there is room for too few.
    """
    room = Room(config, cluster or RayCluster())
    failures, workers = 0, room.wait_for_any(GRANT_S, handle)
    while True:
        if workers < config.resources.workers:
            text = f"room for {workers} of {config.resources.workers} workers; more join at an epoch's end"
            handle(Event("warning", text=text))
        growth = Growth(room, workers)
        settle_s = GRANT_S
        try:
            if fit(workers, growth.is_possible):
                return
        except WorkersLost as error:
            failures += 1
            if failures > config.resources.max_failures:
                raise
            reason = str(error).strip().splitlines()[0]
            handle(Event("warning", text=f"{reason}; going on from the newest checkpoint"))
            settle_s = SETTLE_S
        finally:
            growth.close()
        before, workers = workers, room.wait_for_any(settle_s, handle)
        if workers > before:
            handle(Event("warning", text=f"going on with {workers} workers instead of {before}"))


class RayCluster:
    """What Ray knows of its nodes."""

    def nodes(self) -> list[Mapping[str, float]]:
        """What each living node has, free or not."""
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def free(self) -> Mapping[str, float]:
        """What all of them have free together."""
        return ray.available_resources()

    def grants(self, bundles: Sequence[Bundle], wait_s: float) -> bool:
        """Whether there is room for all the bundles together within so many seconds; it is given back. A node
        that is gone grants nothing, also where that has not been noticed yet.
        """
        demand = self.demand(bundles)
        try:
            return self.meets(demand, wait_s)
        finally:
            self.drop(demand)

    def demand(self, bundles: Sequence[Bundle]) -> Any:
        """What an autoscaler sees as missing, until it is dropped; once it is met, it is held."""
        return placement_group(list(bundles), strategy="PACK")

    def meets(self, demand: Any, wait_s: float) -> bool:
        """Whether all of the demand is there, within so many seconds."""
        return bool(demand.wait(timeout_seconds=wait_s))

    def drop(self, demand: Any) -> None:
        """Gives back what the demand holds."""
        admission.give_back(demand)


@dataclass(frozen=True)
class Room:
    """How many workers there is room for on the cluster."""

    config: RunConfig
    cluster: RayCluster

    def most(self, settle_s: float) -> int:
        """The largest number that there is room for, 0 where not even for the smallest; settle_s: how long
        the full number is waited for, where the nodes that are there could have it.
        """
        full, *fewer = worker_counts(self.config)
        settled_at = time.monotonic() + settle_s
        while self.fits(full):
            if self.cluster.grants(self._bundles(full), GRANT_S):
                return full
            if time.monotonic() >= settled_at:
                break
        for count in fewer:
            if self.fits(count) and self.cluster.grants(self._bundles(count), GRANT_S):
                return count
        return 0

    def wait_for_any(self, settle_s: float, handle: Handle) -> int:
        """`most`, at least the smallest number. Raises RunFailed where that takes too long."""
        resources = self.config.resources
        name = "queue_timeout_s" if resources.autoscaling else "start_timeout_s"
        limit_s = getattr(resources, name)
        smallest = worker_counts(self.config)[-1]
        needs = f"{counted(smallest, 'worker')} ({admission.resources_text(self._bundles(smallest))})"
        deadline, waits = time.monotonic() + limit_s, False
        while not (count := self.most(settle_s)):
            if time.monotonic() > deadline:
                raise RunFailed(f"no room for {needs} within resources.{name} = {limit_s:g} s")
            if not waits:
                handle(Event("waiting", text=f"waiting for room for {needs}"))
            waits, settle_s = True, GRANT_S
            # where an autoscaler sees what is missing
            self.cluster.grants(self._bundles(smallest), LOOK_EVERY_S)
        if waits:
            handle(Event("waiting", text=""))
        return count

    def more_than(self, workers: int) -> bool:
        """Whether there is room for a larger number, beside so many workers that train."""
        free = self.cluster.free()
        for count in worker_counts(self.config):
            more = self._bundles(count - workers)
            enough = all(free.get(kind, 0.0) >= total(more, kind) for kind in ("CPU", "GPU"))
            if more and enough and self.cluster.grants(more, GRANT_S):
                return True
        return False

    def fits(self, count: int) -> bool:
        """Whether the living nodes could have so many, were nothing else on them."""
        return self.config.resources.autoscaling or fitting(self._bundles(count), self.cluster.nodes()) > 0

    def _bundles(self, count: int) -> list[Bundle]:
        return [worker_bundle(self.config.resources)] * count

    def missing(self, workers: int) -> list[Bundle]:
        """What the full number of workers takes beside so many."""
        return self._bundles(self.config.resources.workers - workers)


class Growth:
    """Looks now and then whether there is room for more workers than train; tells an autoscaler, where there
    is one, what is missing.
    """

    def __init__(self, room: Room, workers: int):
        self._room, self._workers = room, workers
        self._looked_at = time.monotonic()
        missing = room.missing(workers)
        self._demand = room.cluster.demand(missing) if missing and room.config.resources.autoscaling else None

    def is_possible(self) -> bool:
        if self._workers == self._room.config.resources.workers:
            return False
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = time.monotonic()
        if self._demand is not None:
            return self._room.cluster.meets(self._demand, 0.0)
        return self._room.more_than(self._workers)

    def close(self) -> None:
        """Gives back what is held: who trains next takes its place."""
        if self._demand is not None:
            self._room.cluster.drop(self._demand)
            self._demand = None
