"""What a sweep would do, in words and numbers: `pcl-ray sweep … --dry-run`."""

from __future__ import annotations

import os

from pcl_ray.on_ray.reserving import bundles
from pcl_ray.on_ray.reserving.bundles import Bundle
from pcl_ray.runs.request import gpus_here
from pcl_ray.support.redaction import scrubbed
from pcl_ray.sweep import warm_ups
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.space import search, spaces
from pcl_ray.sweep.trial_point import POINT, point_of


def show(request: SweepRequest) -> None:
    """Prints it. Asks the cluster that RAY_ADDRESS names how large it is; starts no Ray of its own."""
    space, settings = request.space, request.settings
    size = spaces.size(space)
    trials = search.num_trials(space, settings, request.base, request.recipe_point)
    count = f"{trials}"
    if settings.seeds > 1:
        count += f": {trials // settings.seeds} configurations, {settings.seeds} seeds each"
    if request.recipe_point is not None:
        count += ", the recipe's own values among them (sweep.with_recipe)"
    nodes, where = _nodes(request)
    fits = bundles.fitting(_trial(request), nodes)
    at_a_time = min(fits, settings.concurrency or fits)
    rows = [
        ("space", f"{space.name}, on recipe {space.base}"),
        *((f"  {name}", words) for name, words in spaces.described(space)),
        ("size", f"{size} combinations" if size is not None else "continuous"),
        ("search", f"{search.method(space, settings)}, scheduler {settings.scheduler}" + _grace(request)),
        ("trials", count),
        ("at a time", f"{at_a_time} on {where}"),
        ("each trial", _each(request)),
        ("objective", settings.objective or space.objective or "eval/knn_top1 with labels, else eval/rankme"),
        ("warm-up", _warmups(request, trials)),
        ("device time", _device_time(request, trials, at_a_time)),
    ]
    for name, value in rows:
        print(f"{name:<24} {scrubbed(value)}")
    for note in request.notes:
        print(f"{'note':<24} {note}")


def _trial(request: SweepRequest) -> list[Bundle]:
    return bundles.trial_bundles(request.base.resources, request.plan.e_step_shards)


def _nodes(request: SweepRequest) -> tuple[list[dict[str, float]], str]:
    """The nodes that trials will run on, and their description."""
    if not os.environ.get("RAY_ADDRESS"):
        cpus = int(bundles.total(_trial(request), "CPU") + 0.999)
        node = {"CPU": float(max(os.cpu_count() or 1, cpus)), "GPU": float(gpus_here())}
        return [node], f"this machine ({node['CPU']:g} CPUs, {node['GPU']:g} GPUs)"
    import ray

    from pcl_ray.on_ray.connection import connected

    with connected(0):
        nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return nodes, f"the cluster of {len(nodes)} nodes at {os.environ['RAY_ADDRESS']}"


def _grace(request: SweepRequest) -> str:
    settings = request.settings
    if settings.scheduler == "none":
        return ""
    grace = search.grace_epochs(request.base)
    text = f"; none is stopped before epoch {grace} (warm-up and two E-steps)"
    if settings.scheduler == "pbt":
        every = search.perturb_epochs(settings, request.base)
        text = f"; members compared every {every} epochs from {grace} on"
    return text


def _each(request: SweepRequest) -> str:
    resources, epochs = request.base.resources, request.plan.epochs
    if not resources.workers:
        gpu = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
        return (
            f"{epochs} epochs in one process with {resources.cpus_per_worker:g}"
            f" CPU{'s' * (resources.cpus_per_worker > 1)}{gpu}"
        )
    trial = _trial(request)
    return (
        f"{epochs} epochs with {resources.workers} workers and an E-step actor, together"
        f" {bundles.total(trial, 'GPU'):g} GPUs and {bundles.total(trial, 'CPU'):g} CPUs"
    )


def _groups(request: SweepRequest) -> int | None:
    """Different warm-ups among the trials; None where they are not known beforehand."""
    points = search.points(request.space, request.settings, request.base, request.recipe_point)
    if points is None:
        return None
    configs = [point_of({POINT: point}, request.base.seed).config(request.base) for point in points]
    return len({warm_ups.key_of(config) for config in configs})


def _warmups(request: SweepRequest, trials: int) -> str:
    if not warm_ups.exists(request.base):
        return "none"
    epochs = f"{request.base.e_step.warmup_epochs} of {request.base.train.epochs} epochs"
    if not request.settings.shared_warmup:
        return f"{epochs}, trained by every trial (sweep.shared_warmup = false)"
    groups = _groups(request)
    if groups is None:
        return (
            f"{epochs}, shared by trials that are alike until then; sweep.temperature_levels makes that"
            " likelier"
        )
    return f"{epochs}, trained {groups} times for {trials} trials"


def _device_time(request: SweepRequest, trials: int, at_a_time: int) -> str:
    from pcl_ray.sweep.estimate import measure  # torch

    cost = measure(request.base)
    if cost is None:
        return "not estimated: the trials are to have GPUs, and this machine has none to time a few steps on"
    plan, shared = request.plan, 0
    if request.settings.shared_warmup and warm_ups.exists(request.base):
        shared = trials - (_groups(request) or trials)
    whole = cost.of_run(plan, plan.epochs)
    total = trials * whole - shared * (whole - cost.of_run(plan, plan.epochs - plan.warmup_epochs))
    at_most = "at most " if request.settings.scheduler in ("asha", "median") else "about "
    clock = total / max(min(at_a_time, trials), 1)
    return (
        f"{at_most}{total / 3600:.2f} device hours, {clock / 60:.1f} minutes by the clock: from a few steps"
        " timed here, without k-means and reading files"
    )
