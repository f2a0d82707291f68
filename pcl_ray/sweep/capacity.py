"""How many trials a cluster holds at a time, counting workers and E-step actor of each, so that no two trials
wait for each other's resources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan

Bundle = tuple[float, float]  # CPUs, GPUs that must be free on one node
_SLACK = 1e-6
TRIAL_CPUS = 0.01  # of the process that follows a trial with workers of its own
_MOST = 4096


def bundles(config: RunConfig, plan: RunPlan) -> list[Bundle]:
    """What one trial takes, part by part."""
    resources = config.resources
    if resources.workers == 0:
        return [(resources.cpus_per_worker, resources.gpus_per_worker)]
    workers = [(resources.cpus_per_worker, resources.gpus_per_worker)] * resources.workers
    return [
        *workers,
        (resources.e_step_cpus, resources.e_step_gpus),
        *[(resources.e_step_cpus, 0.0)] * plan.e_step_shards,
        (TRIAL_CPUS, 0.0),
    ]


def trials_at_a_time(trial: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> int:
    """How often the bundles of a trial fit onto the nodes ({"CPU": …, "GPU": …} each), the largest placed
    first, each where least is left over.
    """
    free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in nodes]
    largest_first = sorted(trial, key=lambda bundle: (bundle[1], bundle[0]), reverse=True)
    for count in range(_MOST):
        for bundle in largest_first:
            if not _place(bundle, free):
                return count
    return _MOST


def _place(bundle: Bundle, free: list[list[float]]) -> bool:
    cpus, gpus = bundle
    fitting = [
        node
        for node in free
        if node[0] + _SLACK >= cpus and node[1] + _SLACK >= gpus and _one_gpu_has(gpus, node[1])
    ]
    if not fitting:
        return False
    node = min(fitting, key=lambda node: (node[1], node[0]))
    node[0] -= cpus
    node[1] = _gpus_left(gpus, node[1])
    return True


def _one_gpu_has(share: float, free: float) -> bool:
    """A share of a GPU must come from one GPU. What is free is whole GPUs and at most one that is begun
    (shares of a trial are equal).
    """
    return share == 0 or share >= 1 or free >= 1 - _SLACK or free + _SLACK >= share


def _gpus_left(share: float, free: float) -> float:
    """Where a begun GPU has too little left for the share, that rest is lost."""
    begun = free % 1
    if 0 < share < 1 and _SLACK < begun < share - _SLACK:
        free -= begun
    return free - share
