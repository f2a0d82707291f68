"""How fast the E-step is on CPUs, and how good: against the settings of the published code, and on real
features where nothing else is said.

    python benchmarks/estep.py --json estep.json      # all sections: an hour on two cores
    python benchmarks/estep.py --quick                # a minute, small sizes, synthetic features
    python benchmarks/estep.py --only reference,chain --images 30000 --epochs 16

reference  a warm E-step against faiss.Kmeans (20 iterations, 5 restarts, CPU) and its loops in Python, on
           two epochs of a Fashion-MNIST run
chain      twelve warm starts one after the other, each objective against a fresh run of the reference
           settings
large      N = 200,000, K = 10,000: shortlists against brute force, labels checked on all points. The
           features are synthetic (`common.Mixture`)
share      the E-step's share of an epoch, from the figures of a run of the recipe fashion_mnist; two runs,
           features fresh and from the bank
gather     1.28 million features from two Ray actors into the E-step actor: seconds beside one memcpy, and
           the actor's memory. Synthetic features

The first use of real features trains a run for ten minutes (`real_features`); later ones read them from
PCL_RAY_HOME/benchmarks. RESULTS.md has the figures to expect. Exit code 1 says that a claim does not hold.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import real_features
import torch
from common import DIM, LIMIT_S, MemoryWatch, Mixture, Report, Row, Timed, interleaved, sum_of_squares

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.points import Points
from pcl_ray.config import EStepConfig, RunConfig
from pcl_ray.data import datasets
from pcl_ray.e_step import ShardInput, When, cluster, cluster_shard, merge_shards
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard

SECTIONS = ("reference", "chain", "large", "share", "gather")
TEMPERATURE, ALPHA = 0.2, 10.0
PERCENTILES = (10, 50, 90)
LEAST_SEEDS = 3  # of the reference, to see how far apart two of its runs may lie


def main() -> int:
    arguments = parse_arguments()
    report = Report("estep", arguments.quick)
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            report.section(name)
            match name:
                case "reference":
                    reference(arguments, report)
                case "chain":
                    chain(arguments, report)
                case "large":
                    large(arguments, report)
                case "share":
                    share(arguments, report, scratch)
                case "gather":
                    gather(arguments, report)
            report.write(arguments.json)  # hours of figures should not go with a section that fails
    return report.end(arguments.json)


def parse_arguments() -> Namespace:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, with commas between them (default: all)"
    )
    parser.add_argument(
        "--images",
        type=int,
        help="reference, chain: images of the real features (30000); share: images to train on (60000)",
    )
    parser.add_argument("--epochs", type=int, help="epochs of the run: reference, chain 16; share 8")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="share: Ray Train workers; 0 trains in this process (default: %(default)s)",
    )
    arguments = parser.parse_args()
    arguments.only = [name.strip() for name in arguments.only.split(",")]
    if wrong := [name for name in arguments.only if name not in SECTIONS]:
        parser.error(f"--only: there is no section {wrong[0]!r}; there are {', '.join(SECTIONS)}")
    if arguments.repeats < 1:
        parser.error("--repeats: at least 1")
    if (arguments.epochs or 16) <= real_features.WARMUP + 1 or (arguments.images or 30000) < 1200:
        parser.error(f"--epochs: more than {real_features.WARMUP + 1}; --images: at least 1200")
    arguments.repeats = min(arguments.repeats, 2) if arguments.quick else arguments.repeats
    return arguments


# --- the reference settings


@dataclass(frozen=True)
class MeasuredClustering:
    """One clustering of either side, measured the same way."""

    objective: float
    phi: tuple[float, ...]  # percentiles 10, 50, 90 of the K concentrations, clipped and scaled
    loop_seconds: float = 0.0


def reference_e_step(features: np.ndarray, counts: tuple[int, ...], seed: int) -> list[MeasuredClustering]:
    """For each K the reference settings: faiss' k-means with 20 iterations and 5 restarts on all points, a
    last search, then the concentrations by loops over the images.
    """
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    clusterings = []
    for m, k in enumerate(counts):
        # never a subsample, never a warning
        sizes = {"max_points_per_centroid": len(features), "min_points_per_centroid": 1}
        kmeans = faiss.Kmeans(
            features.shape[1],
            k,
            niter=20,
            nredo=5,
            seed=1000 * m + seed + 1,
            verbose=False,
            gpu=False,
            **sizes,
        )
        kmeans.train(features)
        squares, nearest = kmeans.index.search(features, 1)
        start = time.perf_counter()
        phi = looped_concentration(squares, nearest, k)
        seconds = time.perf_counter() - start
        clusterings.append(
            MeasuredClustering(
                sum_of_squares(features, kmeans.centroids, nearest[:, 0]), percentiles(phi), seconds
            )
        )
    return clusterings


def looped_concentration(squares: np.ndarray, nearest: np.ndarray, k: int) -> np.ndarray:
    """[K] φ of the paper's equation 12, an image at a time."""
    distances: list[list[float]] = [[] for _ in range(k)]
    for image in range(len(nearest)):
        distances[int(nearest[image][0])].append(squares[image][0])
    phi = np.zeros(k)
    for prototype in range(k):
        if len(distances[prototype]) > 1:
            phi[prototype] = np.sqrt(np.asarray(distances[prototype])).mean() / np.log(
                len(distances[prototype]) + ALPHA
            )
    largest = phi.max()
    for prototype in range(k):
        if len(distances[prototype]) <= 1:
            phi[prototype] = largest
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    return TEMPERATURE * phi / phi.mean()


def percentiles(phi: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(phi, PERCENTILES))


def measured(features: np.ndarray, clusters: ClusterSet) -> list[MeasuredClustering]:
    return [
        MeasuredClustering(
            sum_of_squares(features, c.centroids, c.assignments), percentiles(c.concentration.numpy())
        )
        for c in clusters.clusterings
    ]


def ours(features: Any, settings: EStepConfig, epoch: int, previous: ClusterSet | None = None) -> ClusterSet:
    return cluster(features, settings, epoch=epoch, temperature=TEMPERATURE, seed=0, previous=previous)


def consecutive_features(arguments: Namespace) -> list[np.ndarray]:
    """[N, C] before each epoch, of a real run; with --quick of no run at all, unless one is asked for."""
    if arguments.quick and arguments.images is None:
        mixture = Mixture(40)
        epochs = [mixture.draw(2000, seed=0)]
        for epoch in range(1, 5):
            epochs.append(mixture.drifted(epochs[-1], 0, epoch=epoch))
        return [rows.numpy() for rows in epochs]
    return real_features.of_epochs(arguments.images or 30000, arguments.epochs or 16)


def counts_for(num_images: int) -> tuple[int, ...]:
    """250, 500, 1000 for 30,000 images."""
    return num_images // 120, num_images // 60, num_images // 30


# --- reference


def reference(arguments: Namespace, report: Report) -> None:
    before, features = consecutive_features(arguments)[-2:]
    counts = counts_for(len(features))
    settings = EStepConfig(num_clusters=counts)
    previous = ours(before, settings, epoch=0)

    def warm(shortlist_from: int) -> Any:
        changed = settings.model_copy(update={"shortlist_from": shortlist_from})
        return lambda number: ours(features, changed, 1, previous)

    usual = settings.shortlist_from
    names = {
        shortlist_from: f"ours, warm, shortlist_from {shortlist_from}"
        for shortlist_from in (usual, 0, counts[1], 5000)
    }
    calls: dict[str, Any] = {"reference": lambda number: reference_e_step(features, counts, number)}
    calls |= {name: warm(shortlist_from) for shortlist_from, name in names.items()}
    calls["ours, cold"] = lambda number: ours(features, settings, 1)
    timed = interleaved(calls, arguments.repeats, warm_up=arguments.quick)
    report.row("sizes", N=len(features), K=list(counts), repeats=arguments.repeats)
    for name, one in timed.items():
        report.timing(name, one)
    loops = [sum(one.loop_seconds for one in run) for run in timed["reference"].results]
    report.row("of the reference: loops over the images", seconds=statistics.median(loops))
    ratios = {
        name: report.ratio(f"reference / {name}", timed["reference"], one)
        for name, one in timed.items()
        if name != "reference"
    }
    seeds = timed["reference"].results + [
        reference_e_step(features, counts, number) for number in range(arguments.repeats, LEAST_SEEDS)
    ]
    clusterings = {
        name: measured(features, one.results[-1]) for name, one in timed.items() if name != "reference"
    }
    worst = objectives(report, counts, seeds, clusterings)
    report.claim(
        "whole E-step, warm: times as fast as the reference settings (median of rounds)",
        ratios[names[usual]],
        at_least=15,
        full_size=True,
    )
    report.claim(
        "objective of the warm E-step / median of the reference's seeds, at the worst K",
        worst[names[usual]],
        at_most=1.005,
        full_size=True,
    )
    concentrations(report, counts, seeds, clusterings[names[usual]])


def objectives(
    report: Report,
    counts: tuple[int, ...],
    seeds: list[list[MeasuredClustering]],
    clusterings: dict[str, list[MeasuredClustering]],
) -> dict[str, float]:
    """Rows about the objectives; ratios of ours are to the reference's median over seeds, at the worst K."""
    worst = dict.fromkeys(clusterings, 0.0)
    for m, k in enumerate(counts):
        of_seeds = [run[m].objective for run in seeds]
        middle = statistics.median(of_seeds)
        report.row(
            f"objective, K {k}: reference",
            seeds=len(seeds),
            median=middle,
            least=min(of_seeds) / middle,
            most=max(of_seeds) / middle,
        )
        for name, each in clusterings.items():
            report.row(f"objective, K {k}: {name} / reference's median", ratio=each[m].objective / middle)
            worst[name] = max(worst[name], each[m].objective / middle)
    return worst


def concentrations(
    report: Report,
    counts: tuple[int, ...],
    seeds: list[list[MeasuredClustering]],
    clusterings: list[MeasuredClustering],
) -> None:
    """How far ours lie from the median of the reference's seeds, in units of the distance between the
    farthest two of them at the same K.
    """
    worst = 0.0
    for m, k in enumerate(counts):
        table = np.array([run[m].phi for run in seeds])
        spread = float(np.ptp(table, axis=0).max())
        apart = np.abs(np.array(clusterings[m].phi) - np.median(table, axis=0))
        for p, name in enumerate(PERCENTILES):
            middle, least, most = (float(of(table[:, p])) for of in (np.median, np.min, np.max))
            report.row(
                f"φ, K {k}, percentile {name}",
                ours=clusterings[m].phi[p],
                median=middle,
                least=least,
                most=most,
            )
        worst = max(worst, float(apart.max()) / max(spread, 1e-12))
    text = (
        "φ of the warm E-step, percentiles 10, 50, 90: distance to the median of the reference's seeds, as a"
        " share of the largest difference between two seeds at the same K (largest over the three"
        " percentiles), at the worst K and percentile"
    )
    report.claim(text, worst, at_most=1, full_size=True)


# --- chain


def chain(arguments: Namespace, report: Report) -> None:
    epochs = consecutive_features(arguments)[-13:]
    counts = counts_for(len(epochs[0]))
    settings = EStepConfig(num_clusters=counts)
    clusters = ours(epochs[0], settings, epoch=0)
    ratios: list[list[float]] = []
    for epoch, features in enumerate(epochs[1:], start=1):
        options: dict[str, Any] = {"temperature": TEMPERATURE, "seed": 0, "previous": clusters}
        shard = ShardInput(torch.from_numpy(features), len(features))
        result = cluster_shard(shard, settings, When(epoch), **options)
        clusters = merge_shards([result], epoch, len(features))
        fresh = reference_e_step(features, counts, seed=0)
        ratios.append(
            [
                own.objective / other.objective
                for own, other in zip(measured(features, clusters), fresh, strict=True)
            ]
        )
        for k, ratio, one in zip(counts, ratios[-1], result.clusterings, strict=True):
            report.row(
                f"epoch {epoch}, K {k}",
                ratio=ratio,
                cold=one.figures["cold"],
                passes=one.figures["passes"],
                changed=one.figures["changed"],
            )
    chained = f"{len(ratios)} warm starts in a chain"
    report.claim(
        f"{chained}: objective / fresh run of the reference settings, last epoch, worst K",
        max(ratios[-1]),
        at_most=1.01,
        full_size=True,
    )
    report.claim(
        f"{chained}: the same at the worst epoch and K", max(map(max, ratios)), at_most=1.01, full_size=True
    )


# --- large


def large(arguments: Namespace, report: Report) -> None:
    count, k, modes = (20_000, 1000, 500) if arguments.quick else (200_000, 10_000, 5000)
    mixture = Mixture(modes)
    first = mixture.draw(count, seed=0)
    rows = mixture.drifted(first, 0)
    report.row("sizes", N=count, K=k, drift_cosine=float((first * rows).sum(dim=1).mean()))
    settings = EStepConfig(num_clusters=(k,), iterations=5, cold_iterations=6, restarts=1, shortlist_from=1)
    # a few passes, by shortlists after the first: the state before matters little
    previous = ours(first, settings, epoch=0)
    brute = settings.model_copy(update={"shortlist_from": 0})
    calls: dict[str, Any] = {
        "warm, shortlist": lambda number: ours(rows, settings, 1, previous),
        "warm, brute force": lambda number: ours(rows, brute, 1, previous),
    }
    timed = interleaved(calls, min(arguments.repeats, 3), warm_up=False)
    for name, one in timed.items():
        report.timing(name, one)
    faster = report.ratio("brute force / shortlist", timed["warm, brute force"], timed["warm, shortlist"])
    (short,), (exact,) = (one.results[-1].clusterings for one in timed.values())
    centroids = short.centroids
    nearest = Nearest("faiss")(Points.of(rows), centroids)
    agreement = float((nearest == short.assignments).double().mean())
    own, least = (sum_of_squares(rows, centroids, labels) for labels in (short.assignments, nearest))
    report.row("shortlist, against brute force on all points", agreement=agreement, excess=own / least - 1)
    report.row("objective after 5 passes, shortlist / brute force", ratio=short.objective / exact.objective)
    report.claim(
        f"N {count}, K {k}: shortlists, times as fast as brute force", faster, at_least=5, full_size=True
    )
    report.claim(
        f"N {count}, K {k}: share of all points whose label is that of brute force, for the final centroids",
        agreement,
        at_least=0.995,
    )


# --- share


def share(arguments: Namespace, report: Report, scratch: str) -> None:
    for features in ("fresh", "bank"):
        config = share_config(arguments, features)
        history = trained(config, scratch)
        shares = []
        # The last epoch is left out: with it comes an evaluation, and fresh features for the bank as well.
        for metrics in history[config.e_step.warmup_epochs : -1]:
            shares.append(parts_of_an_epoch(metrics))
            report.row(f"features {features}, epoch {int(metrics['epoch']) + 1}", **shares[-1])
        warm = [row for row in shares if not row["cold"]]
        if not warm and arguments.quick:
            continue  # so few steps an epoch, so early, change the features too much
        if not warm:
            raise RunFailed(f"features {features}: no E-step began warm; train longer, by --epochs")
        key, bar, what = "e_step", 0.03, "whole E-step"
        if features == "fresh":
            key, bar, what = "rest", 0.02, "k-means, φ and moving data"
        value = statistics.median(row[key] for row in warm)
        report.claim(
            f"features {features}: {what}, share of an epoch (median of {len(warm)} warm E-steps)",
            value,
            at_most=bar,
            full_size=True,
        )


def share_config(arguments: Namespace, features: str) -> RunConfig:
    images = arguments.images or (600 if arguments.quick else 60_000)
    changes: dict[str, Any] = {
        "data.limit": images,
        "e_step.features": features,
        "resources.workers": arguments.workers,
    }
    # The recipe has three epochs of warm-up; the first E-step after them begins anew, four follow it, and the
    # last epoch's is not counted.
    changes["train.epochs"] = arguments.epochs or 8
    if arguments.quick:
        changes |= {"train.epochs": 4, "e_step.warmup_epochs": 1}
    return configs.load("fashion_mnist", changes | {"evaluation.every_epochs": 0, "tracking.enabled": False})


def parts_of_an_epoch(metrics: dict[str, float]) -> Row:
    whole, e_step, features = (metrics[f"perf/{name}_seconds"] for name in ("epoch", "e_step", "feature"))
    cold = sum(
        value for name, value in metrics.items() if name.startswith("cluster/") and name.endswith("/cold")
    )
    m_step = metrics["perf/m_step_seconds"]
    return {
        "seconds": whole,
        "m_step": m_step / whole,
        "e_step": e_step / whole,
        "rest": (e_step - features) / whole,
        "cold": int(cold),
    }


def trained(config: RunConfig, scratch: str) -> list[dict[str, float]]:
    """The figures of every epoch of a run."""
    from pcl_ray.training.events import Event
    from pcl_ray.training.local_e_step import LocalEStep
    from pcl_ray.training.loop import train
    from pcl_ray.training.training_task import TrainingTask

    splits = datasets.load(config.data, cache_dir=Path(scratch))
    history: list[dict[str, float]] = []

    def post(event: Event) -> None:
        if event.kind == "epoch":
            history.append(event.metrics)

    with tempfile.TemporaryDirectory(dir=scratch) as run_dir:
        task = TrainingTask(config, plans.make(config, len(splits.train), splits.num_holdout), run_dir)
        if not config.resources.workers:
            train(
                task,
                splits,
                device=torch.device("cpu"),
                e_step=LocalEStep(config, splits),
                broadcast=lambda value: value,
                post=post,
            )
            return history
        with common.own_ray(
            math.ceil(
                config.resources.workers * config.resources.cpus_per_worker + config.resources.e_step_cpus
            )
        ):
            from pcl_ray.on_ray.launch import train_on_ray

            train_on_ray(task, splits, post)
    return history


# --- gather

MODES = 1000  # of the mixture, and K


class Pusher:
    """Stands for a train worker with half of the features; sends them with the worker's own code."""

    def __init__(self, number: int, count: int):
        self._first = number * count
        self._features = Mixture(MODES).draw(count, seed=10 + number).numpy()

    def push(self, task: Any, actor: Any, key: str, request: Any) -> None:
        from pcl_ray.on_ray.processes.actor_e_step import ActorEStep
        from pcl_ray.on_ray.processes.worker_input import WorkerInput

        nothing: Any = None
        worker_input = WorkerInput(task, nothing, actor, nothing)
        ids = np.arange(self._first, self._first + len(self._features))
        e_step = ActorEStep(worker_input, torch.device("cpu"))
        e_step.push(key, request, {"train": FeatureShard(ids, self._features)})


def gather(arguments: Namespace, report: Report) -> None:
    from pcl_ray.training.e_step_shards import EStepRequest
    from pcl_ray.training.training_task import TrainingTask

    half = 100_000 if arguments.quick else 640_000
    changes = {
        "encoder.dim": DIM,
        "e_step.num_clusters": [MODES],
        "e_step.warmup_epochs": 1,
        "resources.workers": 2,
    }
    config = configs.load("fashion_mnist", changes)
    task = TrainingTask(config, plans.make(config, 2 * half), "")
    size = 2 * half * DIM * 4
    report.row("sizes", N=2 * half, bytes=size)
    with common.own_ray(4) as ray:
        from pcl_ray.on_ray import launch

        actor = launch.start_e_step_actor(config)
        pushers = [ray.remote(Pusher).options(num_cpus=1).remote(number, half) for number in range(2)]

        def build_request(cluster: bool, num_images: int = 2 * half, shards: int = 2) -> EStepRequest:
            return EStepRequest(1, cluster, False, shards, num_images)

        def run(key: str, request: EStepRequest, previous: ClusterSet | None = None) -> Any:
            answer = ray.get(actor.run.remote(key, request, ray.put(previous), None, None), timeout=LIMIT_S)
            if answer.missing or answer.refused:
                raise RunFailed(f"the E-step actor answers: {answer.missing or answer.refused}")
            return answer

        def push(key: str) -> None:
            ray.get(
                [pusher.push.remote(task, actor, key, build_request(True)) for pusher in pushers],
                timeout=LIMIT_S,
            )

        def gathered(number: int) -> None:
            push(f"round {number}")
            run(f"round {number}", build_request(False))  # says whether the matrix is whole, and drops it

        # A small E-step first: what libraries take when they are loaded is not what is asked.
        small = Mixture(MODES).draw(20 * MODES, seed=1).numpy()
        ray.get(
            actor.push.remote("small", "train", np.arange(len(small)), small, len(small)), timeout=LIMIT_S
        )
        run("small", build_request(True, len(small), 1))
        gather_times(arguments, report, gathered, size)
        gather_memory(
            report,
            ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=LIMIT_S),
            push,
            run,
            build_request(True),
            half,
        )


def gather_times(arguments: Namespace, report: Report, gathered: Any, size: int) -> None:
    source, warm = np.ones(size, np.uint8), np.ones(size, np.uint8)
    calls = {
        "gather": gathered,
        "memcpy into a fresh array": lambda number: np.copyto(np.empty_like(source), source),
        "memcpy into a used array": lambda number: np.copyto(warm, source),
    }
    timed: dict[str, Timed] = interleaved(calls, arguments.repeats)
    for name, one in timed.items():
        report.timing(name, one, gigabytes_per_second=size / one.median / 1e9)
    ratio = report.ratio(
        "gather / memcpy into a fresh array", timed["gather"], timed["memcpy into a fresh array"]
    )
    report.ratio("gather / memcpy into a used array", timed["gather"], timed["memcpy into a used array"])
    report.claim(
        "gather from two actors / single-thread memcpy of the same bytes into a fresh array",
        ratio,
        at_most=3,
        full_size=True,
    )


def gather_memory(report: Report, process: int, push: Any, run: Any, request: Any, half: int) -> None:
    """The E-step actor's memory above what it had before the features came, in units of their bytes."""
    size = 2 * half * DIM * 4
    which = torch.cat([Mixture(MODES).which(half, seed=10 + number) for number in range(2)])
    previous = ClusterSet(0, (Clustering(Mixture(MODES).modes, which, torch.full((MODES,), TEMPERATURE)),))
    before = common.memory_of(process)
    with MemoryWatch(process) as gathering:
        push("memory")
    with MemoryWatch(process) as clustering:
        answer = run("memory", request, previous)
    assert not answer.metrics["cluster/0/cold"], "the clustering was to begin warm"
    for name, watch in {"gather": gathering, f"label-warm clustering, K {MODES}": clustering}.items():
        above = {kind: (watch.peak[kind] - before[kind]) / size for kind in before}
        # Pages of the object store count as resident from their first use on, so they were there before: said
        # as a whole.
        report.row(
            f"memory of the E-step actor during the {name} / features",
            **above,
            object_store_pages=watch.peak["shared"] / size,
        )
        report.claim(
            f"private memory of the E-step actor during the {name} / bytes of the features",
            above["private"],
            at_most=1.3,
            full_size=True,
        )


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
