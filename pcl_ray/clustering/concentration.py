"""The concentration φ of each prototype (paper, equation 12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """What clipping and stand-ins hide of the φ of a clustering: they make a collapsed one look healthy."""

    raw_p10: float  # percentiles of φ before clipping and scaling, of the clusters with several images
    raw_p50: float
    raw_p90: float
    imputed: int  # clusters with one image or none, which take the largest φ
    zeros: int  # clusters whose images lie on one point
    clipped: float  # share of the K values that clipping changed

    def figures(self) -> dict[str, float]:
        """Keys phi_raw_p10/p50/p90, phi_imputed, phi_zeros (counts), phi_clipped (share)."""
        return {
            "phi_raw_p10": self.raw_p10,
            "phi_raw_p50": self.raw_p50,
            "phi_raw_p90": self.raw_p90,
            "phi_imputed": float(self.imputed),
            "phi_zeros": float(self.zeros),
            "phi_clipped": self.clipped,
        }


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
    """φ = Σ_z ‖v'_z − c‖ / (Z · log(Z + α)) over a cluster's Z images, [K] float32, finite and positive.

    distances_N: Euclidean distance of each image to its raw centroid. Clusters with one image or none take
    the largest φ; then all are clipped to the `clip` percentiles and, with `normalise`, scaled so that their
    mean is `temperature`. Where the definition gives 0 (all images of a cluster on one point) the smallest
    positive φ stands in, and `temperature` where there is none: q·c/φ would be infinite.
    """
    distances = torch.as_tensor(distances_N, dtype=torch.float64).cpu()
    assignments = torch.as_tensor(assignments_N, dtype=torch.long).cpu()
    sizes = torch.bincount(assignments, minlength=num_clusters)
    sums = torch.zeros(num_clusters, dtype=torch.float64).index_add_(0, assignments, distances)
    return concentration_of_sums(
        sums, sizes, alpha=alpha, temperature=temperature, clip=clip, normalise=normalise
    )[0]


def concentration_of_sums(
    distances_K: Tensor,
    sizes_K: Tensor,
    *,
    alpha: float,
    temperature: float,
    clip: tuple[float, float],
    normalise: bool,
) -> tuple[Tensor, Hidden]:
    """`concentration` from distance sums [K] float64 and sizes [K], which processes can add; and warnings."""
    sizes = sizes_K.cpu()
    phi = distances_K.cpu() / (sizes * torch.log(sizes + alpha)).clamp(min=1e-12)
    several = sizes > 1
    raw = phi[several].numpy()
    p10, p50, p90 = (float(np.percentile(raw, at)) if len(raw) else 0.0 for at in (10, 50, 90))
    phi[~several] = phi[several].max() if several.any() else 0.0
    low, high = np.percentile(phi.numpy(), clip)
    clipped = float(((phi < low) | (phi > high)).double().mean())
    hidden = Hidden(p10, p50, p90, int((~several).sum()), int((raw == 0).sum()), clipped)
    phi = phi.clamp(float(low), float(high))
    positive = phi > 0
    if not positive.any():
        return torch.full((len(phi),), temperature, dtype=torch.float32), hidden
    phi[~positive] = phi[positive].min()
    if normalise:
        phi *= temperature / phi.mean()
    return phi.to(torch.float32), hidden
