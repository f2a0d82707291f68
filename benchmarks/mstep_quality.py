"""Whether the fast M-step learns the same: kNN accuracy on Fashion-MNIST after the same epochs, against the
slow reference pipeline, several seeds.

    python benchmarks/mstep_quality.py            # 10 seeds of 6,000 images, 12 epochs: an hour on one core
    python benchmarks/mstep_quality.py --quick    # one seed, 1,500 images, 4 epochs: a minute; no quality

slow: every speed-up turned off that changes numbers; views image by image by torchvision, contiguous memory,
one tensor after the other in the optimizer.
"""

from __future__ import annotations

import statistics
import sys

import common
import quality_runs

SETTINGS = {
    "slow": [
        "augment.engine=torchvision",
        "train.memory_format=contiguous",
        "optimizer.fused=false",
        "loss.negative_prototypes=all",
    ],
    "fast": [],
}
_T_95 = 2.262  # 95 % of Student's t with 9 degrees of freedom lie within ±


def main() -> int:
    arguments = quality_runs.options(__doc__, repeats=10)
    report = common.Report("mstep_quality", arguments.quick)
    figures = quality_runs.runs(report, SETTINGS, arguments)
    lost = quality_runs.lost(
        report, "kNN accuracy lost by the fast pipeline, seed by seed", figures["slow"], figures["fast"]
    )
    if len(lost) > 1:
        error = statistics.stdev(lost) / len(lost) ** 0.5
        report.row(
            "95 % interval of the mean loss",
            low=statistics.mean(lost) - _T_95 * error,
            high=statistics.mean(lost) + _T_95 * error,
        )
        report.claim(
            "mean kNN accuracy lost, in standard errors",
            statistics.mean(lost) / error,
            at_most=_T_95,
            full_size=True,
        )
    report.claim("mean kNN accuracy lost", statistics.mean(lost), at_most=0.01, full_size=True)
    return report.end(arguments.json)


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
