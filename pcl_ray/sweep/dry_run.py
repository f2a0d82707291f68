"""What a sweep would do, in words and numbers: `pcl-ray sweep … --dry-run`."""

from __future__ import annotations

import os

from pcl_ray.runs import request
from pcl_ray.support.redaction import scrubbed
from pcl_ray.sweep import capacity, warm_ups
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.space import search, spaces
from pcl_ray.sweep.trial_point import POINT, point_of


def show(asked: SweepRequest) -> None:
    """Prints it. Asks the cluster that RAY_ADDRESS names how large it is; starts no Ray of its own."""
    space, settings = asked.space, asked.settings
    how = search.method(space, settings)
    rows = [
        ("space", f"{space.name}, on recipe {space.base}"),
        *((f"  {name}", words) for name, words in spaces.described(space)),
    ]
    size = spaces.size(space)
    configurations = search.samples(space, settings)
    points = search.points(space, settings, asked.base)
    trials = len(points) if points is not None else configurations * settings.seeds
    configurations = trials // settings.seeds
    nodes, where = _nodes(asked)
    fits = capacity.trials_at_a_time(capacity.bundles(asked.base, asked.plan), nodes)
    at_a_time = min(fits, settings.concurrency or fits)
    rows += [
        ("size", f"{size} combinations" if size is not None else "continuous"),
        ("search", f"{how}, scheduler {settings.scheduler}" + _grace(asked)),
        (
            "trials",
            (
                f"{trials}: {configurations} configurations, {settings.seeds} seeds each"
                if settings.seeds > 1
                else f"{trials}"
            ),
        ),
        ("at a time", f"{at_a_time} on {where}"),
        ("each trial", _each(asked)),
        ("objective", settings.objective or space.objective or "eval/knn_top1 with labels, else eval/rankme"),
        ("warm-up", _warmups(asked, trials)),
        ("device time", _device_time(asked, trials, at_a_time)),
    ]
    for name, value in rows:
        print(f"{name:<24} {scrubbed(value)}")
    for note in asked.notes:
        print(f"{'note':<24} {note}")


def _nodes(asked: SweepRequest) -> tuple[list[dict[str, float]], str]:
    if not os.environ.get("RAY_ADDRESS"):
        needed = sum(cpus for cpus, _ in capacity.bundles(asked.base, asked.plan))
        node = {
            "CPU": float(max(os.cpu_count() or 1, int(needed + 0.999))),
            "GPU": float(request.gpus_here()),
        }
        return [node], f"this machine ({node['CPU']:g} CPUs, {node['GPU']:g} GPUs)"
    import ray

    from pcl_ray.on_ray.connection import connected

    with connected(0):
        nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return nodes, f"the cluster of {len(nodes)} nodes at {os.environ['RAY_ADDRESS']}"


def _grace(asked: SweepRequest) -> str:
    settings = asked.settings
    if settings.scheduler == "none":
        return ""
    said = f"; none is stopped before epoch {search.grace_epochs(asked.base)} (warm-up and two E-steps)"
    return (
        said
        if settings.scheduler != "pbt"
        else (
            f"; members compared every {search.perturb_epochs(settings, asked.base)} epochs from"
            f" {search.grace_epochs(asked.base)} on"
        )
    )


def _each(asked: SweepRequest) -> str:
    resources, epochs = asked.base.resources, asked.plan.epochs
    if not resources.workers:
        gpu = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
        return (
            f"{epochs} epochs in one process with {resources.cpus_per_worker:g}"
            f" CPU{'s' * (resources.cpus_per_worker > 1)}{gpu}"
        )
    gpus = resources.workers * resources.gpus_per_worker + resources.e_step_gpus
    cpus = sum(cpus for cpus, _ in capacity.bundles(asked.base, asked.plan))
    return (
        f"{epochs} epochs with {resources.workers} workers and an E-step actor, together {gpus:g} GPUs and"
        f" {cpus:g} CPUs"
    )


def _groups(asked: SweepRequest) -> int | None:
    """Different warm-ups among the trials; None where they are not known beforehand."""
    points = search.points(asked.space, asked.settings, asked.base)
    if points is None:
        return None
    configs = [point_of({POINT: point}, asked.base.seed).config(asked.base) for point in points]
    return len({warm_ups.key_of(config) for config in configs})


def _warmups(asked: SweepRequest, trials: int) -> str:
    if not warm_ups.exists(asked.base):
        return "none"
    epochs = f"{asked.base.e_step.warmup_epochs} of {asked.base.train.epochs} epochs"
    if not asked.settings.shared_warmup:
        return f"{epochs}, trained by every trial (sweep.shared_warmup = false)"
    groups = _groups(asked)
    if groups is None:
        return (
            f"{epochs}, shared by trials that are alike until then; sweep.temperature_levels makes that"
            " likelier"
        )
    return f"{epochs}, trained {groups} times for {trials} trials"


def _device_time(asked: SweepRequest, trials: int, at_a_time: int) -> str:
    from pcl_ray.sweep.estimate import measure  # torch

    cost = measure(asked.base)
    if cost is None:
        return "not estimated: the trials are to have GPUs, and this machine has none to time a few steps on"
    plan, shared = asked.plan, 0
    if asked.settings.shared_warmup and warm_ups.exists(asked.base):
        shared = trials - (_groups(asked) or trials)
    whole = cost.of_run(plan, plan.epochs)
    total = trials * whole - shared * (whole - cost.of_run(plan, plan.epochs - plan.warmup_epochs))
    at_most = "at most " if asked.settings.scheduler in ("asha", "median") else "about "
    clock = total / max(min(at_a_time, trials), 1)
    return (
        f"{at_most}{total / 3600:.2f} device hours, {clock / 60:.1f} minutes by the clock: from a few steps"
        " timed here, without k-means and reading files"
    )
