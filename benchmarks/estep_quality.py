"""What the E-step's short cuts cost in quality: kNN and agreement with labels on Fashion-MNIST, by seed.

    python benchmarks/estep_quality.py            # 9 runs of 6,000 images, 12 epochs: half an hour on a core
    python benchmarks/estep_quality.py --quick    # one seed, 1,500 images, 4 epochs: a minute; no quality

Every setting trains with the same seeds: differences are taken seed by seed. Figures: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import statistics
import sys

import common
import quality_runs

SETTINGS = {
    "fresh": [],
    "bank": ["e_step.features=bank"],
    "bank, fresh at every third": ["e_step.features=bank", "e_step.fresh_every=3"],
}


def main() -> int:
    arguments = quality_runs.options(__doc__, repeats=3)
    report = common.Report("estep_quality", arguments.quick)
    figures = quality_runs.runs(report, SETTINGS, arguments)
    for name in list(SETTINGS)[1:]:
        lost = quality_runs.lost(
            report, f"kNN accuracy lost by {name}, seed by seed", figures["fresh"], figures[name]
        )
        report.claim(f"mean kNN accuracy lost by {name}", statistics.mean(lost), at_most=0.01, full_size=True)
    return report.end(arguments.json)


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
