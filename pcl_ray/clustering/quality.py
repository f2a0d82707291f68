"""Figures about a clustering that need no labels."""

from __future__ import annotations

import torch

from pcl_ray.clustering.types import Clustering


def quality(clustering: Clustering, previous: Clustering | None = None) -> dict[str, float]:
    """Sizes, concentrations and the normalised mutual information with the previous E-step's assignments.

    Keys: objective (mean squared distance an image), empty, singletons (counts), largest_share (of the
    images), size_p10/p50/p90 (images), phi_min/mean/max, phi_p10/p50/p90; with `previous` nmi_previous
    (0..1), and where K is the same drift (mean of 1 − cosine to the prototype of the same number) and
    objective_ratio (to the one before: it rises while features spread out, and jumps where something broke).
    """
    sizes, phi = clustering.sizes, clustering.concentration
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    size_p10, size_p50, size_p90 = sizes.double().quantile(shares).tolist()
    phi_p10, phi_p50, phi_p90 = phi.double().quantile(shares).tolist()
    figures = {
        "objective": clustering.objective / len(clustering.assignments),
        "empty": float((sizes == 0).sum()),
        "singletons": float((sizes == 1).sum()),
        "largest_share": float(sizes.max()) / len(clustering.assignments),
        "size_p10": size_p10,
        "size_p50": size_p50,
        "size_p90": size_p90,
        "phi_min": float(phi.min()),
        "phi_mean": float(phi.mean()),
        "phi_max": float(phi.max()),
        "phi_p10": phi_p10,
        "phi_p50": phi_p50,
        "phi_p90": phi_p90,
    }
    if previous is not None and len(previous.assignments) == len(clustering.assignments):
        from sklearn.metrics import normalized_mutual_info_score

        if previous.num_clusters == clustering.num_clusters:
            if previous.objective > 0:  # not nan
                figures["objective_ratio"] = clustering.objective / previous.objective
            figures["drift"] = 1 - float((previous.prototypes * clustering.prototypes).sum(dim=1).mean())
        figures["nmi_previous"] = float(
            normalized_mutual_info_score(previous.assignments.numpy(), clustering.assignments.numpy())
        )
    return figures
