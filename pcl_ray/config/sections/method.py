"""The method itself: encoder, ProtoNCE and E-step. Defaults are the paper's v2 setting, where it has one."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pcl_ray.config.sections.base import (
    CLUSTERING,
    IMAGES,
    LATE_MACHINERY,
    PROTOTYPES,
    TRAINING,
    VIEWS,
    WEIGHTS,
    Section,
    knob,
)


class EncoderConfig(Section):
    """Backbone and projection head; the momentum encoder is its moving average."""

    backbone: str = knob(
        "resnet50",
        WEIGHTS,
        (
            "resnet18 … resnet152, wide_resnet50_2, wide_resnet101_2, resnext50_32x4d, small_resnet (for"
            " CPUs), timm:NAME, timm:NAME,patch_size=4,… with other values than that model's, or"
            " init_from: that of the weights of encoder.init_from, with their head."
        ),
        pattern=r"^(resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext50_32x4d|small_resnet|init_from|timm:.+)$",
    )
    stem: Literal["imagenet", "small"] = knob(
        "imagenet", WEIGHTS, "small: 3×3 stride 1 and no max-pool, for images up to about 64 px."
    )
    width: int = knob(
        16, WEIGHTS, "small_resnet: channels of the first stage, doubled each stage.", ge=4, le=256
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=32)], ...] = knob(
        (2, 2, 2, 2), WEIGHTS, "small_resnet: basic blocks in each stage."
    )
    stem_stride: int = knob(
        1,
        WEIGHTS,
        (
            "small_resnet: stride of the first convolution; 2, by a 4×4 kernel, costs about a quarter of the"
            " computing."
        ),
        ge=1,
        le=2,
    )
    head: Literal["linear", "mlp"] = knob(
        "mlp", WEIGHTS, "Projection head: linear (v1) or a two-layer MLP (v2)."
    )
    head_width: int | None = knob(
        None,
        WEIGHTS,
        "mlp: hidden units of the head; null: as many as the backbone's features.",
        ge=1,
        le=65536,
    )
    head_batch_norm: bool = knob(
        False, WEIGHTS, "mlp: batch norm between the hidden layer, then without a bias, and its ReLU."
    )
    dim: int = knob(
        128, WEIGHTS, "C: dimensions of the feature that is contrasted and clustered.", ge=2, le=65536
    )
    init_from: str | None = knob(
        None,
        WEIGHTS,
        (
            "Weights that the run begins with: a run's name, or a file that `load_encoder` takes; with its"
            " momentum encoder and queue, where it has them. null: random weights."
        ),
    )
    freeze_stages: int = knob(
        0,
        TRAINING,
        (
            "Stages of the backbone, from its input on, that keep their weights; 1 is the stem. 0: all are"
            " trained."
        ),
        ge=0,
        le=100,
    )
    momentum: float = knob(
        0.999, TRAINING, "Share of its old self that the momentum encoder keeps at each step.", ge=0, lt=1
    )
    momentum_end: float | None = knob(
        None,
        TRAINING,
        "What encoder.momentum becomes by the end of the run, along half a cosine; null: it stays.",
        ge=0,
        le=1,
    )
    batch_norm: Literal["shuffle", "sync", "plain"] = knob(
        "shuffle",
        TRAINING,
        "Over several workers: shuffle the key batch (MoCo), synchronise the statistics, or neither.",
    )
    batch_norm_parts: int = knob(
        1,
        TRAINING,
        (
            "Normalise a worker's batch in so many parts, each by its own statistics; with batch_norm ="
            " shuffle the key batch is shuffled over the parts as over workers."
        ),
        ge=1,
        le=1024,
    )


# K of every clustering: counts and shares of the images, or a choice by their number
NumClusters = Literal["auto"] | Annotated[tuple[int | float, ...], Field(min_length=1)]


class LossConfig(Section):
    """ProtoNCE = InfoNCE + prototype terms (paper, equations 11 and 12)."""

    temperature: float = knob(
        0.2,
        replace(VIEWS, perturbable=True),
        "τ: temperature of InfoNCE, and the mean of the concentrations φ.",
        gt=0,
        le=10,
    )
    queue_size: int = knob(
        16384, IMAGES, "R: momentum features kept as negatives of the instance term.", ge=1
    )
    queue_negatives: Literal["all", "other_clusters"] = knob(
        "all",
        PROTOTYPES,
        (
            "Queue keys that are an image's negatives: all, or from the first E-step on those of other"
            " clusters, by the finest clustering."
        ),
    )
    cluster_positives: float = knob(
        0.0,
        replace(PROTOTYPES, perturbable=True),
        (
            "Weight of one more InfoNCE term, from the first E-step on, whose positive is a queue key of"
            " another image of the same cluster, by the finest clustering."
        ),
        ge=0,
        le=100,
    )
    symmetric: bool = knob(
        False,
        TRAINING,
        "Each view is query and key in turn, and the loss the mean of both: twice the compute of a step.",
    )
    negative_prototypes: Literal["auto", "all"] | Annotated[int, Field(ge=1)] = knob(
        "auto",
        PROTOTYPES,
        (
            "Negative prototypes per step and clustering: all others, or this many drawn at random; auto"
            " draws only of very many."
        ),
    )
    mask_duplicates: bool = knob(
        True,
        PROTOTYPES,
        "Hide an image's own prototype where another image of the batch brings it in as a negative.",
    )
    prototype_weight: float = knob(
        1.0,
        replace(PROTOTYPES, perturbable=True),
        "Weight of the prototype term; 0 leaves InfoNCE.",
        ge=0,
        le=100,
    )
    prototype_ramp_epochs: float = knob(
        0.0,
        PROTOTYPES,
        "Epochs after the warm-up over which that weight rises from 0, step by step; 0: it is there at once.",
        ge=0,
        le=10_000,
    )


class EStepConfig(Section):
    """Clustering of the momentum features, once an epoch."""

    num_clusters: NumClusters = knob(
        (25000, 50000, 100000),
        replace(PROTOTYPES, perturbable=True),
        (
            "K: one clustering for each number; 2 or more is a count, a number below 1 a share of the N"
            " images. auto: counts that follow from N."
        ),
    )
    alpha: float = knob(
        10.0,
        replace(PROTOTYPES, perturbable=True),
        "α: smooths the concentration of small clusters (it is not the weight of the prototype term).",
        ge=0,
        le=1e6,
    )
    warmup_epochs: int = knob(20, TRAINING, "Epochs of InfoNCE alone before the first clustering.", ge=0)
    every_epochs: int = knob(1, CLUSTERING, "Cluster anew at every this many epochs after the warm-up.", ge=1)
    early_epochs: int = knob(
        0,
        CLUSTERING,
        "Epochs after the warm-up in which early_every_epochs counts instead of every_epochs.",
        ge=0,
    )
    early_every_epochs: int = knob(
        1, CLUSTERING, "In the early epochs, cluster anew at every this many epochs.", ge=1
    )
    warm_start: Literal["labels", "centroids", "none"] = knob(
        "labels",
        CLUSTERING,
        (
            "From the second E-step on, begin with the means of the new features over the last assignments,"
            " with the last centroids, or anew."
        ),
    )
    iterations: int = knob(5, CLUSTERING, "Passes of k-means after a warm start.", ge=1, le=1000)
    cold_iterations: int | None = knob(
        None,
        CLUSTERING,
        "Iterations of a run that begins anew; null takes iterations, but at least 20.",
        ge=1,
        le=1000,
    )
    restarts: int = knob(
        5, CLUSTERING, "Runs that begin anew, from other random points; the best is kept.", ge=1, le=100
    )
    restart_every: int = knob(
        0,
        CLUSTERING,
        "Begin anew at every this many E-steps; 0 only where the warm start turns out bad.",
        ge=0,
    )
    backend: Literal["auto", "faiss", "torch"] = knob(
        "auto", LATE_MACHINERY, "What finds nearest centroids; auto: torch for features on a GPU, else faiss."
    )
    shortlist_from: int = knob(
        500,
        CLUSTERING,
        (
            "K from which CPUs compare a point only with the centroids around its last one, checked on 1 % of"
            " the points; 0 never."
        ),
        ge=0,
    )
    mode: Literal["auto", "single", "distributed", "sharded"] = knob(
        "auto",
        LATE_MACHINERY,
        (
            "Where features are clustered: in one actor, in the workers that hold them, or in several actors;"
            " auto chooses by size."
        ),
    )
    shards: int = knob(
        0, LATE_MACHINERY, "Actors of mode sharded; 0 takes as many as memory_gb asks for.", ge=0, le=1024
    )
    memory_gb: float = knob(8.0, LATE_MACHINERY, "GB of features that auto gives to one E-step actor.", gt=0)
    feature_dtype: Literal["float32", "float16"] = knob(
        "float32", TRAINING, "How features travel to the E-step and lie there."
    )
    features: Literal["fresh", "bank"] = knob(
        "fresh",
        CLUSTERING,
        (
            "fresh: an evaluation pass over all images (the paper); bank: momentum features of the M-step,"
            " which saves the pass."
        ),
    )
    bank_momentum: float = knob(
        0.5,
        CLUSTERING,
        "bank: share of its old self that a row keeps when its image is seen again.",
        ge=0,
        lt=1,
    )
    fresh_every: int = knob(
        0, CLUSTERING, "bank: a fresh pass at every this many E-steps; 0 only at the first.", ge=0
    )
    overlap: bool = knob(
        False,
        CLUSTERING,
        (
            "Cluster while the next epoch trains on the last prototypes; all workers change over at the same"
            " step."
        ),
    )
    switch_step: int | None = knob(
        None,
        CLUSTERING,
        (
            "overlap: step of the epoch at which the new prototypes come into force; null: when they are"
            " ready."
        ),
        ge=0,
    )
    nested: bool = knob(
        False, CLUSTERING, "Make each coarser clustering of the prototypes of the next finer one."
    )
    nested_passes: int = knob(
        3, CLUSTERING, "nested: passes over the images after that; 0 keeps a strict hierarchy.", ge=0, le=1000
    )
    balance: float | None = knob(
        None,
        CLUSTERING,
        "No cluster gets more images than this many times the mean size; null: no limit.",
        ge=1,
    )
    collapse_cone: float = knob(
        0.999, CLUSTERING, "Mean cosine of two images above which features count as collapsed.", gt=0, le=1
    )
    collapse_rank: float = knob(
        5.0,
        CLUSTERING,
        (
            "Effective rank below which features count as collapsed (with fewer than 20 dimensions, a"
            " quarter)."
        ),
        ge=0,
    )
    patience: int = knob(
        3, LATE_MACHINERY, "E-steps in a row without a usable clustering after which the run ends.", ge=1
    )
    spherical: bool = knob(False, CLUSTERING, "Normalise the centroids after every iteration.")
    clip: tuple[float, float] = knob(
        (10.0, 90.0), PROTOTYPES, "Percentiles that the concentrations are clipped to."
    )
    normalise: bool = knob(
        True, PROTOTYPES, "Scale the concentrations so that their mean is the temperature."
    )
    threads: int = knob(
        0,
        LATE_MACHINERY,
        "CPU threads of the clustering; 0: all cores of its machine for one actor, else its own.",
        ge=0,
        le=1024,
    )
    timeout_s: float = knob(
        3600.0, LATE_MACHINERY, "Seconds after which an E-step that has not answered fails the run.", gt=0
    )

    @field_validator("num_clusters")
    @classmethod
    def _counts_or_shares(cls, values: NumClusters) -> NumClusters:
        if values == "auto":
            return values
        wrong = [value for value in values if not _is_count(value) and not 0 < value < 1]
        if wrong:
            raise ValueError(
                f"{', '.join(map(str, wrong))} is neither a count of 2 or more nor a share between 0 and 1"
            )
        return tuple(int(value) if value >= 2 else value for value in values)

    @field_validator("clip")
    @classmethod
    def _rising_percentiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("two rising percentiles between 0 and 100")
        return value


def _is_count(value: int | float) -> bool:
    return value >= 2 and (isinstance(value, int) or value.is_integer())
