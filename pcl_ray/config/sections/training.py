"""Gradient descent: the optimizer, the length of the run, its batches and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from pcl_ray.config.sections.base import IMAGES, LATE_MACHINERY, MACHINERY, TRAINING, WEIGHTS, Section, knob


class OptimizerConfig(Section):
    """Gradient descent on the query encoder."""

    name: Literal["sgd", "adamw", "lars"] = knob(
        "sgd", WEIGHTS, "sgd (the paper), adamw, or lars for very large batches."
    )
    lr: float = knob(
        0.03,
        replace(TRAINING, perturbable=True),
        "Learning rate at the configured batch size; it is not scaled by itself.",
        gt=0,
        le=100,
    )
    momentum: float = knob(0.9, TRAINING, "Momentum of sgd and lars.", ge=0, lt=1)
    weight_decay: float = knob(1e-4, TRAINING, "Weight decay.", ge=0, le=1)
    decay_biases: bool = knob(
        True,
        WEIGHTS,
        "false: no weight decay of biases and normalisation, that is of tensors of one dimension; lars never"
        " decays them.",
    )
    schedule: Literal["cosine", "step", "constant"] = knob(
        "cosine", TRAINING, "cosine (v2), or step at the milestones (v1)."
    )
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = knob(
        (120, 160), TRAINING, "Epochs at which the step schedule multiplies the rate by gamma."
    )
    gamma: float = knob(0.1, TRAINING, "Factor of the step schedule.", gt=0, le=1)
    warmup_epochs: float = knob(0.0, TRAINING, "Epochs over which the rate rises linearly from 0.", ge=0)
    fused: bool = knob(
        True, TRAINING, "sgd and adamw: one kernel for all weights, where torch has it for the device."
    )


class TrainConfig(Section):
    """Length of the run, batch, checkpoints."""

    epochs: int = knob(200, MACHINERY, "Passes over the training images.", ge=1)
    batch_size: int = knob(256, IMAGES, "Images per step over all workers together.", ge=2)
    fit_to_data: bool = knob(
        False,
        MACHINERY,
        (
            "A shipped recipe's epochs, batch, queue, warm-up, image size and workers follow from the number"
            " and size of the images and from the machine, where nobody sets them."
        ),
    )
    micro_batch: int | None = knob(
        None,
        TRAINING,
        (
            "Images of one forward pass on a worker: where its part of a step is larger, gradients are"
            " accumulated. null: all at once."
        ),
        ge=2,
    )
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        TRAINING,
        (
            "auto: bf16 autocast on GPUs that have it, fp32 elsewhere. bf16: also on CPUs with AMX or AVX-512"
            " BF16."
        ),
    )
    memory_format: Literal["channels_last", "contiguous"] = knob(
        "channels_last", TRAINING, "How images and weights lie in memory."
    )
    compile: bool = knob(
        False,
        TRAINING,
        (
            "Compile the encoders with torch.compile (a minute at the start); where that fails, a warning and"
            " go on without."
        ),
    )
    log_every_steps: int = knob(
        50, MACHINERY, "Steps between two progress lines and two points of the step metrics.", ge=1
    )
    checkpoint_every_epochs: int = knob(
        1, LATE_MACHINERY, "Epochs between two checkpoints; the last epoch is always kept.", ge=1
    )
    checkpoint_every_steps: int | None = knob(
        None,
        LATE_MACHINERY,
        (
            "Steps between two checkpoints within an epoch, written at the next step whose figures are read"
            " (log_every_steps); null: by the clock alone."
        ),
        ge=1,
    )
    checkpoint_every_minutes: float | None = knob(
        30.0,
        LATE_MACHINERY,
        "Minutes after the last checkpoint when there is one within an epoch; null: none by the clock.",
        gt=0,
    )
    keep_checkpoints: int = knob(
        2, LATE_MACHINERY, "Checkpoints kept; older ones are removed after a new one is safe on disk.", ge=1
    )
    keep_best: int = knob(
        0,
        LATE_MACHINERY,
        (
            "Checkpoints kept beside the newest: those with the best eval/knn_top1, without labels the best"
            " eval/rankme."
        ),
        ge=0,
    )
    on_divergence: Literal["stop", "roll_back"] = knob(
        "stop",
        MACHINERY,
        (
            "Where loss or weights are not finite: the run ends, or goes back to its last good checkpoint"
            " with a learning rate of half the size, three times at most."
        ),
    )
