"""What follows from a configuration, the number of images and the number of workers; and whether they fit
together. Imports neither torch nor numpy.
"""

from pcl_ray.plan.checks import check, check_alone, notes
from pcl_ray.plan.cluster_counts import resolve_num_clusters, why_so_many
from pcl_ray.plan.e_step_epochs import e_step_epochs, e_step_number
from pcl_ray.plan.fitting import Surroundings, fit
from pcl_ray.plan.run_plan import RunPlan, make, with_workers
from pcl_ray.plan.sizes import (
    FILE_SOURCES,
    SHARD_SOURCES,
    SMALL_CROP_MIN,
    EStepMode,
    batches_ahead,
    decoded_bytes,
    in_memory,
    loader_workers,
    memory_side,
    negatives,
    small_crop_size,
)
from pcl_ray.plan.workers import worker_counts

__all__ = [
    "FILE_SOURCES",
    "SHARD_SOURCES",
    "SMALL_CROP_MIN",
    "EStepMode",
    "RunPlan",
    "Surroundings",
    "batches_ahead",
    "check",
    "check_alone",
    "decoded_bytes",
    "e_step_epochs",
    "e_step_number",
    "fit",
    "in_memory",
    "loader_workers",
    "make",
    "memory_side",
    "negatives",
    "notes",
    "resolve_num_clusters",
    "small_crop_size",
    "why_so_many",
    "with_workers",
    "worker_counts",
]
