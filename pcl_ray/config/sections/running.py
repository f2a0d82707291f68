"""Where a run is computed, what is recorded of it, and how it is measured."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from pcl_ray.config.sections.base import LATE_MACHINERY, MACHINERY, RECORDING, Section, knob, numbers


class ResourcesConfig(Section):
    """What a run takes of the cluster."""

    workers: int = knob(
        1,
        MACHINERY,
        (
            "Ray Train workers; 0 runs everything in this process, without Ray. [2, 8]: as many of these as"
            " there is room for, which sets min_workers, too."
        ),
        ge=0,
        le=4096,
    )
    min_workers: int | None = knob(
        None,
        MACHINERY,
        (
            "With fewer workers than `workers` the run begins, and goes on where a node is lost, down to this"
            " number; null: never with fewer."
        ),
        ge=1,
        le=4096,
    )
    gpus_per_worker: float = knob(
        0.0, MACHINERY, "GPUs of each worker: 1, a share, or 0 for the CPU.", ge=0, le=1
    )
    cpus_per_worker: float = knob(
        1.0, MACHINERY, "CPU cores of each worker; it uses as many threads.", gt=0, le=1024
    )
    e_step_cpus: float = knob(1.0, MACHINERY, "CPU cores that the E-step actor reserves.", ge=0, le=1024)
    e_step_gpus: float = knob(0.0, MACHINERY, "GPUs that the E-step actor reserves.", ge=0, le=8)
    max_failures: int = knob(
        2,
        MACHINERY,
        "How often lost workers are replaced and the run goes on from its last checkpoint.",
        ge=0,
        le=1000,
    )
    start_timeout_s: float = knob(300.0, MACHINERY, "Seconds to wait for workers and actor to start.", gt=0)
    queue_timeout_s: float = knob(
        86400.0, MACHINERY, "Seconds to wait on a shared cluster until others leave room for this run.", gt=0
    )
    autoscaling: bool = knob(
        False,
        MACHINERY,
        (
            "The cluster adds nodes by itself: wait for those that it does not have yet, up to"
            " queue_timeout_s."
        ),
    )
    storage: str | None = knob(
        None,
        MACHINERY,
        (
            "Where checkpoints and results are kept beside PCL_RAY_HOME: an absolute path that all nodes see,"
            " or a URI (s3://bucket/path); null: PCL_RAY_STORAGE, else PCL_RAY_HOME alone, which all nodes"
            " must then share."
        ),
    )
    step_timeout_s: float = knob(
        1800.0,
        MACHINERY,
        (
            "Seconds after which a worker that waits for another gives up, beside the e_step.timeout_s of an"
            " E-step."
        ),
        gt=0,
    )

    @model_validator(mode="before")
    @classmethod
    def _range_of_workers(cls, values: Any) -> Any:
        """`workers: [2, 8]` as both of its knobs."""
        given = numbers(values.get("workers")) if isinstance(values, dict) else None
        if not isinstance(given, list | tuple) or len(given) != 2:
            return values
        return values | {"min_workers": given[0], "workers": given[1]}

    @property
    def fewest_workers(self) -> int:
        """Workers without which the run does not go on."""
        return self.workers if self.min_workers is None else min(self.min_workers, self.workers)


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = knob(True, RECORDING, "Record the run in MLflow.")
    uri: str | None = knob(
        None,
        RECORDING,
        ("Tracking server; null uses MLFLOW_TRACKING_URI, else an embedded sqlite store under PCL_RAY_HOME."),
    )
    experiment: str = knob("pcl_ray", RECORDING, "MLflow experiment.", min_length=1)
    flush_s: float = knob(5.0, RECORDING, "Seconds between two writes to the server.", gt=0, le=600)
    metrics: Literal["charted", "all"] = knob(
        "charted",
        RECORDING,
        "charted: the figures that make a readable dashboard; all: every figure there is.",
    )
    pictures: int = knob(
        12,
        RECORDING,
        (
            "Times that clusters are drawn over a run, before the first and after the last step among them; 1"
            " at the end alone, 0 never."
        ),
        ge=0,
        le=1000,
    )
    system_metrics_s: float = knob(
        15.0, RECORDING, "Seconds between two looks at how busy each node is; 0 does not look.", ge=0, le=3600
    )
    report: bool = knob(True, RECORDING, "Write report.html at the end of the run.")
    model: bool = knob(True, RECORDING, "Record the encoder as an MLflow model at the end of the run.")
    register_as: str | None = knob(
        None,
        RECORDING,
        (
            "Register that model under this name (letters, digits, _ . - and space); alias best goes to the"
            " version with the best figure."
        ),
        pattern=r"^[A-Za-z0-9_. -]+$",
    )


class EvaluationConfig(Section):
    """Measured during training: from the features of the E-step, and LiDAR from views of its own."""

    # pixels have many dimensions: all queries could take a minute
    REFERENCE_QUERIES: ClassVar[int] = 2000  # held-out images that reference lines are measured on, at most

    every_epochs: int = knob(
        1, MACHINERY, "Epochs between two evaluations; 0 evaluates only after the last epoch.", ge=0
    )
    knn_neighbours: int = knob(200, MACHINERY, "Neighbours of the weighted kNN classifier.", ge=1)
    knn_temperature: float = knob(0.07, MACHINERY, "Its weights are exp(cosine / temperature).", gt=0)
    bank_images: int = knob(
        60_000,
        MACHINERY,
        (
            "Labelled training images, a fixed sample where there are more, among which the classifier looks"
            " for neighbours."
        ),
        ge=1,
    )
    query_images: int = knob(
        10_000,
        MACHINERY,
        "Labelled held-out images, a fixed sample where there are more, that it is tried on.",
        ge=1,
    )
    reference_lines: bool = knob(
        True,
        MACHINERY,
        "Measure once, before the first step, what raw pixels and the untrained encoder reach.",
    )
    final: tuple[Literal["linear", "few_labels", "clusters"], ...] = knob(
        ("linear", "few_labels", "clusters"),
        LATE_MACHINERY,
        (
            "Measured once, after the last epoch, where there are labels: a linear probe, classifiers from 1,"
            " 5 and 10 labels a class, k-means with as many clusters as classes; []: none of them."
        ),
    )
    lidar_images: int = knob(
        1000,
        MACHINERY,
        "Images that LiDAR is measured on, spread evenly over the training part; at most all of it.",
        ge=2,
    )
    lidar_views: int = knob(
        0,
        MACHINERY,
        (
            "Random views of each of these images, rounded up to an even number; 10 to 50 are usual. 0 leaves"
            " LiDAR out."
        ),
        ge=0,
        le=1000,
    )
