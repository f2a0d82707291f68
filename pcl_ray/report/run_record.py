"""What is known of a run when it is looked at afterwards. Read by `runs.record_reader`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcl_ray.config import RunConfig
from pcl_ray.config.figures import HEAD_KNN_TOP1, KNN_ERROR, KNN_TOP1, Figure
from pcl_ray.config.knn_figures import half_width
from pcl_ray.data.inspection.summary import DataSummary
from pcl_ray.plan import resolve_num_clusters
from pcl_ray.report.evaluations import StoredEvaluation
from pcl_ray.snapshot import Snapshot, Thumbnails


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run, under way or ended.

    history: an entry an epoch, oldest first: {"epoch": from 0, "step": global step of its last batch,
    "metrics": {name: value}}. Figures that an epoch lacks (no evaluation, no E-step) are missing, not NaN.
    """

    name: str
    config: RunConfig
    history: Sequence[Mapping[str, Any]]
    state: str = "finished"  # one of `runs.folder.State`
    error: str = ""
    num_images: int = 0  # N; 0 where it is not known
    num_holdout: int = 0
    num_clusters: tuple[int, ...] = ()  # K as counts; () where not known
    steps_per_epoch: int = 0
    class_names: tuple[str, ...] = ()  # () without labels
    command: str = ""
    fingerprint: str = ""  # of the images
    versions: Mapping[str, str] = field(default_factory=dict)  # and host, commit
    link: str = ""  # of the run in the dashboard
    snapshot: Snapshot | None = None  # of the last E-step that was shown
    thumbnails: Thumbnails | None = None
    evaluations: tuple[StoredEvaluation, ...] = ()
    data: DataSummary | None = None  # what was found of its pictures

    def series(self, figure: Figure) -> list[tuple[int, float]]:
        """The curve of a figure: (epoch from 1, value) of each epoch that it is known of."""
        return [
            (entry["epoch"] + 1, float(entry["metrics"][figure.name]))
            for entry in self.history
            if figure.name in entry["metrics"]
        ]

    def finite(self, figure: Figure) -> list[tuple[int, float]]:
        """The curve of a figure without values that are not finite."""
        return [point for point in self.series(figure) if math.isfinite(point[1])]

    def knn_error(self, epoch: int | None = None) -> float | None:
        """The ± of the kNN accuracy after an epoch (None: the last that was evaluated), from the number of
        held-out images; None where that or the accuracy is not known.
        """
        for figure in (KNN_ERROR, KNN_TOP1, HEAD_KNN_TOP1):
            values = [value for done, value in self.finite(figure) if epoch is None or done == epoch]
            if values and figure == KNN_ERROR:
                return values[-1]
            if values and self.num_holdout:  # recorded by an earlier version
                return half_width(values[-1], min(self.num_holdout, self.config.evaluation.query_images))
        return None

    @property
    def configured_clusters(self) -> tuple[int | float, ...]:
        """K of every clustering as configured, counts and shares; those that auto chose, () where that is not
        known.
        """
        configured = self.config.e_step.num_clusters
        if configured != "auto":
            return configured
        if self.num_clusters or not self.num_images:
            return self.num_clusters
        return resolve_num_clusters(configured, self.num_images)

    @property
    def epochs(self) -> int:
        """The number of epochs that are done."""
        return len(self.history)
