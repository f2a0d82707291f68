"""A run's figures as metrics of its Ray cluster, for Prometheus and the Grafana dashboard in `docker/`.

The driver sets them from the events that it follows. Ray exports `ray_NAME`, with the run as label `run`.
"""

from __future__ import annotations

import sys
from typing import Any

from pcl_ray.config import figures
from pcl_ray.training.events import Event

_FIGURES = {
    "pcl_loss": figures.LOSS,
    "pcl_images_per_second": figures.IMAGES_PER_SECOND,
    "pcl_step_seconds_median": figures.STEP_SECONDS_MEDIAN,
    "pcl_step_seconds_p95": figures.STEP_SECONDS_P95,
    "pcl_data_wait_share": figures.DATA_SHARE,
    "pcl_e_step_seconds": figures.E_STEP_SECONDS,
}
# each gauge and what it is, for whoever builds a panel
GAUGES = {
    "pcl_epoch": "Epochs done.",
    "pcl_epochs": "Epochs of the whole run.",
    **{gauge: figure.sentence for gauge, figure in _FIGURES.items()},
    "pcl_prototype_age_steps": "Steps since the features of the prototypes in use were made.",
}
DROPPED = "pcl_tracking_dropped_points_total"
_DROPPED_SENTENCE = "Figures that MLflow will never have: no number, or not finite."


class RayMetrics:
    """Sets the metrics from a run's events. Does nothing where this process is not connected to Ray."""

    def __init__(self, run: str, epochs: int):
        self._run, self._epochs = run, epochs
        self._gauges: dict[str, object] | None = None
        self._prototypes_of: int | None = None  # step that the prototypes in use were made after
        self._dropped = 0

    def handle(self, event: Event, dropped: int) -> None:
        """dropped: points of the run so far that are lost to MLflow."""
        if event.kind not in ("step", "epoch", "figures", "start") or not self._ready():
            return
        if event.kind == "epoch":
            self._set("pcl_epoch", event.epoch + 1)
        for gauge, figure in _FIGURES.items():
            if figure.name in event.metrics:
                self._set(gauge, event.metrics[figure.name])
        if any(name.startswith("cluster/0/") for name in event.metrics):
            self._prototypes_of = event.step
        if self._prototypes_of is not None and event.kind != "start":
            self._set("pcl_prototype_age_steps", max(0, event.step - self._prototypes_of))
        if dropped > self._dropped:
            self._counter.inc(dropped - self._dropped, tags={"run": self._run})
            self._dropped = dropped

    def _ready(self) -> bool:
        ray = sys.modules.get("ray")  # a run without workers never imports it
        if ray is None or not ray.is_initialized():
            return False
        if self._gauges is None:
            from ray.util.metrics import Counter, Gauge

            self._gauges = {
                name: Gauge(name, description=sentence, tag_keys=("run",))
                for name, sentence in GAUGES.items()
            }
            # Ray adds the ending that Prometheus wants of a counter
            self._counter = Counter(
                DROPPED.removesuffix("_total"), description=_DROPPED_SENTENCE, tag_keys=("run",)
            )
            self._set("pcl_epochs", self._epochs)
        return True

    def _set(self, name: str, value: float) -> None:
        assert self._gauges is not None
        gauge: Any = self._gauges[name]
        gauge.set(float(value), tags={"run": self._run})
