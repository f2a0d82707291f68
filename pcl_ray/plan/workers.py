"""How many workers a run may have."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pcl_ray.config import RunConfig
from pcl_ray.errors import Problem


def worker_counts(config: RunConfig) -> tuple[int, ...]:
    """The numbers of workers that the run may have, the most first: each divides a batch evenly."""
    resources, batch = config.resources, config.train.batch_size
    fewest = max(resources.fewest_workers, 1)
    return tuple(count for count in range(resources.workers, fewest - 1, -1) if batch % count == 0)


def worker_problems(config: RunConfig) -> Iterator[Problem]:
    """The mistakes in how many workers there are, and what each of them gets."""
    resources, batch = config.resources, config.train.batch_size
    workers = max(resources.workers, 1)
    if batch % workers:
        example = math.ceil(batch / workers) * workers
        yield Problem(
            "train.batch_size", batch, f"must be a multiple of resources.workers = {workers}, e.g. {example}"
        )
    elif batch // workers < 2:
        yield Problem(
            "train.batch_size",
            batch,
            f"gives each of the {workers} workers {batch // workers} image a step; at least {2 * workers} is"
            " needed",
        )
    if resources.workers and (resources.min_workers or 0) > resources.workers:
        yield Problem(
            "resources.min_workers",
            resources.min_workers,
            f"is more than resources.workers = {resources.workers}; lower it, or set it to null",
        )
    share = resources.gpus_per_worker
    if workers > 1 and 0 < share <= 0.5:
        yield Problem(
            "resources.gpus_per_worker",
            share,
            "NCCL takes one worker a GPU; more than 0.5 each, or fewer workers with larger batches",
        )


def worker_notes(config: RunConfig) -> Iterator[str]:
    """What is worth saying of a run that may go on with fewer workers."""
    resources, counts = config.resources, worker_counts(config)
    if resources.fewest_workers == resources.workers:
        return
    if len(counts) == 1:
        yield (
            f"resources.min_workers = {resources.min_workers}: only {resources.workers} workers divide a"
            f" batch of {config.train.batch_size} evenly, so the run cannot go on with fewer"
        )
        return
    among = ", ".join(map(str, counts))
    same_parts = all(resources.workers % count == 0 for count in counts) and config.train.micro_batch is None
    result = (
        "the result does not depend on how many there are"
        if same_parts or config.encoder.batch_norm == "sync"
        else "batch norm sees other parts of a batch with fewer, so the result depends on how many there are"
    )
    yield f"resources.workers: as many as there is room for, of {among}; {result}"
