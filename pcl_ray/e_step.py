"""The E-step: momentum features of all images, k-means for every K, a concentration φ for every prototype.

momentum encoder → features [N, C] → checks → for each K: k-means → raw centroids, assignments, distances
                                                 → prototypes (normalised centroids), φ (from the distances to the raw ones) → ClusterSet
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.clustering import Clustering, ClusterSet, concentration, kmeans
from pcl_ray.config import EStepConfig
from pcl_ray.features import FeatureShard
from pcl_ray.plan import resolve_num_clusters

# Mean squared distance of unit features to their mean below which nothing is left to cluster: all images sit on one point.
COLLAPSED = 1e-4


class EStepRefused(ValueError):
    """The features cannot be clustered. The message says why and what to try."""


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

    features_NC: momentum features in data set order, L2-normalised. `previous`: the last E-step's result; no setting starts from it yet.
    Raises EStepRefused for features that are not finite, that have collapsed, or that are too few for K.
    """
    features = torch.as_tensor(np.asarray(features_NC), dtype=torch.float32) if isinstance(features_NC, np.ndarray) else features_NC.float().cpu()
    counts = resolve_num_clusters(settings.num_clusters, len(features))
    _check(features, counts, epoch)
    seeds = np.random.SeedSequence([seed, epoch]).generate_state(len(counts)) >> 1  # faiss takes signed 32-bit seeds
    clusterings = []
    for k, run_seed in zip(counts, seeds, strict=True):
        found = kmeans(
            features,
            k,
            seed=int(run_seed),
            iterations=settings.iterations,
            restarts=settings.restarts,
            spherical=settings.spherical,
            threads=settings.threads,
            gpu=gpu,
        )
        phi = concentration(
            found.distances,
            found.assignments,
            k,
            alpha=settings.alpha,
            temperature=temperature,
            clip=settings.clip,
            normalise=settings.normalise,
        )
        clusterings.append(Clustering(F.normalize(found.centroids, dim=1), found.assignments, phi, found.objective))
    return ClusterSet(epoch, tuple(clusterings))


def _check(features: Tensor, counts: tuple[int, ...], epoch: int) -> None:
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise EStepRefused(
            f"before epoch {epoch + 1}: the features of {len(bad)} of {len(features)} images are not finite, the first at index {bad[:5].tolist()}; "
            "the encoder has diverged, try a lower optimizer.lr or a longer optimizer.warmup_epochs"
        )
    spread = float((features - features.mean(dim=0)).square().sum(dim=1).mean())
    if spread < COLLAPSED:
        raise EStepRefused(
            f"before epoch {epoch + 1}: the features have collapsed onto one point (mean squared distance to their mean {spread:.1e}); "
            "try a lower optimizer.lr, a longer e_step.warmup_epochs, or a larger loss.queue_size"
        )
    largest = max(counts)
    if largest > len(features):
        raise EStepRefused(f"before epoch {epoch + 1}: {largest} clusters need at least as many images, there are {len(features)}")
    distinct = _distinct_rows(features)
    if largest > distinct:
        raise EStepRefused(
            f"before epoch {epoch + 1}: {largest} clusters were asked for, but only {distinct} of the {len(features)} features differ; "
            "lower e_step.num_clusters, or look for duplicate images"
        )


def _distinct_rows(features: Tensor) -> int:
    """How many rows differ. Rows are compared by one random float64 projection each: sorting N numbers instead of N vectors."""
    direction = torch.randn(features.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return len(torch.unique(torch.cat([chunk.double() @ direction for chunk in features.split(65536)])))
