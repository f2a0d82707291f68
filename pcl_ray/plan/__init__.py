"""What follows from a configuration, the number of images and the number of workers; and whether they fit
together. Imports neither torch nor numpy.
"""

from pcl_ray.plan.checks import check, check_alone, notes
from pcl_ray.plan.run_plan import RunPlan, make
from pcl_ray.plan.sizes import (
    FILE_SOURCES,
    SMALL_CROP_MIN,
    EStepMode,
    batches_ahead,
    decoded_bytes,
    in_memory,
    loader_workers,
    memory_side,
    negatives,
    resolve_num_clusters,
    small_crop_size,
)

__all__ = [
    "FILE_SOURCES",
    "SMALL_CROP_MIN",
    "EStepMode",
    "RunPlan",
    "batches_ahead",
    "check",
    "check_alone",
    "decoded_bytes",
    "in_memory",
    "loader_workers",
    "make",
    "memory_side",
    "negatives",
    "notes",
    "resolve_num_clusters",
    "small_crop_size",
]
