"""Whether this machine's shared memory holds what a run passes between its processes."""

from __future__ import annotations

import shutil
from pathlib import Path

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import ArrayImages
from pcl_ray.plan import RunPlan

_FOLDER = Path("/dev/shm")
_UNDER_WAY = 5 * 2**26  # bytes of features that a worker has on their way, at most


def shortage(plan: RunPlan, splits: DataSplits, folder: Path = _FOLDER) -> str:
    """A sentence where there is too little: Ray then keeps its objects in files, which is slower. Else ""."""
    needed = bytes_needed(plan, splits)
    if not folder.is_dir() or (free := shutil.disk_usage(folder).free) >= needed:
        return ""
    return (
        f"{folder} has {free / 1e6:.1f} MB free, and images, features and clusters take up to"
        f" {needed / 1e6:.1f} MB: Ray keeps them in files, which is slower (docker run --shm-size=…, shm_size"
        " in a compose file)"
    )


def bytes_needed(plan: RunPlan, splits: DataSplits) -> int:
    """What lies in Ray's store at the same time: images that are one array, features that are on their way,
    two clusterings.
    """
    parts = (splits.train, splits.holdout)
    images = sum(part.pixels.nbytes for part in parts if isinstance(part, ArrayImages))
    features = min(plan.feature_bytes, plan.world_size * _UNDER_WAY)
    return images + features + 2 * plan.assignment_bytes
