"""What the E-step's short cuts cost in quality: kNN accuracy and agreement with the labels on Fashion-MNIST, several seeds.

    python benchmarks/estep_quality.py                       # 9 runs of 6,000 images and 12 epochs: half an hour on one core
    python benchmarks/estep_quality.py --quick               # one seed, 1,500 images, 4 epochs: a minute; says nothing about quality

Every setting trains with the same seeds, so that differences are taken seed by seed. Figures of a finished run: benchmarks/RESULTS.md.
"""

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

SETTINGS = {
    "fresh": [],
    "bank": ["e_step.features=bank"],
    "bank, fresh at every third": ["e_step.features=bank", "e_step.fresh_every=3"],
}
FIGURES = ("eval/knn_top1", "cluster/0/ami", "cluster/0/purity")


def main() -> int:
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    if given.quick:
        given.images, given.epochs, given.repeats = 1500, 4, 1
    report = common.Report("estep_quality", given.quick)
    found = {name: [_trained(words, seed, given) for seed in range(given.repeats)] for name, words in SETTINGS.items()}
    for name, runs in found.items():
        for figure in FIGURES:
            values = [run[figure] for run in runs]
            report.row(f"{name}: {figure}", mean=statistics.mean(values), least=min(values), most=max(values))
    for name in ("bank", "bank, fresh at every third"):
        lost = [other["eval/knn_top1"] - one["eval/knn_top1"] for one, other in zip(found[name], found["fresh"], strict=True)]
        report.row(f"kNN accuracy lost by {name}, seed by seed", mean=statistics.mean(lost), least=min(lost), most=max(lost))
        report.claim(f"mean kNN accuracy lost by {name}", statistics.mean(lost), at_most=0.01, full_size=True)
    return report.end(given.json)


def _trained(words: list[str], seed: int, given: argparse.Namespace) -> dict[str, float]:
    """The last epoch's figures of one run in this process."""
    os.environ["PCL_RAY_HOME"] = tempfile.mkdtemp()
    from pcl_ray.service import request, run
    from pcl_ray.service.progress import Display

    size = [f"data.limit={given.images}", f"train.epochs={given.epochs}", f"seed={seed}", "loss.queue_size=512", "e_step.num_clusters=0.01,0.02,0.05"]
    fixed = ["e_step.warmup_epochs=2", "evaluation.every_epochs=0", "resources.workers=0", "tracking.enabled=false", "e_step.threads=1"]
    with Path(os.devnull).open("w") as quiet:
        result = run.start(request.check("fashion_mnist", [*size, *fixed, *words]), name="one", display=Display(quiet))
    figures = {name: result.metrics[name] for name in FIGURES}
    print(f"seed {seed} {' '.join(words) or 'fresh'}: {figures}", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
