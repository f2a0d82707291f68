"""The E-step: momentum features of all images, k-means for every K, a concentration φ for every prototype.

momentum encoder → features [N, C] → can they be clustered?
   └→ for each K: warm or cold k-means → can it be used? (if not: once more, cold)
        └→ prototypes (normalised centroids), φ (from the distances to the raw ones)

Everything runs on the features of one process together with its group (`clustering.group`): alone, or with
the processes that hold the rest. All of them take the same decisions from the same reduced numbers, and on
CPUs the result is the same bit by bit however the features are spread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.clustering import Clustering, ClusterSet, health
from pcl_ray.clustering.assign.nearest import Nearest, cpu_threads
from pcl_ray.clustering.concentration import concentration_of_sums
from pcl_ray.clustering.group import Group
from pcl_ray.clustering.kmeans import distances_to
from pcl_ray.clustering.lloyd import LloydRun
from pcl_ray.clustering.points import Points
from pcl_ray.clustering.search import Collapsed as Collapsed
from pcl_ray.clustering.search import EStepRefused as EStepRefused
from pcl_ray.clustering.search import Rejected as Rejected
from pcl_ray.clustering.search import Search, When, labels_before
from pcl_ray.clustering.types import PickledAsNumpy
from pcl_ray.config import EStepConfig
from pcl_ray.features import FeatureShard
from pcl_ray.model.encoder import Encoder
from pcl_ray.plan import resolve_num_clusters

_LARGEST_HALF = torch.finfo(torch.float16).max
Outcome = Literal["clustered", "collapsed", "rejected", "refused"]


@dataclass(frozen=True, eq=False)
class ShardInput:
    """The features that one process of a group clusters together with the others."""

    rows_nC: Tensor  # float32 or float16
    total: int  # images of the whole group
    ids: Tensor | None = None  # [n] int64, the images of the rows; None: all, in their order
    group: Group = field(default_factory=Group)


@dataclass(frozen=True, eq=False)
class GroupClustering(PickledAsNumpy):
    """One clustering but for the labels: the same on all processes of the group."""

    centroids: Tensor  # [K, C] float32, raw
    concentration: Tensor  # [K] float32
    valid: Tensor  # [K] bool
    objective: float
    figures: dict[str, float]


@dataclass(frozen=True, eq=False)
class ShardResult(PickledAsNumpy):
    """What one process gets out of an E-step, on the CPU."""

    ids: Tensor  # [n] int64, the images of its rows
    # [M, n] int32, the cluster of each row in each clustering; −1 for a row that could not be clustered and
    # had no cluster before. int32 is half the size to be sent, and K stays far below 2³¹
    labels: Tensor
    clusterings: tuple[GroupClustering, ...] = ()  # [M]
    figures: dict[str, float] = field(default_factory=dict)  # about the features
    warnings: tuple[str, ...] = ()
    outcome: Outcome = "clustered"
    reason: str = ""  # where the outcome is another


def merge_shards(results: Sequence[ShardResult], epoch: int, num_images: int) -> ClusterSet:
    """The clusters that epoch `epoch` trains with, from the results of all processes, of which the first with
    clusterings tells them. Raises ValueError where the results do not have as many rows as there are images.
    """
    arrived = sum(len(result.ids) for result in results)
    if arrived != num_images:
        raise ValueError(f"assignments of {arrived} images arrived, there are {num_images}")
    leader = next(result for result in results if result.clusterings)
    assignments = [torch.empty(num_images, dtype=torch.long) for _ in leader.clusterings]
    for result in results:
        for assigned, labels in zip(assignments, result.labels, strict=True):
            assigned[result.ids] = labels.long()
    pairs = zip(leader.clusterings, assignments, strict=True)
    return ClusterSet(epoch, tuple(_published(shared, assigned) for shared, assigned in pairs))


def _published(shared: GroupClustering, assignments: Tensor) -> Clustering:
    return Clustering(
        F.normalize(shared.centroids, dim=1),
        assignments,
        shared.concentration,
        shared.objective,
        shared.valid,
        torch.linalg.vector_norm(shared.centroids, dim=1),
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


@torch.no_grad()
def extract_with_backbone(
    encoder: Encoder, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, sample: np.ndarray
) -> tuple[FeatureShard, FeatureShard]:
    """`extract_features`, and from the same forward pass the backbone's features [n, D] float16 of the images
    `sample` [n], rising, which all have to come.

    Only these rows are held, as they come, as float16: a backbone has up to 2,048 numbers an image.
    """
    training = encoder.training
    encoder.eval()
    features, indices = [], []
    wanted = torch.from_numpy(sample)
    rows_nD: Tensor | None = None
    try:
        for views, ids in batches:
            of_backbone = encoder.backbone(views.to(device, non_blocking=True))
            features.append(encoder.project(of_backbone).float())
            indices.append(ids)
            if rows_nD is None:
                rows_nD = torch.zeros(len(wanted), of_backbone.shape[1], dtype=torch.float16, device=device)
            which = torch.isin(ids, wanted).nonzero().squeeze(1)
            if len(which):
                positions = torch.searchsorted(wanted, ids[which])
                rows = of_backbone[which.to(device)].float().clamp(-_LARGEST_HALF, _LARGEST_HALF)
                rows_nD[positions.to(device)] = rows.to(torch.float16)
    finally:
        encoder.train(training)
    if rows_nD is None:
        empty = FeatureShard(np.empty(0, np.int64), np.empty((0, 0), np.float32))
        return empty, empty
    shard = FeatureShard(torch.cat(indices).numpy(), torch.cat(features).cpu().numpy())
    return shard, FeatureShard(sample, rows_nD.cpu().numpy())


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
        ShardInput(rows, len(rows)),
        settings,
        When(epoch),
        temperature=temperature,
        seed=seed,
        previous=previous,
        gpu=gpu,
    )
    return merge_shards([result], epoch, len(rows))


def cluster_shard(
    shard: ShardInput,
    settings: EStepConfig,
    when: When,
    *,
    temperature: float,
    seed: int,
    previous: ClusterSet | None = None,
    gpu: bool = False,
) -> ShardResult:
    """`cluster` for one process's rows; every process of the group calls it with its own.

    Raises as `cluster` does, on all processes alike.
    """
    rows, total, group = shard.rows_nC, shard.total, shard.group
    rows = (rows if rows.dtype in (torch.float32, torch.float16) else rows.float()).contiguous()
    if gpu and settings.backend != "faiss" and torch.cuda.is_available():
        rows = rows.cuda()  # they stay there for all passes; faiss would copy them at each
    ids = torch.arange(len(rows)) if shard.ids is None else shard.ids
    counts = resolve_num_clusters(settings.num_clusters, total)
    # alone on its machine, or one of several that share it
    threads = settings.threads or (torch.get_num_threads() if group.size > 1 else os.cpu_count() or 1)
    with cpu_threads(threads):
        usable, warnings = _usable(rows, ids, total, when, group)
        if usable is None:
            points = Points.of(rows, ids, total=total, group=group)
        else:
            points = Points.of(rows[usable], ids[usable.cpu()], total=total, group=group)
        gauges = _checked_gauges(points, counts, settings, when)
        seeds = np.random.SeedSequence([seed, when.epoch]).generate_state(len(counts))
        backend = "faiss" if settings.backend == "auto" else settings.backend
        search = Search(points, gauges, settings, when, Nearest(backend, threads, gpu))
        clusterings, all_labels = [], []
        for m, run in enumerate(search.all_of(counts, [int(s) for s in seeds], previous)):
            clusterings.append(_with_concentration(points, run, settings, temperature))
            before = None
            if usable is not None and not run.cold:
                before = labels_before(previous, m, len(run.centroids), ids, total)
            all_labels.append(_with_dropped(run.labels, usable, before).to(torch.int32).cpu())
            texts = (*run.warnings, health.duplicates(run.moments, total))
            warnings += [f"{when}, clustering {m}: {text}" for text in texts if text]
    return ShardResult(ids, torch.stack(all_labels), tuple(clusterings), gauges.figures(), tuple(warnings))


def _checked_gauges(
    points: Points, counts: tuple[int, ...], settings: EStepConfig, when: When
) -> health.Gauges:
    """How spread out features are. Raises EStepRefused if fewer than clusters, Collapsed if collapsed."""
    if max(counts) > points.total:
        raise EStepRefused(
            f"{when}: {max(counts)} clusters need at least as many images, there are {points.total}"
        )
    gauges = health.gauges(points)
    reason = health.collapse(gauges, points.dim, cone=settings.collapse_cone, rank=settings.collapse_rank)
    if reason:
        advice = "try a lower optimizer.lr, a longer e_step.warmup_epochs, or a larger loss.queue_size"
        raise Collapsed(f"{when}: {reason}; {advice}", gauges.figures())
    return gauges


def _usable(
    rows: Tensor, ids: Tensor, total: int, when: When, group: Group
) -> tuple[Tensor | None, list[str]]:
    """[n] bool, the rows that take part, None for all; and a warning where a few do not. Raises EStepRefused
    where more than a few do not, and where images are missing.
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
        count, what = num_off, "zero vectors or far from length one"
        if num_broken:
            count, what = num_broken, "not finite"
        raise EStepRefused(
            f"{when}: the features of {count} of {total} images are {what}, the first at index {named}; "
            "the encoder has diverged, try a lower optimizer.lr or a longer optimizer.warmup_epochs"
        )
    text = (
        f"{when}: the features of {num_broken + num_off} of {total} images are not finite or far from length"
        f" one ({named}); they keep the clusters they had"
    )
    return ~(broken | off), [text]


def _with_dropped(labels: Tensor, usable: Tensor | None, before: Tensor | None) -> Tensor:
    """[n] labels of all rows; those that took no part keep their cluster from `before` (None: no cluster)."""
    if usable is None:
        return labels
    usable = usable.to(labels.device)
    if before is None:
        whole = torch.full((len(usable),), -1, device=labels.device)
    else:
        whole = before.to(labels.device)
    whole[usable] = labels
    return whole


def _with_concentration(
    points: Points, run: LloydRun, settings: EStepConfig, temperature: float
) -> GroupClustering:
    """The run's clustering with φ from the distances to the raw centroids, and the figures of the search."""
    sizes = run.moments.sizes
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
    figures = _search_figures(run) | hidden.figures()
    return GroupClustering(run.centroids.cpu(), phi, (sizes > 0).cpu(), run.objective, figures)


def _search_figures(run: LloydRun) -> dict[str, float]:
    figures = {
        "cold": float(run.cold),
        "passes": float(len(run.objectives)),
        "changed": run.first_change,
        "repaired": float(run.repaired),
    }
    if run.shortlist is not None and run.shortlist.agreements:
        figures["shortlist_agreement"] = min(run.shortlist.agreements)
        figures["shortlist_fallbacks"] = float(run.shortlist.fallbacks)
    return figures
