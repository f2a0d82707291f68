"""The sections of a run's configuration: every knob with its default, its range and a sentence.

Defaults are the paper's v2 setting where the paper has one. Imports neither torch nor numpy, so that `--help`
and a wrong key answer at once.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

DataSource = Literal["digits", "idx", "cifar10", "cifar100", "stl10", "imagenet", "folder", "arrays"]


def _numbers(value: object) -> object:
    """`250`, `0.02` and `250,500` are lists too: command lines and sweep spaces write them so."""
    if isinstance(value, str):
        try:
            return [yaml.safe_load(part) for part in value.strip("[] ").split(",")]
        except yaml.YAMLError:
            return value  # no list of numbers, which is then said
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: object, info: Any) -> object:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (annotation, *typing.get_args(annotation)):
            raise ValueError("true/false given")
        return _numbers(value) if typing.get_origin(annotation) is tuple else value


class DataConfig(Section):
    """Which images, and how they are read."""

    source: DataSource = Field(
        "digits", description="Where the images come from; every source gives each image a stable index."
    )
    path: str | None = Field(
        None,
        description=(
            "Folder (idx, cifar10, cifar100, stl10, imagenet, folder) or .npy/.npz file (arrays). Not used by"
            " digits."
        ),
    )
    channels: Literal[1, 3] = Field(3, description="Images are converted to grey (1) or RGB (3).")
    holdout: float = Field(
        0.2,
        ge=0,
        le=0.9,
        description=(
            "Share of the images kept for evaluation, where the data set has no held-out part of its own."
        ),
    )
    limit: int | None = Field(
        None, ge=2, description="Train on a fixed random choice of this many images; null takes all."
    )
    unlabelled: bool = Field(
        True, description="STL-10: add the 100,000 unlabelled images to the training part."
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="Broken or empty image files: stop, or go on without them. Either way all are listed.",
    )
    check_images: bool = Field(
        True,
        description=(
            "Decode every file once before the first run on a folder; the outcome is kept for later runs."
        ),
    )
    in_memory: bool | Literal["auto"] = Field(
        "auto",
        description=(
            "Decode all files once and keep them in one array that all workers share; auto: where they take"
            " up to memory_gb. Arrays always are."
        ),
    )
    memory_gb: float = Field(
        4.0, gt=0, description="GB of decoded files up to which in_memory = auto keeps them in memory."
    )
    reduced_decoding: bool = Field(
        True, description="Decode large JPEGs at a half, a quarter or an eighth where the views need no more."
    )
    loader_workers: int | None = Field(
        None,
        ge=0,
        le=128,
        description=(
            "Processes per Train worker that decode files; null: as fits its CPUs. 0 does it in the worker."
        ),
    )
    prefetch: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Batches made ready ahead (by each loader process); null: 2, and 0 for memory to CPU.",
    )


class AugmentConfig(Section):
    """The two random views of an image, and the fixed view for evaluation."""

    engine: Literal["batch", "torchvision"] = Field(
        "batch",
        description=(
            "batch: a whole batch at once, on the training device; torchvision: one image after the other,"
            " the slow reference."
        ),
    )
    version: Literal["v1", "v2"] = Field(
        "v2", description="v1: MoCo's first set; v2: SimCLR's, with blur (PCL v1 and v2)."
    )
    image_size: int = Field(224, ge=4, le=1024, description="Side of the square views, in pixels.")
    min_crop: float = Field(
        0.2, gt=0, le=1, description="Smallest share of the image's area that a random crop keeps."
    )
    flip: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability of a left-right flip; 0 where left and right mean something.",
    )
    jitter: float = Field(
        0.4, ge=0, le=1, description="Strength of brightness, contrast and saturation jitter."
    )
    hue: float = Field(
        0.1, ge=0, le=0.5, description="Strength of hue jitter (the paper: 0.4 in v1, 0.1 in v2)."
    )
    grey: float = Field(0.2, ge=0, le=1, description="Probability of dropping the colours.")
    blur: float = Field(0.5, ge=0, le=1, description="Probability of a Gaussian blur (v2 only).")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), description="Mean a channel, of pixel values in 0..1."
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.229, 0.224, 0.225), description="Standard deviation a channel."
    )


class EncoderConfig(Section):
    """Backbone and projection head; the momentum encoder is its moving average."""

    backbone: str = Field(
        "resnet50",
        pattern=r"^(resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext50_32x4d|small_resnet|timm:.+)$",
        description=(
            "resnet18 … resnet152, wide_resnet50_2, wide_resnet101_2, resnext50_32x4d, small_resnet (for"
            " CPUs), or timm:NAME with timm installed."
        ),
    )
    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="small: 3×3 stride 1 and no max-pool, for images up to about 64 px."
    )
    width: int = Field(
        16, ge=4, le=256, description="small_resnet: channels of the first stage, doubled each stage."
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        (2, 2, 2, 2), description="small_resnet: basic blocks in each stage."
    )
    head: Literal["linear", "mlp"] = Field(
        "mlp", description="Projection head: linear (v1) or a two-layer MLP (v2)."
    )
    dim: int = Field(
        128, ge=2, le=4096, description="C: dimensions of the feature that is contrasted and clustered."
    )
    momentum: float = Field(
        0.999, ge=0, lt=1, description="Share of its old self that the momentum encoder keeps at each step."
    )
    batch_norm: Literal["shuffle", "sync", "plain"] = Field(
        "shuffle",
        description=(
            "Over several workers: shuffle the key batch (MoCo), synchronise the statistics, or neither."
        ),
    )


class LossConfig(Section):
    """ProtoNCE = InfoNCE + prototype terms (paper, equations 11 and 12)."""

    temperature: float = Field(
        0.2, gt=0, le=10, description="τ: temperature of InfoNCE, and the mean of the concentrations φ."
    )
    queue_size: int = Field(
        16384, ge=1, description="R: momentum features kept as negatives of the instance term."
    )
    negative_prototypes: Literal["auto", "all"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description=(
            "Negative prototypes per step and clustering: all others, or this many drawn at random; auto"
            " draws only of very many."
        ),
    )
    mask_duplicates: bool = Field(
        True,
        description=(
            "Hide an image's own prototype where another image of the batch brings it in as a negative."
        ),
    )
    prototype_weight: float = Field(
        1.0, ge=0, le=100, description="Weight of the prototype term; 0 leaves InfoNCE."
    )


class EStepConfig(Section):
    """Clustering of the momentum features, once an epoch."""

    num_clusters: tuple[int | float, ...] = Field(
        (25000, 50000, 100000),
        min_length=1,
        description=(
            "K: one clustering for each number; 2 or more is a count, a number below 1 a share of the N"
            " images."
        ),
    )
    alpha: float = Field(
        10.0,
        ge=0,
        le=1e6,
        description=(
            "α: smooths the concentration of small clusters (it is not the weight of the prototype term)."
        ),
    )
    warmup_epochs: int = Field(20, ge=0, description="Epochs of InfoNCE alone before the first clustering.")
    every_epochs: int = Field(
        1, ge=1, description="Cluster anew at every this many epochs after the warm-up."
    )
    warm_start: Literal["labels", "centroids", "none"] = Field(
        "labels",
        description=(
            "From the second E-step on, begin with the means of the new features over the last assignments,"
            " with the last centroids, or anew."
        ),
    )
    iterations: int = Field(5, ge=1, le=1000, description="Passes of k-means after a warm start.")
    cold_iterations: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Iterations of a run that begins anew; null takes iterations, but at least 20.",
    )
    restarts: int = Field(
        5, ge=1, le=100, description="Runs that begin anew, from other random points; the best is kept."
    )
    restart_every: int = Field(
        0,
        ge=0,
        description="Begin anew at every this many E-steps; 0 only where the warm start turns out bad.",
    )
    backend: Literal["auto", "faiss", "torch"] = Field(
        "auto", description="What finds nearest centroids; auto: torch for features on a GPU, else faiss."
    )
    shortlist_from: int = Field(
        500,
        ge=0,
        description=(
            "K from which CPUs compare a point only with the centroids around its last one, checked on 1 % of"
            " the points; 0 never."
        ),
    )
    mode: Literal["auto", "single", "distributed", "sharded"] = Field(
        "auto",
        description=(
            "Where features are clustered: in one actor, in the workers that hold them, or in several actors;"
            " auto chooses by size."
        ),
    )
    shards: int = Field(
        0, ge=0, le=1024, description="Actors of mode sharded; 0 takes as many as memory_gb asks for."
    )
    memory_gb: float = Field(8.0, gt=0, description="GB of features that auto gives to one E-step actor.")
    feature_dtype: Literal["float32", "float16"] = Field(
        "float32", description="How features travel to the E-step and lie there."
    )
    features: Literal["fresh", "bank"] = Field(
        "fresh",
        description=(
            "fresh: an evaluation pass over all images (the paper); bank: momentum features of the M-step,"
            " which saves the pass."
        ),
    )
    bank_momentum: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="bank: share of its old self that a row keeps when its image is seen again.",
    )
    fresh_every: int = Field(
        0, ge=0, description="bank: a fresh pass at every this many E-steps; 0 only at the first."
    )
    overlap: bool = Field(
        False,
        description=(
            "Cluster while the next epoch trains on the last prototypes; all workers change over at the same"
            " step."
        ),
    )
    switch_step: int | None = Field(
        None,
        ge=0,
        description=(
            "overlap: step of the epoch at which the new prototypes come into force; null: when they are"
            " ready."
        ),
    )
    nested: bool = Field(
        False, description="Make each coarser clustering of the prototypes of the next finer one."
    )
    nested_passes: int = Field(
        3, ge=0, le=1000, description="nested: passes over the images after that; 0 keeps a strict hierarchy."
    )
    balance: float | None = Field(
        None,
        ge=1,
        description="No cluster gets more images than this many times the mean size; null: no limit.",
    )
    collapse_cone: float = Field(
        0.999, gt=0, le=1, description="Mean cosine of two images above which features count as collapsed."
    )
    collapse_rank: float = Field(
        5.0,
        ge=0,
        description=(
            "Effective rank below which features count as collapsed (with fewer than 20 dimensions, a"
            " quarter)."
        ),
    )
    patience: int = Field(
        3, ge=1, description="E-steps in a row without a usable clustering after which the run ends."
    )
    spherical: bool = Field(False, description="Normalise the centroids after every iteration.")
    clip: tuple[float, float] = Field(
        (10.0, 90.0), description="Percentiles that the concentrations are clipped to."
    )
    normalise: bool = Field(
        True, description="Scale the concentrations so that their mean is the temperature."
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the clustering; 0: all cores of its machine for one actor, else its own.",
    )
    timeout_s: float = Field(
        3600.0, gt=0, description="Seconds after which an E-step that has not answered fails the run."
    )

    @field_validator("num_clusters")
    @classmethod
    def _counts_or_shares(cls, values: tuple[int | float, ...]) -> tuple[int | float, ...]:
        wrong = [
            v for v in values if not (v >= 2 and (isinstance(v, int) or v.is_integer())) and not 0 < v < 1
        ]
        if wrong:
            raise ValueError(
                f"{', '.join(map(str, wrong))} is neither a count of 2 or more nor a share between 0 and 1"
            )
        return tuple(int(v) if v >= 2 else v for v in values)

    @field_validator("clip")
    @classmethod
    def _rising_percentiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("two rising percentiles between 0 and 100")
        return value


class OptimizerConfig(Section):
    """Gradient descent on the query encoder."""

    name: Literal["sgd", "adamw", "lars"] = Field(
        "sgd", description="sgd (the paper), adamw, or lars for very large batches."
    )
    lr: float = Field(
        0.03,
        gt=0,
        le=100,
        description="Learning rate at the configured batch size; it is not scaled by itself.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd and lars.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Weight decay.")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="cosine (v2), or step at the milestones (v1)."
    )
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (120, 160), description="Epochs at which the step schedule multiplies the rate by gamma."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of the step schedule.")
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs over which the rate rises linearly from 0.")
    fused: bool = Field(
        True, description="sgd and adamw: one kernel for all weights, where torch has it for the device."
    )


class TrainConfig(Section):
    """Length of the run, batch, checkpoints."""

    epochs: int = Field(200, ge=1, description="Passes over the training images.")
    batch_size: int = Field(256, ge=2, description="Images per step over all workers together.")
    micro_batch: int | None = Field(
        None,
        ge=2,
        description=(
            "Images of one forward pass on a worker: where its part of a step is larger, gradients are"
            " accumulated. null: all at once."
        ),
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast on GPUs that have it, fp32 elsewhere."
    )
    memory_format: Literal["channels_last", "contiguous"] = Field(
        "channels_last", description="How images and weights lie in memory."
    )
    compile: bool = Field(
        False,
        description=(
            "Compile the encoders with torch.compile (a minute at the start); where that fails, a warning and"
            " go on without."
        ),
    )
    log_every_steps: int = Field(
        50, ge=1, description="Steps between two progress lines and two points of the step metrics."
    )
    checkpoint_every_epochs: int = Field(
        1, ge=1, description="Epochs between two checkpoints; the last epoch is always kept."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept; older ones are removed after a new one is safe on disk."
    )


class ResourcesConfig(Section):
    """What a run takes of the cluster."""

    workers: int = Field(
        1, ge=0, le=4096, description="Ray Train workers; 0 runs everything in this process, without Ray."
    )
    gpus_per_worker: float = Field(
        0.0, ge=0, le=1, description="GPUs of each worker: 1, a share, or 0 for the CPU."
    )
    cpus_per_worker: float = Field(
        1.0, gt=0, le=1024, description="CPU cores of each worker; it uses as many threads."
    )
    e_step_cpus: float = Field(1.0, ge=0, le=1024, description="CPU cores that the E-step actor reserves.")
    e_step_gpus: float = Field(0.0, ge=0, le=8, description="GPUs that the E-step actor reserves.")
    max_failures: int = Field(
        2,
        ge=0,
        le=1000,
        description="How often lost workers are replaced and the run goes on from its last checkpoint.",
    )
    start_timeout_s: float = Field(300.0, gt=0, description="Seconds to wait for workers and actor to start.")
    queue_timeout_s: float = Field(
        86400.0, gt=0, description="Seconds to wait on a shared cluster until others leave room for this run."
    )
    autoscaling: bool = Field(
        False,
        description=(
            "The cluster adds nodes by itself: wait for those that it does not have yet, up to"
            " queue_timeout_s."
        ),
    )
    storage: str | None = Field(
        None,
        description=(
            "Where checkpoints and results are kept beside PCL_RAY_HOME: an absolute path that all nodes see,"
            " or a URI (s3://bucket/path); null: PCL_RAY_STORAGE, else PCL_RAY_HOME alone, which all nodes"
            " must then share."
        ),
    )
    step_timeout_s: float = Field(
        1800.0,
        gt=0,
        description=(
            "Seconds after which a worker that waits for another gives up, beside the e_step.timeout_s of an"
            " E-step."
        ),
    )


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = Field(True, description="Record the run in MLflow.")
    uri: str | None = Field(
        None,
        description=(
            "Tracking server; null uses MLFLOW_TRACKING_URI, else an embedded sqlite store under"
            " PCL_RAY_HOME."
        ),
    )
    experiment: str = Field("pcl_ray", min_length=1, description="MLflow experiment.")
    flush_s: float = Field(5.0, gt=0, le=600, description="Seconds between two writes to the server.")
    metrics: Literal["charted", "all"] = Field(
        "charted",
        description="charted: the figures that make a readable dashboard; all: every figure there is.",
    )
    pictures: int = Field(
        12,
        ge=0,
        le=1000,
        description=(
            "Times that clusters are drawn over a run, before the first and after the last step among them; 1"
            " at the end alone, 0 never."
        ),
    )
    system_metrics_s: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="Seconds between two looks at how busy each node is; 0 does not look.",
    )
    report: bool = Field(True, description="Write report.html at the end of the run.")
    model: bool = Field(True, description="Record the encoder as an MLflow model at the end of the run.")
    register_as: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_. -]+$",
        description=(
            "Register that model under this name (letters, digits, _ . - and space); alias best goes to the"
            " version with the best figure."
        ),
    )


class EvaluationConfig(Section):
    """Measured during training: from the features of the E-step, and LiDAR from views of its own."""

    every_epochs: int = Field(
        1, ge=0, description="Epochs between two evaluations; 0 evaluates only after the last epoch."
    )
    knn_neighbours: int = Field(200, ge=1, description="Neighbours of the weighted kNN classifier.")
    knn_temperature: float = Field(0.07, gt=0, description="Its weights are exp(cosine / temperature).")
    lidar_images: int = Field(
        1000,
        ge=2,
        description=(
            "Images that LiDAR is measured on, spread evenly over the training part; at most all of it."
        ),
    )
    lidar_views: int = Field(
        0,
        ge=0,
        le=1000,
        description=(
            "Random views of each of these images, rounded up to an even number; 10 to 50 are usual. 0 leaves"
            " LiDAR out."
        ),
    )
