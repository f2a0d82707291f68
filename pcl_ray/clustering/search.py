"""The search for a usable clustering: from what the last E-step left or anew, checked, and tried once more
where it cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from pcl_ray.clustering import health
from pcl_ray.clustering.assign.nearest import BruteForce, Nearest
from pcl_ray.clustering.assign.shortlist import Shortlist
from pcl_ray.clustering.balance import capped
from pcl_ray.clustering.kmeans import best_of
from pcl_ray.clustering.lloyd import Assign, Run, distinct_rows, lloyd, split_into_empty
from pcl_ray.clustering.nested import coarse_of_fine
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.clustering.types import Clustering, ClusterSet
from pcl_ray.config import EStepConfig

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
    """For messages: the E-step before epoch `epoch` (from 0), with the encoder of global step `step`, where
    that is known.
    """

    epoch: int
    step: int | None = None

    def __str__(self) -> str:
        return f"before epoch {self.epoch + 1}" + (
            "" if self.step is None else f" (encoder of step {self.step})"
        )


def labels_before(
    previous: ClusterSet | None, m: int, num_clusters: int, ids: Tensor, total: int
) -> Tensor | None:
    """[n] the last E-step's labels of the images `ids` of `total`; None, and on all processes of a group
    alike, where there are none to go on from.
    """
    if previous is None or m >= len(previous.clusterings):
        return None
    old = previous.clusterings[m]
    if old.num_clusters != num_clusters or len(old.assignments) != total:
        return None
    return old.assignments[ids]


@dataclass(eq=False)
class Found:
    run: Run
    cold: bool
    shortlist: Shortlist | None
    changed: float  # share of the labels that the first pass of a warm start changed; 1 where cold
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Search:
    """k-means over the points of one E-step."""

    points: Points
    squares: Tensor  # [n]
    gauges: health.Gauges
    settings: EStepConfig
    when: When
    nearest: Nearest

    def all_of(self, counts: tuple[int, ...], seeds: list[int], previous: ClusterSet | None) -> list[Found]:
        """One clustering for each K, in their order."""
        found: dict[int, Found] = {}
        finer: Found | None = None
        for m in (
            sorted(range(len(counts)), key=lambda m: -counts[m])
            if self.settings.nested
            else range(len(counts))
        ):
            if (
                self.settings.nested
                and finer is not None
                and counts[m] < int((finer.run.moments.sizes > 0).sum())
            ):
                found[m] = self._checked(
                    counts[m],
                    lambda m=m, finer=finer: self._coarse(counts[m], seeds[m], finer, previous, m),
                    seeds[m],
                )
            else:
                found[m] = self._checked(
                    counts[m], lambda m=m: self._warm_or_cold(counts[m], seeds[m], previous, m), seeds[m]
                )
            finer = found[m]
        return [found[m] for m in range(len(counts))]

    def _checked(self, k: int, first: Callable[[], Found], seed: int) -> Found:
        """A usable clustering: the first try's, or that of one more cold run from other points. Raises
        Rejected where neither is.
        """
        found = first()
        if not (wrong := health.faults(found.run.moments, self.points.total)):
            return found
        self._refuse_too_few_distinct(k, found.run)
        again = self._cold(k, seed ^ 0x5EED)
        if still := health.faults(again.run.moments, self.points.total):
            raise Rejected(
                f"{self.when}: no usable clustering with K = {k}: {'; '.join(still)}", self.gauges.figures()
            )
        again.warnings.append(
            f"the first try could not be used ({'; '.join(wrong)}); clustered anew from other points"
        )
        return again

    def _refuse_too_few_distinct(self, k: int, run: Run) -> None:
        if not (run.moments.sizes == 0).any():
            return
        distinct = distinct_rows(self.points)
        if k > distinct:
            raise EStepRefused(
                f"{self.when}: {k} clusters were asked for, but only {distinct} of the {self.points.total}"
                " features differ; lower e_step.num_clusters, or look for duplicate images"
            )

    def _warm_or_cold(self, k: int, seed: int, previous: ClusterSet | None, m: int) -> Found:
        before = labels_before(previous, m, k, self.points.ids, self.points.total)
        if previous is None or before is None or not starts_warm(self.settings, self.when.epoch):
            return self._cold(k, seed)
        last = previous.clusterings[m].objective
        warm = self._warm(k, seed, previous.clusterings[m], before)
        if warm is not None and not warm.run.objective > WORSE * last:
            return warm
        cold = self._cold(k, seed)
        # bad luck, or the features have spread out, as they do early on: a second run tells
        if cold.run.objective > WORSE * last:
            cold = min(cold, self._cold(k, seed ^ 0x5EED), key=lambda found: found.run.objective)
        return cold

    def _warm(self, k: int, seed: int, last: Clustering, before: Tensor) -> Found | None:
        """None where the start turns out bad at the first pass."""
        points, shortlist = self.points, self._shortlist(k)
        labels, moments = before.to(points.device), None
        limit = WORSE * last.objective if math.isfinite(last.objective) else math.inf

        def go_on(run: Run) -> bool:
            return run.objective <= limit and (
                run.changed[0] <= UNSTEADY * points.total or self.settings.warm_start == "centroids"
            )

        if self.settings.warm_start == "labels":
            moments = Moments.of(points, labels, self.squares, k)
            start = moments.means()
            split_into_empty(start, moments, seed)
        elif last.centroids is None:
            return None
        else:
            start = last.centroids.to(points.device)
        known = labels if moments is not None else None
        run = self._lloyd(
            start.float(),
            seed,
            self.settings.iterations,
            shortlist,
            known,
            moments,
            last.objective / points.total,
            go_on,
        )
        return Found(run, False, shortlist, run.changed[0] / points.total) if go_on(run) else None

    def _cold(self, k: int, seed: int) -> Found:
        settings, shortlist = self.settings, self._shortlist(k)
        run = best_of(
            self.points,
            k,
            self._assign(k, shortlist),
            passes=(settings.cold_iterations or max(20, settings.iterations)) + 1,
            restarts=settings.restarts,
            seed=seed,
            squares=self.squares,
            spherical=settings.spherical,
            spread=self.gauges.spread,
        )
        return Found(run, True, shortlist, 1.0)

    def _coarse(self, k: int, seed: int, finer: Found, previous: ClusterSet | None, m: int) -> Found:
        """From the finer clustering's prototypes, then `nested_passes` over the points."""
        before = labels_before(previous, m, k, self.points.ids, self.points.total)
        start = None
        # keeps the numbers of the clusters
        if before is not None and starts_warm(self.settings, self.when.epoch):
            old = Moments.of(self.points, before.to(self.points.device), self.squares, k)
            start = old.means()
            split_into_empty(start, old, seed)
        parents = coarse_of_fine(finer.run.centroids, finer.run.moments.sizes, k, seed=seed, start_KC=start)
        labels = parents.to(self.points.device)[finer.run.labels]
        moments = Moments.of(self.points, labels, self.squares, k)
        means = moments.means().float()
        if not self.settings.nested_passes:
            return Found(
                Run(means, labels, moments, [moments.objective(means)], [0]), start is None, None, 0.0
            )
        shortlist = self._shortlist(k)
        run = self._lloyd(
            means,
            seed,
            self.settings.nested_passes,
            shortlist,
            labels,
            moments,
            moments.objective(means) / self.points.total,
        )
        return Found(run, start is None, shortlist, run.changed[0] / self.points.total)

    def _lloyd(
        self,
        start: Tensor,
        seed: int,
        passes: int,
        shortlist: Shortlist | None,
        labels: Tensor | None,
        moments: Moments | None,
        spread: float,
        go_on: Callable[[Run], bool] = lambda run: True,
    ) -> Run:
        return lloyd(
            self.points,
            start,
            self._assign(len(start), shortlist),
            passes=passes,
            seed=seed,
            squares=self.squares,
            labels=labels,
            moments=moments,
            spherical=self.settings.spherical,
            spread=spread,
            go_on=go_on,
        )

    def _shortlist(self, k: int) -> Shortlist | None:
        wanted = (
            0 < self.settings.shortlist_from <= k
            and self.points.device.type == "cpu"
            and not self.nearest.gpu
        )
        return Shortlist(self.nearest) if wanted else None

    def _assign(self, k: int, shortlist: Shortlist | None) -> Assign:
        assign = shortlist or BruteForce(self.nearest)
        if self.settings.balance is None:
            return assign
        return capped(assign, self.nearest, max(1, math.ceil(self.settings.balance * self.points.total / k)))


def starts_warm(settings: EStepConfig, epoch: int) -> bool:
    """Whether the E-step before `epoch` may begin with what the last one left: not with warm starts off, nor
    at every `restart_every`-th.
    """
    if settings.warm_start == "none":
        return False
    number = (epoch - settings.warmup_epochs) // settings.every_epochs
    return not settings.restart_every or number % settings.restart_every != 0
