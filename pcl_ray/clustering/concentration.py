"""The concentration φ of each prototype (paper, equation 12)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def concentration(
    distances_N: Tensor,
    assignments_N: Tensor,
    num_clusters: int,
    *,
    alpha: float = 10.0,
    temperature: float = 0.2,
    clip: tuple[float, float] = (10.0, 90.0),
    normalise: bool = True,
) -> Tensor:
    """φ = Σ_z ‖v'_z − c‖ / (Z · log(Z + α)) over the Z images of each cluster, [K] float32, finite and positive.

    distances_N: Euclidean distance of each image to its raw centroid. Clusters with one image or none take the largest φ; then all are clipped to
    the `clip` percentiles and, with `normalise`, scaled so that their mean is `temperature`. Where the definition gives 0 (all images of a cluster
    on one point) the smallest positive φ stands in, and `temperature` where there is none: q·c/φ would be infinite.
    """
    distances = torch.as_tensor(distances_N, dtype=torch.float64).cpu()
    assignments = torch.as_tensor(assignments_N, dtype=torch.long).cpu()
    sizes = torch.bincount(assignments, minlength=num_clusters)
    sums = torch.zeros(num_clusters, dtype=torch.float64).index_add_(0, assignments, distances)
    phi = sums / (sizes * torch.log(sizes + alpha)).clamp(min=1e-12)
    several = sizes > 1
    phi[~several] = phi[several].max() if several.any() else 0.0
    low, high = np.percentile(phi.numpy(), clip)
    phi = phi.clamp(float(low), float(high))
    positive = phi > 0
    if not positive.any():
        return torch.full((num_clusters,), temperature, dtype=torch.float32)
    phi[~positive] = phi[positive].min()
    if normalise:
        phi *= temperature / phi.mean()
    return phi.to(torch.float32)
