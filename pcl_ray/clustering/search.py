"""The search for a usable clustering: k-means from what the last E-step left or anew, checked, and tried once
more where the result cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pcl_ray.clustering import health
from pcl_ray.clustering.assign.nearest import BruteForce, Nearest
from pcl_ray.clustering.assign.shortlist import Shortlist
from pcl_ray.clustering.balance import capped
from pcl_ray.clustering.kmeans import best_of
from pcl_ray.clustering.lloyd import Assign, LloydRun, LloydSettings, distinct_rows, lloyd, split_into_empty
from pcl_ray.clustering.nested import coarse_of_fine
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.clustering.types import Clustering, ClusterSet
from pcl_ray.config import EStepConfig
from pcl_ray.plan import e_step_number

WORSE = 1.3  # a warm start whose first pass is so many times worse than the last E-step's end is given up
UNSTEADY = 0.5  # or that changes more than this share of the labels


class EStepRefused(ValueError):
    """The features cannot be clustered. The message says why and what to try; `figures` what was measured."""

    def __init__(self, message: str, figures: dict[str, float] | None = None):
        super().__init__(message)
        self.figures = figures or {}


class Collapsed(EStepRefused):
    """The features have collapsed: train without prototypes until they have recovered."""


class Rejected(EStepRefused):
    """No usable clustering was found, also not on a second try: the one from before is better."""


@dataclass(frozen=True)
class When:
    """Names an E-step in messages: before epoch `epoch` (from 0), at global step `step` where known."""

    epoch: int
    step: int | None = None

    def __str__(self) -> str:
        epoch = f"before epoch {self.epoch + 1}"
        return epoch if self.step is None else f"{epoch} (encoder of step {self.step})"


def labels_before(
    previous: ClusterSet | None, m: int, num_clusters: int, ids: Tensor, total: int
) -> Tensor | None:
    """[n] the last E-step's labels of the images `ids` of `total`. None, on all processes of a group alike,
    where there are none to go on from.
    """
    if previous is None or m >= len(previous.clusterings):
        return None
    old = previous.clusterings[m]
    if old.num_clusters != num_clusters or len(old.assignments) != total:
        return None
    return old.assignments[ids]


@dataclass(frozen=True, eq=False)
class Search:
    """k-means over the points of one E-step."""

    points: Points
    gauges: health.Gauges
    settings: EStepConfig
    when: When
    nearest: Nearest

    def all_of(
        self, counts: tuple[int, ...], seeds: list[int], previous: ClusterSet | None
    ) -> list[LloydRun]:
        """One clustering for each K, in their order. Raises EStepRefused and Rejected as `_checked` does."""
        runs: dict[int, LloydRun] = {}
        finer: LloydRun | None = None
        order = list(range(len(counts)))
        if self.settings.nested:
            order.sort(key=lambda m: -counts[m])
        for m in order:
            first = partial(self._warm_or_cold, counts[m], seeds[m], previous, m)
            if self.settings.nested and finer is not None:
                used = int((finer.moments.sizes > 0).sum())
                if counts[m] < used:
                    first = partial(self._coarse, counts[m], seeds[m], finer, previous, m)
            runs[m] = finer = self._checked(counts[m], first, seeds[m])
        return [runs[m] for m in range(len(counts))]

    def _checked(self, k: int, first: Callable[[], LloydRun], seed: int) -> LloydRun:
        """A usable clustering: the first try's, or that of one more cold run from other points.

        Raises Rejected where neither is, EStepRefused where fewer than `k` features differ.
        """
        run = first()
        if not (faults := health.faults(run.moments, self.points.total)):
            return run
        self._refuse_too_few_distinct(k, run)
        again = self._cold(k, seed ^ 0x5EED)
        if still := health.faults(again.moments, self.points.total):
            raise Rejected(
                f"{self.when}: no usable clustering with K = {k}: {'; '.join(still)}", self.gauges.figures()
            )
        again.warnings.append(
            f"the first try could not be used ({'; '.join(faults)}); clustered anew from other points"
        )
        return again

    def _refuse_too_few_distinct(self, k: int, run: LloydRun) -> None:
        if not (run.moments.sizes == 0).any():
            return
        distinct = distinct_rows(self.points)
        if k > distinct:
            raise EStepRefused(
                f"{self.when}: {k} clusters were asked for, but only {distinct} of the {self.points.total}"
                " features differ; lower e_step.num_clusters, or look for duplicate images"
            )

    def _warm_or_cold(self, k: int, seed: int, previous: ClusterSet | None, m: int) -> LloydRun:
        before = labels_before(previous, m, k, self.points.ids, self.points.total)
        if previous is None or before is None or not starts_warm(self.settings, self.when.epoch):
            return self._cold(k, seed)
        last = previous.clusterings[m].objective
        warm = self._warm(k, seed, previous.clusterings[m], before)
        if warm is not None and not warm.objective > WORSE * last:
            return warm
        cold = self._cold(k, seed)
        # bad luck, or the features have spread out, as they do early on: a second run tells
        if cold.objective > WORSE * last:
            cold = min(cold, self._cold(k, seed ^ 0x5EED), key=lambda run: run.objective)
        return cold

    def _warm(self, k: int, seed: int, last: Clustering, before: Tensor) -> LloydRun | None:
        """A run from the last clustering; None where that start turns out bad at the first pass."""
        points, shortlist = self.points, self._shortlist(k)
        by_centroids = self.settings.warm_start == "centroids"
        limit = WORSE * last.objective if math.isfinite(last.objective) else math.inf

        def go_on(run: LloydRun) -> bool:
            steady = by_centroids or run.changed[0] <= UNSTEADY * points.total
            return run.objective <= limit and steady

        labels: Tensor | None = None
        moments: Moments | None = None
        if not by_centroids:
            labels = before.to(points.device)
            moments = Moments.of(points, labels, k)
            start = moments.means()
            split_into_empty(start, moments, seed)
        elif last.centroids is not None:
            start = last.centroids.to(points.device)
        else:
            return None
        settings = self._lloyd_settings(self.settings.iterations, seed, last.objective / points.total)
        assign = self._assign(k, shortlist)
        run = lloyd(points, start.float(), assign, settings, labels=labels, moments=moments, go_on=go_on)
        if not go_on(run):
            return None
        return self._described(run, shortlist, cold=False)

    def _cold(self, k: int, seed: int) -> LloydRun:
        passes = (self.settings.cold_iterations or max(20, self.settings.iterations)) + 1
        settings, shortlist = self._lloyd_settings(passes, seed, self.gauges.spread), self._shortlist(k)
        run = best_of(self.points, k, self._assign(k, shortlist), settings, self.settings.restarts)
        run.shortlist = shortlist
        return run

    def _coarse(self, k: int, seed: int, finer: LloydRun, previous: ClusterSet | None, m: int) -> LloydRun:
        """A clustering from the finer one's prototypes, then `nested_passes` over the points."""
        points, passes = self.points, self.settings.nested_passes
        before = labels_before(previous, m, k, points.ids, points.total)
        start = None
        # keeps the numbers of the clusters
        if before is not None and starts_warm(self.settings, self.when.epoch):
            old = Moments.of(points, before.to(points.device), k)
            start = old.means()
            split_into_empty(start, old, seed)
        parents = coarse_of_fine(finer.centroids, finer.moments.sizes, k, seed=seed, start_KC=start)
        labels = parents.to(points.device)[finer.labels]
        moments = Moments.of(points, labels, k)
        means = moments.means().float()
        objective = moments.objective(means)
        shortlist = None
        if passes:
            shortlist = self._shortlist(k)
            settings = self._lloyd_settings(passes, seed, objective / points.total)
            assign = self._assign(k, shortlist)
            run = lloyd(points, means, assign, settings, labels=labels, moments=moments)
        else:
            run = LloydRun(means, labels, moments, [objective], [0])
        return self._described(run, shortlist, cold=start is None)

    def _described(self, run: LloydRun, shortlist: Shortlist | None, *, cold: bool) -> LloydRun:
        run.cold, run.shortlist = cold, shortlist
        run.first_change = run.changed[0] / self.points.total
        return run

    def _lloyd_settings(self, passes: int, seed: int, spread: float) -> LloydSettings:
        return LloydSettings(passes, seed, self.settings.spherical, spread)

    def _shortlist(self, k: int) -> Shortlist | None:
        large = 0 < self.settings.shortlist_from <= k
        on_cpu = self.points.device.type == "cpu" and not self.nearest.gpu
        return Shortlist(self.nearest) if large and on_cpu else None

    def _assign(self, k: int, shortlist: Shortlist | None) -> Assign:
        assign = shortlist or BruteForce(self.nearest)
        if self.settings.balance is None:
            return assign
        return capped(assign, self.nearest, max(1, math.ceil(self.settings.balance * self.points.total / k)))


def starts_warm(settings: EStepConfig, epoch: int) -> bool:
    """Whether the E-step before `epoch` may start warm: not at every `restart_every`-th, nor if it is off."""
    if settings.warm_start == "none":
        return False
    return not settings.restart_every or e_step_number(settings, epoch) % settings.restart_every != 0
