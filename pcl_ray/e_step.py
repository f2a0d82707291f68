"""The E-step: momentum features of all images, k-means for every K, a concentration φ for every prototype.

momentum encoder → features [N, C] → can they be clustered? → for each K: warm or cold k-means → can it be used? else once more, cold
                                                                           → prototypes (normalised centroids), φ (from the distances to the raw ones)

Everything runs on the features of one process together with its group (`clustering.group`): alone, or with the processes that hold the rest. All of
them take the same decisions from the same reduced numbers, and on CPUs the result is the same bit by bit however the features are spread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.clustering import Clustering, ClusterSet, health
from pcl_ray.clustering.balance import capped
from pcl_ray.clustering.concentration import Hidden, concentration_of_sums
from pcl_ray.clustering.group import Group
from pcl_ray.clustering.kmeans import best_of, distances_to
from pcl_ray.clustering.lloyd import Assign, Run, distinct_rows, lloyd, split_into_empty
from pcl_ray.clustering.nearest import BruteForce, Nearest, cpu_threads
from pcl_ray.clustering.nested import coarse_of_fine
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.clustering.shortlist import Shortlist
from pcl_ray.config import EStepConfig
from pcl_ray.features import FeatureShard
from pcl_ray.plan import resolve_num_clusters

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
    """For messages: the E-step before epoch `epoch` (from 0), with the encoder of global step `step`, where that is known."""

    epoch: int
    step: int | None = None

    def __str__(self) -> str:
        return f"before epoch {self.epoch + 1}" + ("" if self.step is None else f" (encoder of step {self.step})")


@dataclass(eq=False)
class ShardClustering:
    """One clustering, as one process of the group has it: everything but `labels` is the same on all."""

    labels: Tensor  # [n] int64, of this process's rows; −1 for one that could not be clustered and had no cluster before
    centroids: Tensor  # [K, C] float32, raw
    concentration: Tensor  # [K] float32
    valid: Tensor  # [K] bool
    objective: float
    figures: dict[str, float]


@dataclass(eq=False)
class ShardResult:
    """What one process gets out of an E-step."""

    ids: Tensor  # [n] int64, the images of its rows
    clusterings: list[ShardClustering]
    figures: dict[str, float]  # about the features
    warnings: list[str] = field(default_factory=list)

    def assignments(self, num_images: int, shards: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Tensor]:
        """[N] int64 for each clustering, from (ids [n], labels [M, n]) of all processes."""
        whole = [torch.empty(num_images, dtype=torch.long) for _ in self.clusterings]
        for ids, labels in shards:
            for m, found in enumerate(whole):
                found[torch.tensor(ids)] = torch.tensor(labels[m]).long()  # copies: what comes out of Ray's store is read-only
        return whole

    def stacked_labels(self) -> np.ndarray:
        """[M, n] int32, to be sent: half the size, and K stays far below 2³¹."""
        return torch.stack([c.labels for c in self.clusterings]).to(torch.int32).cpu().numpy()

    def cluster_set(self, epoch: int, assignments: list[Tensor]) -> ClusterSet:
        return ClusterSet(epoch, tuple(_published(c, labels) for c, labels in zip(self.clusterings, assignments, strict=True)))


def _published(found: ShardClustering, assignments: Tensor) -> Clustering:
    centroids = found.centroids.cpu()
    norms = torch.linalg.vector_norm(centroids, dim=1)
    return Clustering(F.normalize(centroids, dim=1), assignments, found.concentration, found.objective, found.valid.cpu(), norms)


@torch.no_grad()
def extract_features(encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> FeatureShard:
    """Features of (views [b, channels, S, S], indices [b]) batches, with the encoder in evaluation mode."""
    training = encoder.training
    encoder.eval()
    features, indices = [], []
    for views, ids in batches:
        features.append(encoder(views.to(device, non_blocking=True)).float())
        indices.append(ids)
    encoder.train(training)
    if not features:
        return FeatureShard(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return FeatureShard(torch.cat(indices).numpy(), torch.cat(features).cpu().numpy())


def cluster(
    features_NC: Tensor | np.ndarray,
    settings: EStepConfig,
    *,
    epoch: int,
    temperature: float,
    seed: int,
    previous: ClusterSet | None = None,
    gpu: bool = False,
) -> ClusterSet:
    """The clusterings that epoch `epoch` trains with, one for each of `settings.num_clusters`.

    features_NC: momentum features in data set order, float32 or float16, L2-normalised. previous: the last E-step's result, to start from.
    gpu: cluster on this process's GPU, if it has one.
    Raises EStepRefused for features that are not finite or too few for K, Collapsed where they have collapsed, Rejected where no usable clustering was found.
    """
    rows = features_NC if isinstance(features_NC, Tensor) else torch.as_tensor(np.asarray(features_NC))
    result = cluster_shard(rows, None, settings, When(epoch), total=len(rows), temperature=temperature, seed=seed, previous=previous, gpu=gpu)
    return result.cluster_set(epoch, [c.labels.cpu() for c in result.clusterings])


def cluster_shard(
    rows_nC: Tensor,
    ids: Tensor | None,
    settings: EStepConfig,
    when: When,
    *,
    total: int,
    temperature: float,
    seed: int,
    previous: ClusterSet | None = None,
    group: Group | None = None,
    gpu: bool = False,
) -> ShardResult:
    """`cluster` for the rows `ids` (None: all) of the `total` images; every process of the group calls it with its own.

    Raises as `cluster` does, on all processes alike.
    """
    rows = rows_nC.contiguous() if rows_nC.dtype in (torch.float32, torch.float16) else rows_nC.float().contiguous()
    if gpu and settings.backend != "faiss" and torch.cuda.is_available():
        rows = rows.cuda()  # they stay there for all passes; faiss would copy them at each
    ids = torch.arange(len(rows)) if ids is None else ids
    counts = resolve_num_clusters(settings.num_clusters, total)
    # alone on its machine, or one of several that share it
    threads = settings.threads or (torch.get_num_threads() if group is not None and group.size > 1 else os.cpu_count() or 1)
    with cpu_threads(threads):
        usable, warnings = _usable(rows, ids, total, when, group or Group())
        points = Points.of(rows if usable is None else rows[usable], ids if usable is None else ids[usable.cpu()], total=total, group=group)
        if max(counts) > total:
            raise EStepRefused(f"{when}: {max(counts)} clusters need at least as many images, there are {total}")
        gauges = health.gauges(points)
        if reason := health.collapse(gauges, points.dim, cone=settings.collapse_cone, rank=settings.collapse_rank):
            advice = "try a lower optimizer.lr, a longer e_step.warmup_epochs, or a larger loss.queue_size"
            raise Collapsed(f"{when}: {reason}; {advice}", gauges.figures())
        seeds = np.random.SeedSequence([seed, when.epoch]).generate_state(len(counts))
        search = _Search(points, points.squares(), gauges, settings, when, Nearest("faiss" if settings.backend == "auto" else settings.backend, threads, gpu))
        found = search.all_of(counts, [int(s) for s in seeds], previous)
        clusterings = []
        for m, one in enumerate(found):
            result = _finished(points, one, settings, temperature)
            result.labels = _with_dropped(result.labels, usable, ids, None if one.cold else previous, m, len(result.centroids), total)
            warnings += [f"{when}, clustering {m}: {text}" for text in (*one.warnings, health.duplicates(one.run.moments, total)) if text]
            clusterings.append(result)
    return ShardResult(ids, clusterings, gauges.figures(), warnings)


def _usable(rows: Tensor, ids: Tensor, total: int, when: When, group: Group) -> tuple[Tensor | None, list[str]]:
    """[n] bool, rows that take part, None for all; and a warning where a few do not. Raises EStepRefused for more than a few."""
    broken, off = health.unusable(rows)
    counts = torch.tensor([int(broken.sum()), int(off.sum()), len(rows)])
    group.sum(counts)
    num_broken, num_off, arrived = counts.tolist()
    if arrived != total:
        raise EStepRefused(f"{when}: features of {arrived} images arrived, there are {total}")
    if not num_broken + num_off:
        return None, []
    few = num_broken + num_off <= health.FEW * total
    meant = broken if num_broken and not few else broken | off
    named = group.gather(ids[meant.cpu()].sort().values[:5]).sort().values[:5].tolist()
    if not few:
        count, what = (num_broken, "not finite") if num_broken else (num_off, "zero vectors or far from length one")
        raise EStepRefused(
            f"{when}: the features of {count} of {total} images are {what}, the first at index {named}; "
            "the encoder has diverged, try a lower optimizer.lr or a longer optimizer.warmup_epochs"
        )
    text = f"{when}: the features of {num_broken + num_off} of {total} images are not finite or far from length one ({named}); they keep the clusters they had"
    return ~(broken | off), [text]


def _with_dropped(labels: Tensor, usable: Tensor | None, ids: Tensor, previous: ClusterSet | None, m: int, num_clusters: int, total: int) -> Tensor:
    """Labels of all rows: those that took no part keep the cluster they had, where it still exists under its number (`previous` None: it does not)."""
    if usable is None:
        return labels
    before = _labels_before(previous, m, num_clusters, ids, total)
    whole = before.to(labels.device) if before is not None else torch.full((len(ids),), -1, device=labels.device)
    whole[usable.to(labels.device)] = labels
    return whole


def _labels_before(previous: ClusterSet | None, m: int, num_clusters: int, ids: Tensor, total: int) -> Tensor | None:
    """[n] the last E-step's labels of the images `ids` of `total`; None, and on all processes of a group alike, where there are none to go on from."""
    if previous is None or m >= len(previous.clusterings):
        return None
    old = previous.clusterings[m]
    if old.num_clusters != num_clusters or len(old.assignments) != total:
        return None
    return old.assignments[ids]


@dataclass(eq=False)
class _Found:
    run: Run
    cold: bool
    shortlist: Shortlist | None
    changed: float  # share of the labels that the first pass of a warm start changed; 1 where cold
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Search:
    """k-means over the points of one E-step."""

    points: Points
    squares: Tensor  # [n]
    gauges: health.Gauges
    settings: EStepConfig
    when: When
    nearest: Nearest

    def all_of(self, counts: tuple[int, ...], seeds: list[int], previous: ClusterSet | None) -> list[_Found]:
        """One clustering for each K, in their order."""
        found: dict[int, _Found] = {}
        finer: _Found | None = None
        for m in sorted(range(len(counts)), key=lambda m: -counts[m]) if self.settings.nested else range(len(counts)):
            if self.settings.nested and finer is not None and counts[m] < len(finer.run.centroids):
                found[m] = self._checked(counts[m], lambda m=m, finer=finer: self._coarse(counts[m], seeds[m], finer, previous, m), seeds[m])
            else:
                found[m] = self._checked(counts[m], lambda m=m: self._warm_or_cold(counts[m], seeds[m], previous, m), seeds[m])
            finer = found[m]
        return [found[m] for m in range(len(counts))]

    def _checked(self, k: int, first: Callable[[], _Found], seed: int) -> _Found:
        """A usable clustering: the first try's, or that of one more cold run from other points. Raises Rejected where neither is."""
        found = first()
        if not (wrong := health.faults(found.run.moments, self.points.total)):
            return found
        self._refuse_too_few_distinct(k, found.run)
        again = self._cold(k, seed ^ 0x5EED)
        if still := health.faults(again.run.moments, self.points.total):
            raise Rejected(f"{self.when}: no usable clustering with K = {k}: {'; '.join(still)}", self.gauges.figures())
        again.warnings.append(f"the first try could not be used ({'; '.join(wrong)}); clustered anew from other points")
        return again

    def _refuse_too_few_distinct(self, k: int, run: Run) -> None:
        if not (run.moments.sizes == 0).any():
            return
        distinct = distinct_rows(self.points)
        if k > distinct:
            raise EStepRefused(
                f"{self.when}: {k} clusters were asked for, but only {distinct} of the {self.points.total} features differ; "
                "lower e_step.num_clusters, or look for duplicate images"
            )

    def _warm_or_cold(self, k: int, seed: int, previous: ClusterSet | None, m: int) -> _Found:
        before = _labels_before(previous, m, k, self.points.ids, self.points.total)
        if previous is None or before is None or not _starts_warm(self.settings, self.when.epoch):
            return self._cold(k, seed)
        last = previous.clusterings[m].objective
        warm = self._warm(k, seed, previous.clusterings[m], before)
        if warm is not None and not warm.run.objective > WORSE * last:
            return warm
        cold = self._cold(k, seed)
        if cold.run.objective > WORSE * last:  # bad luck, or the features have spread out, as they do early on: a second run tells
            cold = min(cold, self._cold(k, seed ^ 0x5EED), key=lambda found: found.run.objective)
        return cold

    def _warm(self, k: int, seed: int, last: Clustering, before: Tensor) -> _Found | None:
        """None where the start turns out bad at the first pass."""
        points, shortlist = self.points, self._shortlist(k)
        labels, moments = before.to(points.device), None
        limit = WORSE * last.objective if math.isfinite(last.objective) else math.inf

        def go_on(run: Run) -> bool:
            return run.objective <= limit and (run.changed[0] <= UNSTEADY * points.total or self.settings.warm_start == "centroids")

        if self.settings.warm_start == "labels":
            moments = Moments.of(points, labels, self.squares, k)
            start = moments.means()
            split_into_empty(start, moments, seed)
        elif last.centroids is None:
            return None
        else:
            start = last.centroids.to(points.device)
        known = labels if moments is not None else None
        run = self._lloyd(start.float(), seed, self.settings.iterations, shortlist, known, moments, last.objective / points.total, go_on)
        return _Found(run, False, shortlist, run.changed[0] / points.total) if go_on(run) else None

    def _cold(self, k: int, seed: int) -> _Found:
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
        return _Found(run, True, shortlist, 1.0)

    def _coarse(self, k: int, seed: int, finer: _Found, previous: ClusterSet | None, m: int) -> _Found:
        """From the finer clustering's prototypes, then `nested_passes` over the points."""
        before = _labels_before(previous, m, k, self.points.ids, self.points.total)
        start = None
        if before is not None and _starts_warm(self.settings, self.when.epoch):  # keeps the numbers of the clusters
            old = Moments.of(self.points, before.to(self.points.device), self.squares, k)
            start = old.means()
            split_into_empty(start, old, seed)
        parents = coarse_of_fine(finer.run.centroids, finer.run.moments.sizes, k, seed=seed, start_KC=start)
        labels = parents.to(self.points.device)[finer.run.labels]
        moments = Moments.of(self.points, labels, self.squares, k)
        means = moments.means().float()
        if not self.settings.nested_passes:
            return _Found(Run(means, labels, moments, [moments.objective(means)], [0]), start is None, None, 0.0)
        shortlist = self._shortlist(k)
        run = self._lloyd(means, seed, self.settings.nested_passes, shortlist, labels, moments, moments.objective(means) / self.points.total)
        return _Found(run, start is None, shortlist, run.changed[0] / self.points.total)

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
        wanted = 0 < self.settings.shortlist_from <= k and self.points.device.type == "cpu" and not self.nearest.gpu
        return Shortlist(self.nearest) if wanted else None

    def _assign(self, k: int, shortlist: Shortlist | None) -> Assign:
        assign = shortlist or BruteForce(self.nearest)
        if self.settings.balance is None:
            return assign
        return capped(assign, self.nearest, max(1, math.ceil(self.settings.balance * self.points.total / k)))


def _starts_warm(settings: EStepConfig, epoch: int) -> bool:
    """Whether the E-step before `epoch` may begin with what the last one left: not with warm starts off, nor at every `restart_every`-th."""
    if settings.warm_start == "none":
        return False
    number = (epoch - settings.warmup_epochs) // settings.every_epochs
    return not settings.restart_every or number % settings.restart_every != 0


def _finished(points: Points, found: _Found, settings: EStepConfig, temperature: float) -> ShardClustering:
    """φ from the distances to the raw centroids, and the figures of the search."""
    run, sizes = found.run, found.run.moments.sizes
    distances = distances_to(points, run.centroids, run.labels)
    sums = points.sums(run.labels, distances, 2 * points.largest * math.sqrt(points.dim), len(sizes))
    phi, hidden = concentration_of_sums(sums, sizes, alpha=settings.alpha, temperature=temperature, clip=settings.clip, normalise=settings.normalise)
    return ShardClustering(run.labels, run.centroids, phi, sizes > 0, run.objective, _figures(found, hidden))


def _figures(found: _Found, hidden: Hidden) -> dict[str, float]:
    run = found.run
    figures = {"cold": float(found.cold), "passes": float(len(run.objectives)), "changed": found.changed, "repaired": float(run.repaired)}
    if found.shortlist is not None and found.shortlist.agreements:
        figures |= {"shortlist_agreement": min(found.shortlist.agreements), "shortlist_fallbacks": float(found.shortlist.fallbacks)}
    return figures | hidden.figures()
