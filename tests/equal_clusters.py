"""Whether two E-steps brought the same."""

from __future__ import annotations

import torch

from pcl_ray.clustering import ClusterSet


def same(one: ClusterSet | None, other: ClusterSet | None) -> bool:
    """Whether prototypes, assignments and concentrations are equal, bit by bit."""
    assert one is not None
    assert other is not None
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.clusterings, other.clusterings, strict=True)
        for name in ("prototypes", "assignments", "concentration")
    )
