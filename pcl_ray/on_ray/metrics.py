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
_KINDS = ("step", "epoch", "figures", "start")  # the events that carry figures of the run
DROPPED = "pcl_tracking_dropped_points_total"
_DROPPED_SENTENCE = "Figures that MLflow will never have: no number, or not finite."


class GaugeValues:
    """The values that a run's events give to the gauges and to the counter, without Ray."""

    def __init__(self) -> None:
        self._prototypes_of: int | None = None  # step that the prototypes in use were made after
        self._dropped = 0

    def changed_by(self, event: Event) -> dict[str, float]:
        """The gauges that this event changes, and their values."""
        if event.kind not in _KINDS:
            return {}
        values: dict[str, float] = {"pcl_epoch": event.epoch + 1} if event.kind == "epoch" else {}
        for gauge, figure in _FIGURES.items():
            if figure.name in event.metrics:
                values[gauge] = event.metrics[figure.name]
        if any(name.startswith("cluster/0/") for name in event.metrics):
            self._prototypes_of = event.step
        if self._prototypes_of is not None and event.kind != "start":
            values["pcl_prototype_age_steps"] = max(0, event.step - self._prototypes_of)
        return values

    def newly_dropped(self, dropped: int) -> int:
        """How many more points are lost to MLflow than at the last call. dropped: those of the run so far."""
        more, self._dropped = max(0, dropped - self._dropped), max(dropped, self._dropped)
        return more


class RayMetrics:
    """Sets the metrics from a run's events. Does nothing where this process is not connected to Ray."""

    def __init__(self, run: str, epochs: int):
        self._tags, self._epochs = {"run": run}, epochs
        self._values = GaugeValues()
        self._gauges: dict[str, Any] | None = None

    def handle(self, event: Event, dropped: int) -> None:
        """dropped: points of the run so far that are lost to MLflow."""
        if event.kind not in _KINDS or not self._ready():
            return
        for gauge, value in self._values.changed_by(event).items():
            self._set(gauge, value)
        if more := self._values.newly_dropped(dropped):
            self._counter.inc(more, tags=self._tags)

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
        self._gauges[name].set(float(value), tags=self._tags)
