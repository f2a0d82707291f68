"""What a run would do, in words and numbers: `pcl-ray train … --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence

from pcl_ray.config import EStepConfig, RunConfig
from pcl_ray.data import datasets
from pcl_ray.plan import FILE_SOURCES, RunPlan, decoded_bytes, why_so_many
from pcl_ray.runs.request import Request
from pcl_ray.support.paths import CHECKED_IMAGES, home
from pcl_ray.support.text import binary_size, count


def show(request: Request) -> None:
    """Prints what a request would do."""
    config, plan = request.config, request.plan
    negatives = ", ".join("all" if count is None else str(count) for count in plan.negatives)
    parts = f" in {plan.micro_batches} parts" if plan.micro_batches > 1 else ""
    rows = {
        "images": f"{plan.num_images} to train on, {plan.num_holdout} held out",
        "where": _where_trained(config),
        "reading": _how_read(config, plan),
        "batch": f"{plan.global_batch} images a step, {plan.batch_per_worker} a worker{parts}",
        "steps": f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in {plan.epochs} epochs",
        "warm-up": f"{count(min(plan.warmup_epochs, plan.epochs), 'epoch')} of InfoNCE alone",
        "E-steps": _when_clustered(plan),
        "K": _how_many_clusters(config, plan),
        "r": f"{negatives} negative prototypes",
        "R": f"{plan.queue_size} keys in the queue",
        "evaluation": f"after epochs {_ranges([epoch + 1 for epoch in plan.evaluation_epochs])}",
        "clustering": _where_clustered(config, plan),
        "features": f"{binary_size(plan.feature_bytes)} in the E-step, {_features_from(config.e_step)}",
        "assignments": binary_size(plan.assignment_bytes),
        "queue": f"{binary_size(plan.queue_bytes)} a worker",
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    for line in datasets.preview(config.data, home() / CHECKED_IMAGES, plan.num_clusters):
        print(f"{'pictures':<12} {line}")
    for note in request.notes:
        print(f"{'note':<12} {note}")


def _where_trained(config: RunConfig) -> str:
    workers = config.resources.workers
    return f"{workers} Ray Train workers" if workers else "this process, without Ray"


def _how_many_clusters(config: RunConfig, plan: RunPlan) -> str:
    why = why_so_many(config.e_step.num_clusters, plan.num_images)
    return ", ".join(map(str, plan.num_clusters)) + (f" ({why})" if why else "")


def _when_clustered(plan: RunPlan) -> str:
    e_steps = [epoch + 1 for epoch in plan.e_step_epochs if epoch < plan.epochs]
    return f"before epochs {_ranges(e_steps)} and after the last" if e_steps else "never"


def _where_clustered(config: RunConfig, plan: RunPlan) -> str:
    e_step = config.e_step
    match plan.e_step_mode:
        case "single":
            where = "in one actor" if config.resources.workers else "in this process"
        case "distributed":
            where = f"in the {config.resources.workers} workers, each with the features it made"
        case "sharded":
            where = f"in {plan.e_step_shards} actors, each with a range of the images"
    start = f"cold at first, then {e_step.iterations} passes from the last {e_step.warm_start}"
    if e_step.warm_start == "none":
        start = "cold each time"
    overlap = "; while the next epoch trains" if e_step.overlap else ""
    return f"{plan.e_step_mode}: {where}; {start}{overlap}"


def _features_from(e_step: EStepConfig) -> str:
    if e_step.features == "fresh":
        return "from a pass over all images each time"
    if e_step.fresh_every:
        return f"from the M-step's momentum features, from a pass at every {e_step.fresh_every} E-steps"
    return "from the M-step's momentum features, after a first pass"


def _how_read(config: RunConfig, plan: RunPlan) -> str:
    """Where the images are, who decodes, how many threads compute."""
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)} a worker compute{'s' * (plan.threads == 1)}"
    if not plan.in_memory:
        loaders = f"{plan.loader_workers} loader processes a worker" if plan.loader_workers else ""
        decoders = loaders or "by the workers themselves"
        return f"files, decoded in every epoch, {decoders}; {threads}"
    if config.data.source not in FILE_SOURCES:
        return f"one array in memory; {threads}"
    size = binary_size(decoded_bytes(config, plan.num_images + plan.num_holdout))
    return f"one array in memory, decoded once, at most {plan.memory_side} px a side and {size}; {threads}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as `1-3, 5, 7-9`; long lists of single numbers are cut."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:4], "…", shown[-1]])
