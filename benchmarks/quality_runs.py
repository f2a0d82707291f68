"""Small runs on Fashion-MNIST whose figures are compared seed by seed: shared by the quality benchmarks."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
from common import Report

FIGURES = ("eval/knn_top1", "cluster/0/ami", "cluster/0/purity")


def options(description: str | None, repeats: int) -> argparse.Namespace:
    """What was asked for; `repeats` is the number of seeds."""
    parser = common.parser(description, repeats)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.epochs, arguments.repeats = 1500, 4, 1
    return arguments


def runs(
    report: Report, settings: dict[str, list[str]], arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """The figures of every setting and seed, seeds in turns."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for seed in range(arguments.repeats):
        for name, words in settings.items():
            figures[name].append(trained(words, seed, arguments))
    for name, each in figures.items():
        for figure in FIGURES:
            values = [run[figure] for run in each]
            report.row(f"{name}: {figure}", mean=statistics.mean(values), least=min(values), most=max(values))
    return figures


def lost(
    report: Report, text: str, baseline: list[dict[str, float]], other: list[dict[str, float]]
) -> list[float]:
    """kNN accuracy of the baseline less the other's, seed by seed."""
    each = [one["eval/knn_top1"] - two["eval/knn_top1"] for one, two in zip(baseline, other, strict=True)]
    report.row(text, mean=statistics.mean(each), least=min(each), most=max(each))
    return each


def trained(words: list[str], seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The last epoch's figures of one run in this process."""
    os.environ["PCL_RAY_HOME"] = tempfile.mkdtemp()
    from pcl_ray.runs import driver, request
    from pcl_ray.runs.console import Display

    size = [
        f"data.limit={arguments.images}",
        f"train.epochs={arguments.epochs}",
        f"seed={seed}",
        "loss.queue_size=512",
        "e_step.num_clusters=0.01,0.02,0.05",
    ]
    fixed = [
        "e_step.warmup_epochs=2",
        "evaluation.every_epochs=0",
        "resources.workers=0",
        "tracking.enabled=false",
        "e_step.threads=1",
    ]
    with Path(os.devnull).open("w") as quiet:
        result = driver.start(
            request.check("fashion_mnist", [*size, *fixed, *words]), name="one", display=Display(quiet)
        )
    figures = {name: result.metrics[name] for name in FIGURES}
    print(f"seed {seed} {' '.join(words) or 'defaults'}: {figures}", file=sys.stderr, flush=True)
    return figures
