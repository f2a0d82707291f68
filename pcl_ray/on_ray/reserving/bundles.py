"""What a run or a trial reserves of a cluster, part by part, and how often that fits onto its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pcl_ray.config import ResourcesConfig

Bundle = dict[str, float]  # {"CPU": …, "GPU": …}: what must be free on one node; no entry: none of it

_TRIAL_CPUS = 0.01  # of the process that follows a trial with workers of its own
_SLACK = 1e-6
_MOST = 4096


def run_bundles(resources: ResourcesConfig, e_step_shards: int, workers: int) -> list[Bundle]:
    """The parts of a run with so many workers: each worker, the E-step actor, its shards."""
    worker = worker_bundle(resources)
    e_step = _bundle(resources.e_step_cpus, resources.e_step_gpus)
    shard = _bundle(resources.e_step_cpus)
    return [worker] * workers + [e_step] + [shard] * e_step_shards


def worker_bundle(resources: ResourcesConfig) -> Bundle:
    """What one worker takes."""
    return _bundle(resources.cpus_per_worker, resources.gpus_per_worker)


def trial_process_bundle(resources: ResourcesConfig) -> Bundle:
    """Tune's process for a trial: all of a trial that trains in it, next to nothing for one with workers."""
    if resources.workers:
        return _bundle(_TRIAL_CPUS)
    return _bundle(resources.cpus_per_worker, resources.gpus_per_worker)


def trial_bundles(resources: ResourcesConfig, e_step_shards: int) -> list[Bundle]:
    """The parts of a trial of a sweep: its process, and its run where that has workers."""
    run = run_bundles(resources, e_step_shards, resources.workers) if resources.workers else []
    return [*run, trial_process_bundle(resources)]


def total(bundles: Iterable[Mapping[str, float]], kind: str) -> float:
    """How much of a kind ("CPU" or "GPU") the bundles, or the nodes, have together."""
    return sum(bundle.get(kind, 0.0) for bundle in bundles)


def fitting(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> int:
    """How often all the bundles together fit onto the nodes ({"CPU": …, "GPU": …} each), the largest placed
    first, each where least is left over: so many trials can train at a time without waiting for parts of each
    other's resources.
    """
    free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in nodes]
    sizes = [(bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)) for bundle in bundles]
    for count in range(_MOST):
        for gpus, cpus in sorted(sizes, reverse=True):
            if not _fill(cpus, gpus, free):
                return count
    return _MOST


def _bundle(cpus: float, gpus: float = 0.0) -> Bundle:
    return {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def _fill(cpus: float, gpus: float, free: list[list[float]]) -> bool:
    """Takes the amounts from the node where least is left over; False where no node has them."""
    nodes = [
        node
        for node in free
        if node[0] + _SLACK >= cpus and node[1] + _SLACK >= gpus and _one_gpu_has(gpus, node[1])
    ]
    if not nodes:
        return False
    node = min(nodes, key=lambda node: (node[1], node[0]))
    node[0] -= cpus
    node[1] = _gpus_left(gpus, node[1])
    return True


def _one_gpu_has(share: float, free: float) -> bool:
    """A share comes from one GPU. Whole ones are free and at most one begun: trials' shares are equal."""
    return share == 0 or share >= 1 or free >= 1 - _SLACK or free + _SLACK >= share


def _gpus_left(share: float, free: float) -> float:
    """Where a begun GPU has too little left for the share, that rest is lost."""
    begun = free % 1
    if 0 < share < 1 and _SLACK < begun < share - _SLACK:
        free -= begun
    return free - share
