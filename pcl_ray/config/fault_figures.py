"""The figures of what went wrong in a run and was survived. The catalogue, `config.figures`, has them all."""

from __future__ import annotations

from pcl_ray.config.figure import Figure

FAILURES = Figure(
    "cluster/failures", "Failed E-steps", "E-steps in a row without a usable clustering.", charted=False
)
ROLLBACKS = Figure(
    "train/rollbacks",
    "Rollbacks",
    "How often the run went back to an earlier checkpoint, with a learning rate of half the size.",
    title="went back after a divergence",
    format="{:.0f}",
)
