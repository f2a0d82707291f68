"""How the E-step scales: mode sharded, measured here; and a model of it for 512 workers and 10⁹ images.

    python benchmarks/estep_scale.py --json estep_scale.json      # three minutes on two cores
    python benchmarks/estep_scale.py --quick                      # under a minute, small sizes
    # the model for other machines
    python benchmarks/estep_scale.py --gpu-tflops 300 --gpu-images 1200 --cpu-cores 32 --cpu-images 20

Measured: one label-warm E-step by 1, 2 and 4 EStepShard actors, each with one thread: processor seconds of
each, bytes that they add up over the network, and whether all come to the same result bit by bit. Then the
seconds of the parts of an E-step on one core, which the model is made of. The features are synthetic
(`common.Mixture`). What the model assumes it prints above its table; no GPU and no network between machines
was measured for it. RESULTS.md has the figures to expect. Exit code 1 says that a claim does not hold.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import common
import numpy as np
import torch
from common import DIM, LIMIT_S, Mixture, Report, Row

from pcl_ray import config as configs
from pcl_ray.clustering import ClusterSet, health
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.assign.shortlist import Shortlist, among, neighbours
from pcl_ray.clustering.kmeans import distances_to
from pcl_ray.clustering.lloyd import split_into_empty
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.config import RunConfig
from pcl_ray.e_step import ShardInput, When, cluster, cluster_shard, merge_shards
from pcl_ray.errors import RunFailed
from pcl_ray.training.e_step_shards import EStepRequest, shard_range

ACTORS, FEW_ACTORS = (1, 2, 4), (1, 2)
PIECE = 131072  # rows that are sent to an actor at a time
CANDIDATES = Shortlist(Nearest()).candidates
OWN_MOMENTS = 8 + 8 * DIM + 8  # bytes a cluster: size, sums, squares


def main() -> int:
    arguments = parse_arguments()
    report = Report("estep_scale", arguments.quick)
    count, k = (20_000, 500) if arguments.quick else (60_000, 1000)
    mixture = Mixture(k)
    first = mixture.draw(count, seed=0)
    rows = mixture.drifted(first, 0)
    changes = {
        "encoder.dim": DIM,
        "e_step.num_clusters": [k],
        "e_step.threads": 1,
        "e_step.restarts": 1,
        "e_step.cold_iterations": 10,
        "resources.workers": 2,
    }
    config = configs.load("fashion_mnist", changes)
    previous = cluster(first, config.e_step, epoch=0, temperature=config.loss.temperature, seed=config.seed)
    report.section("measured: mode sharded")
    report.row("sizes", N=count, K=k, C=DIM)
    alone = single(config, rows, previous, report, arguments.repeats)
    sharded(config, rows, previous, alone, report, FEW_ACTORS if arguments.quick else ACTORS)
    report.section("measured: parts of an E-step, one core")
    costs = constants(arguments, rows, report)
    checked(costs, alone, report, count, k, config.e_step.shortlist_from)
    report.section("model")
    model(arguments, costs, alone, report, config.e_step.shortlist_from)
    return report.end(arguments.json)


def parse_arguments() -> Namespace:
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument(
        "--gpu-tflops",
        type=float,
        default=266.0,
        help="nearest centroids on a GPU, half precision; assumed (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu-gigabytes",
        type=float,
        default=1500.0,
        help="GB/s of a GPU's memory in the other parts; assumed (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu-images",
        type=float,
        default=2500.0,
        help="images/s of a GPU in the M-step, ResNet-50; assumed (default: %(default)s)",
    )
    parser.add_argument(
        "--cpu-cores", type=int, default=64, help="cores of a CPU worker; assumed (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-efficiency",
        type=float,
        default=0.7,
        help="speed of so many cores / that many times one core; assumed (default: %(default)s)",
    )
    parser.add_argument(
        "--cpu-images",
        type=float,
        default=30.0,
        help="images/s of a CPU worker in the M-step, ResNet-50; assumed (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if (
        min(
            arguments.repeats,
            arguments.gpu_tflops,
            arguments.gpu_gigabytes,
            arguments.gpu_images,
            arguments.cpu_cores,
            arguments.cpu_efficiency,
            arguments.cpu_images,
        )
        <= 0
    ):
        parser.error("all numbers must be above 0")
    return arguments


# --- measured: mode sharded


@dataclass(frozen=True)
class Alone:
    """The E-step of one process, one thread."""

    clusters: ClusterSet
    processor_seconds: float
    passes: int
    changed: float  # share of labels that the first pass changed


def single(
    config: RunConfig, rows: torch.Tensor, previous: ClusterSet, report: Report, repeats: int
) -> Alone:
    options: dict[str, Any] = {
        "temperature": config.loss.temperature,
        "seed": config.seed,
        "previous": previous,
    }
    seconds = []
    for _ in range(repeats + 1):  # the first one also loads libraries
        start = time.process_time()
        result = cluster_shard(ShardInput(rows, len(rows)), config.e_step, When(1), **options)
        seconds.append(time.process_time() - start)
    figures = result.clusterings[0].figures
    clusters = merge_shards([result], 1, len(rows))
    alone = Alone(clusters, min(seconds[1:]), int(figures["passes"]), figures["changed"])
    report.row(
        "mode single",
        processor_seconds=alone.processor_seconds,
        most=max(seconds[1:]),
        passes=alone.passes,
        changed=alone.changed,
    )
    return alone


def sharded(
    config: RunConfig,
    rows: torch.Tensor,
    previous: ClusterSet,
    alone: Alone,
    report: Report,
    actors: tuple[int, ...],
) -> None:
    equal = {}
    with common.own_ray(max(actors)) as ray:
        for count in actors:
            clusters, work, exchanged = on_actors(ray, config, rows.numpy(), previous, count)
            equal[count] = same(clusters, alone.clusters)
            report.row(f"{count} actors", bit_for_bit_as_single=equal[count], **work)
            report.row(
                f"{count} actors, added up by all",
                **traffic(exchanged, alone.passes, clusters, shortlist=config.e_step.shortlist_from),
            )
    text = (
        f"mode sharded with {', '.join(map(str, actors))} actors: labels, centroids and φ are those of mode"
        " single, bit by bit (share of the runs)"
    )
    report.claim(text, sum(equal.values()) / len(equal), at_least=1)


def on_actors(
    ray: Any, config: RunConfig, rows: np.ndarray, previous: ClusterSet, count: int
) -> tuple[ClusterSet, Row, list[tuple[str, int]]]:
    """The result of `count` shards, the work of each, and every exchange of the first: its kind and bytes."""
    from pcl_ray.on_ray import launch

    request = EStepRequest(1, True, False, 2, len(rows))
    shards = [launch.start_shard_actor(config, number, count) for number in range(count)]
    try:
        address = ray.get(shards[0].address.remote(), timeout=LIMIT_S)
        ray.get([shard.join.remote(address) for shard in shards], timeout=LIMIT_S)
        ray.get([shard.__ray_call__.remote(count_exchanges) for shard in shards], timeout=LIMIT_S)
        for key in ("libraries are loaded", "measured"):
            ray.get(
                [shard.__ray_call__.remote(lambda self: self.exchanges.clear()) for shard in shards],
                timeout=LIMIT_S,
            )
            for number, shard in enumerate(shards):
                first, last = shard_range(number, count, len(rows))
                for at in range(first, last, PIECE):
                    ids = np.arange(at, min(at + PIECE, last))
                    ray.get(
                        shard.push.remote(key, len(rows), ids, rows[ids[0] : ids[-1] + 1]), timeout=LIMIT_S
                    )
            before = ray.get(
                [shard.__ray_call__.remote(processor_seconds) for shard in shards], timeout=LIMIT_S
            )
            shared = ray.put(previous)
            start = time.perf_counter()
            answers = ray.get([shard.run.remote(key, request, shared) for shard in shards], timeout=LIMIT_S)
            seconds = time.perf_counter() - start
            after = ray.get(
                [shard.__ray_call__.remote(processor_seconds) for shard in shards], timeout=LIMIT_S
            )
        exchanged = ray.get(shards[0].__ray_call__.remote(lambda self: self.exchanges), timeout=LIMIT_S)
    finally:
        for shard in shards:
            ray.kill(shard)
    if reasons := {answer.reason for answer in answers if answer.outcome != "clustered"}:
        raise RunFailed(f"the shards refuse: {reasons.pop()}")
    each = [late - early for early, late in zip(before, after, strict=True)]
    sizes = [len(answer.ids) for answer in answers]
    work = {
        "rows": [min(sizes), max(sizes)],
        "least_processor_seconds": min(each),
        "most": max(each),
        "sum": sum(each),
        "wall_seconds": seconds,
    }
    return merge_shards(list(answers), request.epoch, request.num_images), work, exchanged


def processor_seconds(shard: Any) -> float:
    return time.process_time()


def count_exchanges(shard: Any) -> None:
    """Runs in the actor: from now on `shard.exchanges` lists every exchange with the peers."""
    from pcl_ray.clustering.group import TorchGroup

    shard.exchanges = []
    add, gather = TorchGroup.sum, TorchGroup.gather

    def counted_sum(self: Any, *tensors: Any) -> None:
        shard.exchanges += [("sum", tensor.nbytes) for tensor in tensors]
        add(self, *tensors)

    def counted_gather(self: Any, rows: Any) -> Any:
        gathered = gather(self, rows)
        shard.exchanges.append(("gather", gathered.nbytes))
        return gathered

    TorchGroup.sum, TorchGroup.gather = counted_sum, counted_gather  # type: ignore[method-assign]


def traffic(exchanged: list[tuple[str, int]], passes: int, clusters: ClusterSet, *, shortlist: int) -> Row:
    """Counted, and what follows from the code: sizes, sums, squares of K clusters and a count in each pass,
    once more at the start, K distances at the end.
    """
    k = clusters.clusterings[0].num_clusters
    sums = [size for kind, size in exchanged if kind == "sum"]
    # the last: gauges of the features
    derived = (passes + 1) * k * OWN_MOMENTS + 8 * passes + 8 * k + 8 * (DIM * DIM + DIM)
    large = sum(size >= 8 * k for size in sums)
    return {
        "sums": len(sums),
        "of_them_large": large,
        "bytes": sum(sums),
        "bytes_derived": derived,
        "bytes_a_pass": k * OWN_MOMENTS + 8 + 16 * (0 < shortlist <= k),
        "bytes_gathered": sum(size for kind, size in exchanged if kind == "gather"),
    }


def same(one: ClusterSet, other: ClusterSet) -> bool:
    names = ("assignments", "prototypes", "norms", "concentration", "valid")
    pairs = zip(one.clusterings, other.clusterings, strict=True)
    return all(
        a.objective == b.objective and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
        for a, b in pairs
    )


# --- measured: what the model is made of


@dataclass(frozen=True)
class Costs:
    """Seconds on one core, each for one dimension of …"""

    brute: float  # a point and a centroid
    graph: float  # a centroid and a centroid
    shortlist: float  # a point and a candidate
    # a cluster that has points here and a candidate: gathering them costs the same for few points as for many
    candidates: float
    moved: float  # a point whose label has changed
    means: float  # a point, when the start is made of old labels
    features: float  # a point, for checks before and distances after
    centroids: float  # a centroid in each pass, on every worker: sums of the change, means, objective


def constants(arguments: Namespace, rows: torch.Tensor, report: Report) -> Costs:
    torch.set_num_threads(1)
    few, many = (500, 2000) if arguments.quick else (1000, 5000)
    count, points = len(rows), Points.of(rows)
    nearest = Nearest("faiss", threads=1)
    centroids = rows[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:many]].contiguous()
    labels, coarse = nearest(points, centroids), nearest(points, centroids[:few])
    around, around_few = (neighbours(points, some, CANDIDATES, 1) for some in (centroids, centroids[:few]))
    changed = labels.clone()
    changed[::10] = (changed[::10] + 1) % many
    one = labels.clone()
    one[0] = (one[0] + 1) % many
    moments = Moments.of(points, labels, many)

    def features() -> None:
        health.unusable(rows)
        fresh = Points.of(rows)
        health.gauges(fresh)
        assert len(fresh.squares) == count
        points.sums(labels, distances_to(points, centroids, labels), 10.0, many)

    def of_centroids() -> None:
        moments.moved(points, labels, one)
        moments.objective(centroids)
        split_into_empty(moments.means(), moments, 0)

    parts: dict[str, tuple[Callable[[], Any], float]] = {
        "brute": (lambda: nearest(points, centroids[:few]), count * few),
        "graph": (lambda: neighbours(points, centroids, CANDIDATES, 1), many * many),
        "shortlist": (lambda: among(rows, centroids, labels, around), 1),
        "shortlist, few": (lambda: among(rows, centroids[:few], coarse, around_few), 1),
        "moved": (lambda: moments.moved(points, labels, changed), len(labels[::10])),
        "means": (lambda: Moments.of(points, labels, many), count),
        "features": (features, count),
        "centroids": (of_centroids, many),
    }
    timed = common.interleaved(
        {name: lambda number, call=call: call() for name, (call, _) in parts.items()},
        max(3, arguments.repeats),
    )
    # the least: what others do on the machine is no cost
    each = {name: min(timed[name].seconds) / (amount * DIM) for name, (_, amount) in parts.items()}
    one, other = each.pop("shortlist, few") / CANDIDATES, each.pop("shortlist") / CANDIDATES
    each["candidates"] = max(0.0, (other - one) / (many - few))
    each["shortlist"] = max(0.0, one - few * each["candidates"]) / count
    costs = Costs(**each)
    for part in fields(Costs):
        report.row(f"seconds a dimension: {part.name}", seconds=getattr(costs, part.name))
    return costs


def checked(costs: Costs, alone: Alone, report: Report, count: int, k: int, shortlist_from: int) -> None:
    parts = core_seconds(costs, count, k, 1, alone, shortlist=0 < shortlist_from <= k)
    ratio = sum(parts.values()) / alone.processor_seconds
    report.row("model / processor seconds of mode single", ratio=ratio, **parts)
    report.claim(
        "model against mode single on one core: times too high or too low",
        max(ratio, 1 / ratio),
        at_most=1.5,
        full_size=True,
    )


def core_seconds(
    costs: Costs, rows: float, k: int, workers: int, alone: Alone, *, shortlist: bool
) -> dict[str, float]:
    """The seconds of one worker's E-step, on one core, without the network. `rows`: of this worker."""
    brute = costs.brute * rows * k
    pass_ = brute
    if shortlist:
        pass_ = CANDIDATES * (costs.shortlist * rows + costs.candidates * min(k, rows)) + 0.01 * brute
    return {
        "features": DIM * costs.features * rows,
        "means": DIM * costs.means * rows,
        "nearest": DIM * (alone.passes * pass_ + (costs.graph * k * k / workers if shortlist else 0.0)),
        "moved": DIM * costs.moved * rows * moved_share(alone),
        "centroids": DIM * costs.centroids * k * alone.passes,
    }


def moved_share(alone: Alone) -> float:
    """Labels that change in each pass: measured in the first, and taken to halve in each one after."""
    return alone.changed * sum(0.5**number for number in range(alone.passes))


# --- the model


@dataclass(frozen=True)
class Network:
    name: str
    gigabits: float
    latency_s: float  # of one step of an all-reduce
    ring: bool  # whether an all-reduce has 2(W − 1) steps, as gloo's, or 2·log₂ W, as NCCL's trees

    def all_reduce(self, size: float, workers: int, calls: float) -> float:
        """Seconds for `size` bytes in so many calls, at 80 % of the line's speed."""
        steps = 2 * (workers - 1) if self.ring else 2 * math.ceil(math.log2(workers))
        return calls * steps * self.latency_s + 2 * (workers - 1) / workers * size / (
            0.8 * self.gigabits / 8 * 1e9
        )


ETHERNET_25, ETHERNET_100 = Network("25 GbE", 25, 50e-6, True), Network("100 GbE", 100, 30e-6, True)
INFINIBAND = Network("400 Gb IB", 400, 5e-6, False)


@dataclass(frozen=True)
class Setup:
    """The workers, their network and the size of a clustering."""

    kind: str  # of the workers: CPU or GPU
    network: Network
    workers: int
    images: int
    k: int


def model(arguments: Namespace, costs: Costs, alone: Alone, report: Report, shortlist_from: int) -> None:
    assumptions(arguments, alone, report)
    rows = []
    for images in (1_000_000, 10_000_000, 100_000_000, 1_000_000_000):
        for k in sorted({min(images // 1000, 1_000_000), min(images // 50, 1_000_000)}):
            for workers in (8, 64, 512):
                for kind, network in (
                    ("CPU", ETHERNET_25),
                    ("CPU", ETHERNET_100),
                    ("GPU", ETHERNET_100),
                    ("GPU", INFINIBAND),
                ):
                    setup = Setup(kind, network, workers, images, k)
                    rows.append(modelled(arguments, costs, alone, setup, shortlist_from))
    report.table(rows)


def assumptions(arguments: Namespace, alone: Alone, report: Report) -> None:
    print(f"""
  One label-warm clustering of C = {DIM} by all workers, each with its own rows. From this machine:
  seconds of every part of a CPU worker's E-step, bytes and number of all-reduces, passes ({alone.passes})
  and the share of labels that the first pass changes ({alone.changed:.1%}).
  Taken: this share halves from pass to pass; one graph of neighbouring centroids an E-step; no worker is
  slower than the others; one worker a network port.
  share: E-step / M-step of ResNet-50, without the pass for features (a quarter of an M-step where it is
  made). gigabytes: features and moments, at least.
""")
    speed = arguments.cpu_efficiency * arguments.cpu_cores
    report.row(
        "assumed, not measured: CPU worker",
        cores=arguments.cpu_cores,
        speed_in_single_cores=speed,
        m_step_images_per_second=arguments.cpu_images,
    )
    gpu = {
        "nearest_tflops": arguments.gpu_tflops,
        "other_parts_gigabytes_per_second": arguments.gpu_gigabytes,
    }
    report.row("assumed, not measured: GPU worker", **gpu, m_step_images_per_second=arguments.gpu_images)
    for network in (ETHERNET_25, ETHERNET_100, INFINIBAND):
        steps = "2(W-1)" if network.ring else "2log2(W)"
        report.row(
            f"assumed, not measured: {network.name}",
            gigabits=network.gigabits,
            share_of_it_used=0.8,
            step_seconds=network.latency_s,
            steps=steps,
        )


def modelled(arguments: Namespace, costs: Costs, alone: Alone, setup: Setup, shortlist_from: int) -> Row:
    kind, network, workers, images, k = setup.kind, setup.network, setup.workers, setup.images, setup.k
    rows, shortlist = images / workers, kind == "CPU" and 0 < shortlist_from <= k
    if kind == "CPU":
        parts = core_seconds(costs, rows, k, workers, alone, shortlist=shortlist)
        parts = {
            name: seconds / (arguments.cpu_efficiency * arguments.cpu_cores)
            for name, seconds in parts.items()
        }
    else:
        parts = gpu_seconds(arguments, rows, k, alone)
    size = (alone.passes + 1) * k * OWN_MOMENTS + 8 * k
    calls = 4 * alone.passes + 4 + alone.passes * shortlist
    parts["all_reduce"] = network.all_reduce(size, workers, calls)
    if shortlist:
        parts["all_reduce"] += network.all_reduce(8 * k * CANDIDATES, workers, 1) / 2
    whole = sum(parts.values())
    m_step = rows / (arguments.cpu_images if kind == "CPU" else arguments.gpu_images)
    gigabytes = (rows * DIM * 4 + 4 * k * OWN_MOMENTS) / 1e9
    case = {"kind": kind, "network": network.name, "workers": workers, "N": f"{images:.0e}", "K": k}
    sums = {"e_step": whole, "m_step": m_step, "share": whole / m_step, "gigabytes": gigabytes}
    return case | parts | sums


def gpu_seconds(arguments: Namespace, rows: float, k: int, alone: Alone) -> dict[str, float]:
    """Nearest centroids by arithmetic, everything else by bytes: features are read as float32, sums read and
    written as float64.
    """
    second = arguments.gpu_gigabytes * 1e9
    return {
        "features": rows * DIM * 4 * 4 / second,
        "means": rows * DIM * 20 / second,
        "nearest": alone.passes * 2 * rows * k * DIM / (arguments.gpu_tflops * 1e12),
        "moved": 2 * rows * DIM * 20 * moved_share(alone) / second,
        "centroids": alone.passes * k * DIM * 80 / second,
    }


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
