"""Which figures are not charted: each would be a card of the dashboard, and sixty cards answer no question.
All are in the checkpoint and in `figures.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_UNCHARTED = re.compile(
    r"eval/(alignment|uniformity|areq)"
    r"|cluster/(cone|spread|failures)"
    r"|cluster/\d+/(k|singletons|phi_min|phi_mean|phi_max|objective_ratio|nmi|ari|purity|cold|passes|changed|repaired|shortlist_\w+|phi_raw_\w+"
    r"|phi_imputed|phi_zeros|phi_clipped)"
    r"|perf/(data|epoch|feature|cluster|evaluation|lidar|owed)_seconds|perf/step_seconds_\w+|perf/e_step_share"
)


def charted(metrics: Mapping[str, float], also: Iterable[str] = ()) -> dict[str, float]:
    """The figures without those that are not charted; with those in `also` in any case."""
    wanted = set(also)
    return {
        name: value
        for name, value in metrics.items()
        if name in wanted or not _UNCHARTED.fullmatch(str(name))
    }
