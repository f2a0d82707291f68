"""The E-step: momentum features of all images, k-means for every K, a concentration φ for every prototype.

momentum encoder → features [N, C] → can they be clustered? → for each K: warm or cold k-means → can it be
used? else once more, cold
                                                                           → prototypes (normalised
                                                                           centroids), φ (from the distances
                                                                           to the raw ones)

Everything runs on the features of one process together with its group (`clustering.group`): alone, or with
the processes that hold the rest. All of them take the same decisions from the same reduced numbers, and on
CPUs the result is the same bit by bit however the features are spread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.clustering import Clustering, ClusterSet, health
from pcl_ray.clustering.assign.nearest import Nearest, cpu_threads
from pcl_ray.clustering.concentration import Hidden, concentration_of_sums
from pcl_ray.clustering.group import Group
from pcl_ray.clustering.kmeans import distances_to
from pcl_ray.clustering.points import Points
from pcl_ray.clustering.search import Collapsed as Collapsed
from pcl_ray.clustering.search import EStepRefused as EStepRefused
from pcl_ray.clustering.search import Found, Search, When, labels_before
from pcl_ray.clustering.search import Rejected as Rejected
from pcl_ray.config import EStepConfig
from pcl_ray.features import FeatureShard
from pcl_ray.plan import resolve_num_clusters


@dataclass(eq=False)
class ShardClustering:
    """One clustering, as one process of the group has it: everything but `labels` is the same on all."""

    # [n] int64, of this process's rows; −1 for one that could not be clustered and had no cluster before
    labels: Tensor
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
                # copies: what comes out of Ray's store is read-only
                found[torch.tensor(ids)] = torch.tensor(labels[m]).long()
        return whole

    def stacked_labels(self) -> np.ndarray:
        """[M, n] int32, to be sent: half the size, and K stays far below 2³¹."""
        return torch.stack([c.labels for c in self.clusterings]).to(torch.int32).cpu().numpy()

    def cluster_set(self, epoch: int, assignments: list[Tensor]) -> ClusterSet:
        return ClusterSet(
            epoch,
            tuple(_published(c, labels) for c, labels in zip(self.clusterings, assignments, strict=True)),
        )


def _published(found: ShardClustering, assignments: Tensor) -> Clustering:
    centroids = found.centroids.cpu()
    norms = torch.linalg.vector_norm(centroids, dim=1)
    return Clustering(
        F.normalize(centroids, dim=1),
        assignments,
        found.concentration,
        found.objective,
        found.valid.cpu(),
        norms,
    )


@torch.no_grad()
def extract_features(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> FeatureShard:
    """Features of (views [b, channels, S, S], indices [b]) batches, with the encoder in evaluation mode."""
    training = encoder.training
    encoder.eval()
    features, indices = [], []
    try:
        for views, ids in batches:
            features.append(encoder(views.to(device, non_blocking=True)).float())
            indices.append(ids)
    finally:
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

    features_NC: momentum features in data set order, float32 or float16, L2-normalised. previous: the last
    E-step's result, to start from. gpu: cluster on this process's GPU, if it has one.
    Raises EStepRefused for features that are not finite or too few for K, Collapsed where they have
    collapsed, Rejected where no usable clustering was found.
    """
    rows = features_NC if isinstance(features_NC, Tensor) else torch.as_tensor(np.asarray(features_NC))
    result = cluster_shard(
        rows,
        None,
        settings,
        When(epoch),
        total=len(rows),
        temperature=temperature,
        seed=seed,
        previous=previous,
        gpu=gpu,
    )
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
    """`cluster` for the rows `ids` (None: all) of the `total` images; every process of the group calls it
    with its own.

    Raises as `cluster` does, on all processes alike.
    """
    rows = (
        rows_nC.contiguous()
        if rows_nC.dtype in (torch.float32, torch.float16)
        else rows_nC.float().contiguous()
    )
    if gpu and settings.backend != "faiss" and torch.cuda.is_available():
        rows = rows.cuda()  # they stay there for all passes; faiss would copy them at each
    ids = torch.arange(len(rows)) if ids is None else ids
    counts = resolve_num_clusters(settings.num_clusters, total)
    # alone on its machine, or one of several that share it
    threads = settings.threads or (
        torch.get_num_threads() if group is not None and group.size > 1 else os.cpu_count() or 1
    )
    with cpu_threads(threads):
        usable, warnings = _usable(rows, ids, total, when, group or Group())
        points = Points.of(
            rows if usable is None else rows[usable],
            ids if usable is None else ids[usable.cpu()],
            total=total,
            group=group,
        )
        if max(counts) > total:
            raise EStepRefused(
                f"{when}: {max(counts)} clusters need at least as many images, there are {total}"
            )
        gauges = health.gauges(points)
        if reason := health.collapse(
            gauges, points.dim, cone=settings.collapse_cone, rank=settings.collapse_rank
        ):
            advice = "try a lower optimizer.lr, a longer e_step.warmup_epochs, or a larger loss.queue_size"
            raise Collapsed(f"{when}: {reason}; {advice}", gauges.figures())
        seeds = np.random.SeedSequence([seed, when.epoch]).generate_state(len(counts))
        search = Search(
            points,
            points.squares(),
            gauges,
            settings,
            when,
            Nearest("faiss" if settings.backend == "auto" else settings.backend, threads, gpu),
        )
        found = search.all_of(counts, [int(s) for s in seeds], previous)
        clusterings = []
        for m, one in enumerate(found):
            result = _finished(points, one, settings, temperature)
            result.labels = _with_dropped(
                result.labels, usable, ids, None if one.cold else previous, m, len(result.centroids), total
            )
            warnings += [
                f"{when}, clustering {m}: {text}"
                for text in (*one.warnings, health.duplicates(one.run.moments, total))
                if text
            ]
            clusterings.append(result)
    return ShardResult(ids, clusterings, gauges.figures(), warnings)


def _usable(
    rows: Tensor, ids: Tensor, total: int, when: When, group: Group
) -> tuple[Tensor | None, list[str]]:
    """[n] bool, rows that take part, None for all; and a warning where a few do not. Raises EStepRefused for
    more than a few.
    """
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
        count, what = (
            (num_broken, "not finite") if num_broken else (num_off, "zero vectors or far from length one")
        )
        raise EStepRefused(
            f"{when}: the features of {count} of {total} images are {what}, the first at index {named}; "
            "the encoder has diverged, try a lower optimizer.lr or a longer optimizer.warmup_epochs"
        )
    text = (
        f"{when}: the features of {num_broken + num_off} of {total} images are not finite or far from length"
        f" one ({named}); they keep the clusters they had"
    )
    return ~(broken | off), [text]


def _with_dropped(
    labels: Tensor,
    usable: Tensor | None,
    ids: Tensor,
    previous: ClusterSet | None,
    m: int,
    num_clusters: int,
    total: int,
) -> Tensor:
    """Labels of all rows: those that took no part keep the cluster they had, where it still exists under its
    number (`previous` None: it does not).
    """
    if usable is None:
        return labels
    before = labels_before(previous, m, num_clusters, ids, total)
    whole = (
        before.to(labels.device) if before is not None else torch.full((len(ids),), -1, device=labels.device)
    )
    whole[usable.to(labels.device)] = labels
    return whole


def _finished(points: Points, found: Found, settings: EStepConfig, temperature: float) -> ShardClustering:
    """φ from the distances to the raw centroids, and the figures of the search."""
    run, sizes = found.run, found.run.moments.sizes
    distances = distances_to(points, run.centroids, run.labels)
    sums = points.sums(run.labels, distances, 2 * points.largest * math.sqrt(points.dim), len(sizes))
    phi, hidden = concentration_of_sums(
        sums,
        sizes,
        alpha=settings.alpha,
        temperature=temperature,
        clip=settings.clip,
        normalise=settings.normalise,
    )
    return ShardClustering(run.labels, run.centroids, phi, sizes > 0, run.objective, _figures(found, hidden))


def _figures(found: Found, hidden: Hidden) -> dict[str, float]:
    run = found.run
    figures = {
        "cold": float(found.cold),
        "passes": float(len(run.objectives)),
        "changed": found.changed,
        "repaired": float(run.repaired),
    }
    if found.shortlist is not None and found.shortlist.agreements:
        figures |= {
            "shortlist_agreement": min(found.shortlist.agreements),
            "shortlist_fallbacks": float(found.shortlist.fallbacks),
        }
    return figures | hidden.figures()
