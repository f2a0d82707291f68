"""What a run would do, in words and numbers: `pcl-ray train … --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence

from pcl_ray import config
from pcl_ray.plan import FILE_SOURCES, RunPlan, decoded_bytes
from pcl_ray.runs.request import Request
from pcl_ray.support.text import binary_size


def show(asked: Request) -> None:
    """Prints what `asked` would do."""
    plan = asked.plan
    negatives = ["all" if r is None else str(r) for r in plan.negatives]
    where = (
        f"{asked.config.resources.workers} Ray Train workers"
        if asked.config.resources.workers
        else "this process, without Ray"
    )
    e_steps = [epoch + 1 for epoch in plan.e_step_epochs if epoch < plan.epochs]
    before = f"before epochs {_ranges(e_steps)} and after the last" if e_steps else "never"
    rows = {
        "images": f"{plan.num_images} to train on, {plan.num_holdout} held out",
        "where": where,
        "reading": _how_read(asked.config, plan),
        "batch": (
            f"{plan.global_batch} images a step, {plan.batch_per_worker} a worker"
            + (f" in {plan.micro_batches} parts" * (plan.micro_batches > 1))
        ),
        "steps": f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in {plan.epochs} epochs",
        "warm-up": f"{min(plan.warmup_epochs, plan.epochs)} epochs of InfoNCE alone",
        "E-steps": before,
        "K": ", ".join(map(str, plan.num_clusters)),
        "r": f"{', '.join(negatives)} negative prototypes",
        "R": f"{plan.queue_size} keys in the queue",
        "evaluation": f"after epochs {_ranges([epoch + 1 for epoch in plan.evaluation_epochs])}",
        "clustering": _where_clustered(asked.config, plan),
        "features": f"{binary_size(plan.feature_bytes)} in the E-step, {_features_from(asked.config.e_step)}",
        "assignments": binary_size(plan.assignment_bytes),
        "queue": f"{binary_size(plan.queue_bytes)} a worker",
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")
    for note in asked.notes:
        print(f"{'note':<12} {note}")


def _where_clustered(settings: config.RunConfig, plan: RunPlan) -> str:
    e_step = settings.e_step
    match plan.e_step_mode:
        case "single":
            where = "in one actor" if settings.resources.workers else "in this process"
        case "distributed":
            where = f"in the {settings.resources.workers} workers, each with the features it made"
        case "sharded":
            where = f"in {plan.e_step_shards} actors, each with a range of the images"
    start = (
        "cold each time"
        if e_step.warm_start == "none"
        else f"cold at first, then {e_step.iterations} passes from the last {e_step.warm_start}"
    )
    overlap = "; while the next epoch trains" if e_step.overlap else ""
    return f"{plan.e_step_mode}: {where}; {start}{overlap}"


def _features_from(e_step: config.EStepConfig) -> str:
    if e_step.features == "fresh":
        return "from a pass over all images each time"
    return "from the M-step's momentum features" + (
        f", from a pass at every {e_step.fresh_every} E-steps"
        if e_step.fresh_every
        else ", after a first pass"
    )


def _how_read(settings: config.RunConfig, plan: RunPlan) -> str:
    """Where the images are, who decodes, how many threads compute."""
    decoders = (
        f"{plan.loader_workers} loader processes a worker"
        if plan.loader_workers
        else "by the workers themselves"
    )
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)} a worker compute{'s' * (plan.threads == 1)}"
    if not plan.in_memory:
        return f"files, decoded in every epoch, {decoders}; {threads}"
    held = "one array in memory"
    if settings.data.source in FILE_SOURCES:
        pixels = decoded_bytes(settings, plan.num_images + plan.num_holdout)
        held += f", decoded once, at most {plan.memory_side} px a side and {binary_size(pixels)}"
    return f"{held}; {threads}"


def _ranges(numbers: Sequence[int]) -> str:
    """1-3, 5, 7-9; long lists of single numbers are cut."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:4], "…", shown[-1]])
