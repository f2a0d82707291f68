"""K, the numbers of clusters: as configured, or by a rule from the number of images."""

from __future__ import annotations

import math

from pcl_ray.config import NumClusters

# The rule of e_step.num_clusters = auto. It follows what others published for their data; what of it was
# measured here, and what was not, is in benchmarks/RESULTS.md.
_COARSEST = 1.0  # times √N
_FINER = (1, 2, 4)  # the paper's doubling
_IMAGES_A_CLUSTER = 10  # on average, at least: φ of a few images is noise


def resolve_num_clusters(num_clusters: NumClusters, num_images: int) -> tuple[int, ...]:
    """K as counts: counts stay, shares of N become counts, rounded; auto chooses by N."""
    if num_clusters == "auto":
        return _automatic(num_images)
    return tuple(round(k * num_images) if isinstance(k, float) else k for k in num_clusters)


def _automatic(num_images: int) -> tuple[int, ...]:
    """√N, 2·√N and 4·√N, without those that leave too few images a cluster; at least one clustering, of two
    clusters.
    """
    coarsest = _COARSEST * math.sqrt(num_images)
    most = num_images // _IMAGES_A_CLUSTER
    counts = [round(coarsest * times) for times in _FINER]
    return tuple(count for count in counts if 2 <= count <= most) or (max(2, most),)


def why_so_many(num_clusters: NumClusters, num_images: int) -> str:
    """The rule that chose the counts, in words; "" where they are configured."""
    if num_clusters != "auto":
        return ""
    left_out = len(_FINER) - len(_automatic(num_images))
    rule = f"auto: 1, 2 and 4 times √N of N = {num_images:,} images"
    if not left_out:
        return rule
    return f"{rule}, but at least {_IMAGES_A_CLUSTER} images a cluster on average"
