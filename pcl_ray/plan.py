"""What follows from a configuration, the number of images and the number of workers; and whether they fit
together.

`check` runs before anything starts: a K that exceeds N must not show after twenty epochs of warm-up.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pcl_ray.config import EStepConfig, OptimizerConfig, RunConfig
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support import machine

FILE_SOURCES = ("folder", "imagenet")  # of one image a file
EStepMode = Literal["single", "distributed", "sharded"]

# loss.negative_prototypes = auto: from which K on so many are drawn (the paper's number) rather than all
# compared.
_DENSE_UP_TO_ON_CPU, _DENSE_UP_TO_ON_GPU, _DRAWN = 32_768, 262_144, 16_384


@dataclass(frozen=True)
class RunPlan:
    """The numbers of one run. Steps count from 0 over the whole run; epochs from 0."""

    num_images: int  # N
    num_holdout: int
    world_size: int
    devices: float  # GPUs, or workers where there are none: what a minute of the run costs
    batch_per_worker: int
    micro_batches: int  # forward passes of a worker in a step; their gradients are added up
    global_batch: int
    steps_per_epoch: int  # the incomplete last batch of an epoch is dropped; another permutation drops others
    epochs: int
    total_steps: int
    warmup_epochs: int
    num_clusters: tuple[int, ...]  # K, as counts
    negatives: tuple[int | None, ...]  # negative prototypes for each K; None: all others
    queue_size: int  # R
    # epochs that begin with new clusters; `epochs` stands for the final clustering
    e_step_epochs: tuple[int, ...]
    evaluation_epochs: tuple[int, ...]  # evaluated at the end of these epochs
    picture_epochs: tuple[int, ...]  # some of these: what is shown of the run is made at their end
    first_look: bool  # and before the first
    e_step_mode: EStepMode  # where features are clustered
    e_step_shards: int  # actors of mode sharded, else 0
    in_memory: bool  # images are in one array: of the source's own, or decoded at the start
    memory_side: int  # px: files decoded at the start are kept no larger
    loader_workers: int  # processes of each worker that decode
    threads: int  # of each worker's computing; what the cores allow may be fewer
    feature_bytes: int  # [N, C] as they travel
    assignment_bytes: int  # int64 for each clustering
    queue_bytes: int  # [R, C] float32
    optimizer: OptimizerConfig

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine to 0, steps at the milestones, or constant."""
        config, epoch = self.optimizer, step / self.steps_per_epoch
        if epoch < config.warmup_epochs:
            return config.lr * (step + 1) / math.ceil(config.warmup_epochs * self.steps_per_epoch)
        match config.schedule:
            case "cosine":
                done = (epoch - config.warmup_epochs) / (self.epochs - config.warmup_epochs)
                return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case "step":
                return config.lr * config.gamma ** sum(
                    int(epoch) >= milestone for milestone in config.milestones
                )
            case "constant":
                return config.lr

    def clusters_before(self, epoch: int) -> bool:
        """Whether epoch `epoch` begins with a new clustering (`epochs`: the final one, after training)."""
        return epoch in self.e_step_epochs

    def evaluates_after(self, epoch: int) -> bool:
        return epoch in self.evaluation_epochs

    def shows_after(self, epoch: int) -> bool:
        return epoch in self.picture_epochs

    def takes_fresh_features(self, epoch: int, fresh_every: int) -> bool:
        """With e_step.features = bank: whether the E-step before `epoch` makes a pass of its own. The first
        does, since the bank begins with it, and the final one, whose prototypes go with the exported encoder.
        """
        number = self.e_step_epochs.index(epoch) if epoch in self.e_step_epochs else 0
        return number == 0 or epoch == self.epochs or (fresh_every > 0 and number % fresh_every == 0)


def resolve_num_clusters(num_clusters: tuple[int | float, ...], num_images: int) -> tuple[int, ...]:
    """Counts stay; shares of N become counts, rounded."""
    return tuple(round(k * num_images) if isinstance(k, float) else k for k in num_clusters)


def e_step_mode(config: RunConfig, num_images: int) -> EStepMode:
    """Where the features are clustered: as asked for, or by size and machines. GPU workers cluster what they
    hold; without GPUs one actor does it, or several where the features outgrow `e_step.memory_gb`.
    """
    e_step, resources = config.e_step, config.resources
    if resources.workers == 0:
        return "single"
    if e_step.mode != "auto":
        return e_step.mode
    if resources.workers > 1 and resources.gpus_per_worker > 0 and not e_step.overlap:
        return "distributed"
    return "single" if feature_bytes(config, num_images) <= e_step.memory_gb * 1e9 else "sharded"


def e_step_shards(config: RunConfig, num_images: int) -> int:
    """Actors that share the features in mode sharded, else 0."""
    if e_step_mode(config, num_images) != "sharded":
        return 0
    return config.e_step.shards or max(
        2, math.ceil(feature_bytes(config, num_images) / (config.e_step.memory_gb * 1e9))
    )


def memory_side(config: RunConfig) -> int:
    """Pixels a side at which no crop of a square is enlarged: the shorter side of the smallest crop is
    √(min_crop · 3/4) of the image's.
    """
    return math.ceil(config.augment.image_size / math.sqrt(config.augment.min_crop * 3 / 4))


def in_memory(config: RunConfig, num_images: int) -> bool:
    """Whether the images lie in one array; num_images: training and held-out ones. The slow reference reads
    files as they are.
    """
    data = config.data
    if data.source not in FILE_SOURCES:
        return True
    if config.augment.engine == "torchvision":
        return False
    return (
        decoded_bytes(config, num_images) <= data.memory_gb * 1e9
        if data.in_memory == "auto"
        else data.in_memory
    )


def decoded_bytes(config: RunConfig, num_images: int) -> int:
    """What so many decoded files take at the most, kept in memory."""
    return num_images * memory_side(config) ** 2 * config.data.channels


def batches_ahead(config: RunConfig) -> int:
    """Batches made ready ahead, where something does that."""
    return 2 if config.data.prefetch is None else config.data.prefetch


def loader_workers(config: RunConfig, num_images: int) -> int:
    """Processes of each worker that decode, if not asked for otherwise: all its cores but one where a GPU
    does the computing, a quarter of them elsewhere.
    """
    if in_memory(config, num_images):
        return (config.data.loader_workers or 0) if config.augment.engine == "torchvision" else 0
    if config.data.loader_workers is not None:
        return config.data.loader_workers
    cpus = _cpus(config)
    return max(cpus - 1, 1) if config.resources.gpus_per_worker else cpus // 4


def _cpus(config: RunConfig) -> int:
    return max(int(config.resources.cpus_per_worker), 1) if config.resources.workers else machine.cores()


def micro_batches(images: int, at_most: int | None) -> int:
    """Forward passes for so many images; never one for a single image, which batch norm cannot take: then one
    has at_most + 1.
    """
    return max(min(math.ceil(images / at_most), images // 2), 1) if at_most else 1


def negatives(config: RunConfig, count: int) -> int | None:
    """Negative prototypes of a clustering with `count` prototypes; None: all others, which one dense product
    compares.
    """
    wanted = config.loss.negative_prototypes
    if wanted == "all":
        return None
    if wanted == "auto":
        return (
            _DRAWN
            if count > (_DENSE_UP_TO_ON_GPU if config.resources.gpus_per_worker else _DENSE_UP_TO_ON_CPU)
            else None
        )
    return wanted


def feature_bytes(config: RunConfig, num_images: int) -> int:
    return num_images * config.encoder.dim * (2 if config.e_step.feature_dtype == "float16" else 4)


def make(config: RunConfig, num_images: int, num_holdout: int = 0) -> RunPlan:
    """The plan of a run. Raises ConfigError where `check` finds a mistake."""
    problems, _ = check(config, num_images, num_holdout)
    if problems:
        raise ConfigError(problems)
    world_size, epochs = max(config.resources.workers, 1), config.train.epochs
    steps = num_images // config.train.batch_size
    counts = resolve_num_clusters(config.e_step.num_clusters, num_images)
    everything = num_images + num_holdout
    e_steps = tuple(range(config.e_step.warmup_epochs, epochs, config.e_step.every_epochs))
    every = config.evaluation.every_epochs
    # the report shows the last
    pictures = config.tracking.pictures if config.tracking.enabled else min(config.tracking.pictures, 1)
    evaluated = {epoch for epoch in range(epochs) if every and (epoch + 1) % every == 0} | {epochs - 1}
    return RunPlan(
        num_images=num_images,
        num_holdout=num_holdout,
        world_size=world_size,
        devices=world_size * (config.resources.gpus_per_worker or 1),
        batch_per_worker=config.train.batch_size // world_size,
        micro_batches=micro_batches(config.train.batch_size // world_size, config.train.micro_batch),
        global_batch=config.train.batch_size,
        steps_per_epoch=steps,
        epochs=epochs,
        total_steps=steps * epochs,
        warmup_epochs=config.e_step.warmup_epochs,
        num_clusters=counts,
        negatives=tuple(negatives(config, count) for count in counts),
        queue_size=config.loss.queue_size,
        # The last weights get their clustering too: it belongs to the exported encoder and to the reported
        # agreement with labels.
        e_step_epochs=e_steps + ((epochs,) if e_steps else ()),
        evaluation_epochs=tuple(sorted(evaluated)),
        picture_epochs=_spread(sorted(evaluated), max(pictures - 1, min(pictures, 1))),
        first_look=pictures > 1,
        e_step_mode=e_step_mode(config, num_images),
        e_step_shards=e_step_shards(config, num_images),
        in_memory=in_memory(config, everything),
        memory_side=memory_side(config),
        loader_workers=loader_workers(config, everything),
        threads=max(_cpus(config) - loader_workers(config, everything), 1),
        feature_bytes=feature_bytes(config, num_images),
        assignment_bytes=num_images * 8 * len(counts),
        queue_bytes=config.loss.queue_size * config.encoder.dim * 4,
        optimizer=config.optimizer,
    )


def _spread(epochs: list[int], count: int) -> tuple[int, ...]:
    """At most `count` of them, evenly spread, the last among them."""
    step = len(epochs) / count if count else 0
    return tuple(
        sorted({epochs[min(math.ceil(step * (number + 1)), len(epochs)) - 1] for number in range(count)})
    )


def check(
    config: RunConfig, num_images: int, num_holdout: int = 0, *, gpus: int | None = None
) -> tuple[list[Problem], list[str]]:
    """Mistakes that only show together with the data and the machine, each with a way out; and what is legal
    but worth saying.

    `gpus`: GPUs of this machine, None where the run goes to a cluster that is asked later.
    """
    problems = [
        *check_alone(config, gpus=gpus),
        *_batch_problems(config, num_images),
        *_cluster_problems(config, num_images),
    ]
    problems += _switch_problems(config, num_images)
    return problems, [] if problems else list(notes(config, num_images, num_holdout))


def check_alone(config: RunConfig, *, gpus: int | None = None) -> list[Problem]:
    """The mistakes that show without knowing the number of images."""
    return [
        *_worker_problems(config),
        *_model_problems(config),
        *_e_step_problems(config),
        *(_gpu_problems(config, gpus) if gpus is not None else ()),
    ]


def _gpu_problems(config: RunConfig, gpus: int) -> Iterator[Problem]:
    resources = config.resources
    wanted = max(resources.workers, 1) * resources.gpus_per_worker + resources.e_step_gpus
    if wanted > gpus:
        name = "resources.gpus_per_worker" if resources.gpus_per_worker else "resources.e_step_gpus"
        value = resources.gpus_per_worker or resources.e_step_gpus
        if gpus:
            yield Problem(
                name,
                value,
                f"the run asks for {wanted:g} GPUs and this machine has {gpus}; lower it or"
                " resources.workers, or submit to a cluster",
            )
        else:
            yield Problem(
                name,
                value,
                "there is no GPU on this machine; set it to 0 to train on the CPU, or submit to a cluster"
                " that has GPUs",
            )


def _worker_problems(config: RunConfig) -> Iterator[Problem]:
    batch, workers = config.train.batch_size, max(config.resources.workers, 1)
    if batch % workers:
        yield Problem(
            "train.batch_size",
            batch,
            f"must be a multiple of resources.workers = {workers}, e.g."
            f" {math.ceil(batch / workers) * workers}",
        )
    elif batch // workers < 2:
        yield Problem(
            "train.batch_size",
            batch,
            f"gives each of the {workers} workers {batch // workers} image a step; at least {2 * workers} is"
            " needed",
        )
    if workers > 1 and 0 < config.resources.gpus_per_worker <= 0.5:
        yield Problem(
            "resources.gpus_per_worker",
            config.resources.gpus_per_worker,
            "NCCL takes one worker a GPU; more than 0.5 each, or fewer workers with larger batches",
        )
    if (
        config.data.in_memory is True
        and config.augment.engine == "torchvision"
        and config.data.source in FILE_SOURCES
    ):
        yield Problem(
            "data.in_memory",
            True,
            "keeps pictures of many sizes as squares, from which only augment.engine = batch cuts the right"
            " crops",
        )
    if config.data.on_bad_image == "skip" and not config.data.check_images:
        yield Problem(
            "data.on_bad_image",
            "skip",
            "needs data.check_images = true: only the check before the run can leave images out",
        )
    if config.optimizer.warmup_epochs >= config.train.epochs:
        yield Problem(
            "optimizer.warmup_epochs",
            config.optimizer.warmup_epochs,
            f"must be below train.epochs = {config.train.epochs}",
        )


def _batch_problems(config: RunConfig, num_images: int) -> Iterator[Problem]:
    batch, workers = config.train.batch_size, max(config.resources.workers, 1)
    steps = num_images // batch * config.train.epochs
    if num_images < batch:
        yield Problem(
            "train.batch_size",
            batch,
            f"the training part has only {num_images} images, so no batch of {workers} × {batch // workers}"
            f" fits; at most {num_images}",
        )
    elif config.loss.queue_size > steps * batch:
        yield Problem(
            "loss.queue_size",
            config.loss.queue_size,
            f"the whole run fills only {steps * batch} places, the rest would stay random; at most that, or"
            " raise train.epochs",
        )


def _cluster_problems(config: RunConfig, num_images: int) -> Iterator[Problem]:
    given = config.e_step.num_clusters
    counts = resolve_num_clusters(given, num_images)
    for value, k in zip(given, counts, strict=True):
        stands = f"{k}" if isinstance(value, int) else f"{value} of {num_images} images, that is {k},"
        if k > num_images:
            yield Problem(
                "e_step.num_clusters",
                list(given),
                f"{stands} is more than the {num_images} training images; use a smaller count, or a share"
                " like 0.02",
            )
        elif k < 2:
            yield Problem(
                "e_step.num_clusters",
                list(given),
                f"{stands} is fewer than 2 clusters; use at least"
                f" {math.ceil(1.5 / max(num_images, 2) * 1e4) / 1e4} or a count",
            )
    wanted = config.loss.negative_prototypes
    smallest = min(counts)
    if isinstance(wanted, int) and smallest >= 2 and wanted > smallest - 1:
        yield Problem(
            "loss.negative_prototypes",
            wanted,
            f"the smallest clustering has {smallest} prototypes, so at most {smallest - 1} negatives; lower"
            " it or write all",
        )


def _e_step_problems(config: RunConfig) -> Iterator[Problem]:
    e_step, workers = config.e_step, config.resources.workers
    if e_step.mode in ("distributed", "sharded") and workers == 0:
        yield Problem(
            "e_step.mode",
            e_step.mode,
            "needs resources.workers of 1 or more; in one process there is only single",
        )
    if e_step.overlap and e_step.mode == "distributed":
        yield Problem(
            "e_step.overlap",
            True,
            "with e_step.mode = distributed the workers themselves cluster and cannot train meanwhile; use"
            " single or sharded",
        )
    if e_step.shards and e_step.mode != "sharded":
        yield Problem("e_step.shards", e_step.shards, "is for e_step.mode = sharded")
    if e_step.switch_step is not None and not e_step.overlap:
        yield Problem("e_step.switch_step", e_step.switch_step, "is for e_step.overlap = true")
    if e_step.fresh_every and e_step.features != "bank":
        yield Problem("e_step.fresh_every", e_step.fresh_every, "is for e_step.features = bank")
    if e_step.nested and not e_step.nested_passes and e_step.balance is not None:
        yield Problem(
            "e_step.nested_passes",
            0,
            "a strict hierarchy cannot be balanced as well; 1 or more with e_step.balance",
        )
    if e_step.features == "bank" and e_step.every_epochs > 1 and e_step.bank_momentum >= 0.9:
        yield Problem(
            "e_step.bank_momentum",
            e_step.bank_momentum,
            "the bank would hold features many epochs old; below 0.9 with e_step.every_epochs > 1",
        )


def _switch_problems(config: RunConfig, num_images: int) -> Iterator[Problem]:
    step, steps = config.e_step.switch_step, num_images // config.train.batch_size
    if step is not None and steps and step >= steps:
        yield Problem("e_step.switch_step", step, f"an epoch has {steps} steps, so at most {steps - 1}")


def _model_problems(config: RunConfig) -> Iterator[Problem]:
    if config.encoder.backbone.startswith("timm:") and importlib.util.find_spec("timm") is None:
        yield Problem(
            "encoder.backbone",
            config.encoder.backbone,
            "timm is not installed; `pip install timm`, or choose a torchvision ResNet",
        )
    channels, workers = config.data.channels, max(config.resources.workers, 1)
    for name, value in (("augment.mean", config.augment.mean), ("augment.std", config.augment.std)):
        if len(value) != channels:
            yield Problem(name, list(value), f"needs one number a channel, and data.channels = {channels}")
    if config.encoder.batch_norm == "sync" and workers > 1 and not config.resources.gpus_per_worker:
        yield Problem(
            "encoder.batch_norm", "sync", "synchronised batch norm needs GPUs; use shuffle or plain on CPUs"
        )
    if config.train.precision == "bf16" and not config.resources.gpus_per_worker:
        yield Problem(
            "train.precision",
            "bf16",
            "bf16 is several times slower than fp32 on most CPUs; use auto or fp32, or set"
            " resources.gpus_per_worker",
        )


def notes(config: RunConfig, num_images: int, num_holdout: int) -> Iterator[str]:
    counts = resolve_num_clusters(config.e_step.num_clusters, num_images)
    warmup, epochs, queue = config.e_step.warmup_epochs, config.train.epochs, config.loss.queue_size
    if warmup >= epochs:
        yield (
            f"e_step.warmup_epochs = {warmup} covers all {epochs} epochs: this run is InfoNCE only and never"
            " clusters"
        )
    if queue > num_images:
        yield (
            f"loss.queue_size = {queue} exceeds the {num_images} images: the queue holds older features of"
            " the image itself as negatives"
        )
    if max(counts) * 10 > num_images and warmup < epochs:
        yield (
            f"e_step.num_clusters: {max(counts)} clusters get {num_images / max(counts):.1f} images each on"
            " average; 10 or more are steadier"
        )
    wanted, batch = config.loss.negative_prototypes, config.train.batch_size
    if isinstance(wanted, int) and wanted > min(counts) - batch:
        yield (
            f"loss.negative_prototypes = {wanted}: a batch of {batch} may hold so many of the {min(counts)}"
            " prototypes that fewer are left to draw; then all that are left are taken"
        )
    if (
        config.data.loader_workers
        and config.augment.engine == "batch"
        and in_memory(config, num_images + num_holdout)
    ):
        yield f"data.loader_workers = {config.data.loader_workers}: not needed, the images are in memory"
    e_step = config.e_step
    if (
        e_step.warm_start == "none"
        and e_step.iterations != EStepConfig().iterations
        and e_step.cold_iterations is None
        and e_step.iterations < 20
    ):
        yield (
            f"e_step.iterations = {e_step.iterations} is for warm starts; without them 20 are made,"
            " e_step.cold_iterations changes that"
        )
    if config.resources.e_step_gpus and e_step_mode(config, num_images) == "distributed":
        yield (
            "resources.e_step_gpus: the workers cluster on their own GPUs (e_step.mode = distributed); the"
            " E-step actor needs none"
        )
    if not num_holdout:
        yield "no held-out images: no kNN accuracy; data.holdout keeps a share of the images for evaluation"
