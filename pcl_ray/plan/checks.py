"""Whether a configuration fits together, and fits the data and the machine.

Runs before anything starts: a K that exceeds N must not show after twenty epochs of warm-up.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

from pcl_ray.config import EStepConfig, RunConfig
from pcl_ray.errors import Problem
from pcl_ray.plan import sizes
from pcl_ray.plan.cluster_counts import resolve_num_clusters
from pcl_ray.plan.sizes import FILE_SOURCES, SHARD_SOURCES
from pcl_ray.plan.workers import worker_notes, worker_problems
from pcl_ray.support import machine

# Rates from which on trained weights rather forget: those that random weights are usually trained with.
_PRETRAINED_LR = {"sgd": 0.03, "adamw": 1e-3, "lars": 0.3}


def check(
    config: RunConfig, num_images: int, num_holdout: int = 0, *, gpus: int | None = None
) -> tuple[list[Problem], list[str]]:
    """The mistakes that show only with the data and the machine, with a way out; without any, the notes.

    gpus: GPUs of this machine, None where the run goes to a cluster that is asked later.
    """
    problems = [
        *check_alone(config, gpus=gpus),
        *_batch_problems(config, num_images),
        *_cluster_problems(config, num_images),
        *_switch_problems(config, num_images),
    ]
    return problems, [] if problems else list(notes(config, num_images, num_holdout))


def check_alone(config: RunConfig, *, gpus: int | None = None) -> list[Problem]:
    """The mistakes that show without knowing the number of images."""
    return [
        *_source_problems(config),
        *worker_problems(config),
        *_reading_problems(config),
        *_view_problems(config),
        *_schedule_problems(config),
        *_model_problems(config),
        *_encoder_problems(config),
        *_e_step_problems(config),
        *(_gpu_problems(config, gpus) if gpus is not None else ()),
    ]


def _gpu_problems(config: RunConfig, gpus: int) -> Iterator[Problem]:
    resources = config.resources
    wanted = max(resources.fewest_workers, 1) * resources.gpus_per_worker + resources.e_step_gpus
    if wanted <= gpus:
        return
    message = (
        "there is no GPU on this machine; set it to 0 to train on the CPU, or submit to a cluster that has"
        " GPUs"
    )
    if gpus:
        message = (
            f"the run asks for {wanted:g} GPUs and this machine has {gpus}; lower it or resources.workers, or"
            " submit to a cluster"
        )
    name = "resources.gpus_per_worker" if resources.gpus_per_worker else "resources.e_step_gpus"
    yield Problem(name, resources.gpus_per_worker or resources.e_step_gpus, message)


def _source_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    takers = {
        "list": ("folder",),
        "labels": ("folder",),
        "exclude": FILE_SOURCES,
        "image_column": SHARD_SOURCES,
        "label_column": SHARD_SOURCES,
    }
    for name, sources in takers.items():
        value = getattr(data, name)
        if value not in (None, ()) and data.source not in sources:
            shown = list(value) if isinstance(value, tuple) else value
            yield Problem(f"data.{name}", shown, f"is for data.source = {' or '.join(sources)}")


def _reading_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    one_by_one = config.augment.engine == "torchvision" and data.source in FILE_SOURCES
    if data.in_memory is True and one_by_one:
        yield Problem(
            "data.in_memory",
            True,
            "keeps pictures of many sizes as squares, from which only augment.engine = batch cuts the right"
            " crops",
        )
    if data.on_bad_image == "skip" and not data.check_images:
        yield Problem(
            "data.on_bad_image",
            "skip",
            "needs data.check_images = true: only the check before the run can leave images out",
        )


def _view_problems(config: RunConfig) -> Iterator[Problem]:
    augment = config.augment
    if augment.small_crops and sizes.small_crop_size(augment) > augment.image_size:
        yield Problem(
            "augment.small_crop_size",
            augment.small_crop_size,
            f"small views are no larger than the others: at most augment.image_size = {augment.image_size}",
        )


def _schedule_problems(config: RunConfig) -> Iterator[Problem]:
    if config.optimizer.warmup_epochs >= config.train.epochs:
        yield Problem(
            "optimizer.warmup_epochs",
            config.optimizer.warmup_epochs,
            f"must be below train.epochs = {config.train.epochs}",
        )
    e_step = config.e_step
    if e_step.early_every_epochs > 1 and not e_step.early_epochs:
        yield Problem(
            "e_step.early_every_epochs",
            e_step.early_every_epochs,
            "is for the epochs that e_step.early_epochs counts, and that is 0",
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
    if given == "auto":
        if 2 * max(counts) >= num_images:
            message = f"{num_images} training images are too few for it; use more, or write counts"
            yield Problem("e_step.num_clusters", given, message)
    else:
        yield from _count_problems(given, counts, num_images)
    wanted = config.loss.negative_prototypes
    smallest = min(counts)
    if isinstance(wanted, int) and smallest >= 2 and wanted > smallest - 1:
        yield Problem(
            "loss.negative_prototypes",
            wanted,
            f"the smallest clustering has {smallest} prototypes, so at most {smallest - 1} negatives; lower"
            " it or write all",
        )


def _count_problems(
    given: tuple[int | float, ...], counts: tuple[int, ...], num_images: int
) -> Iterator[Problem]:
    for value, k in zip(given, counts, strict=True):
        meaning = f"{k}" if isinstance(value, int) else f"{value} of {num_images} images, that is {k},"
        if k > num_images:
            yield Problem(
                "e_step.num_clusters",
                list(given),
                f"{meaning} is more than the {num_images} training images; use a smaller count, or a share"
                " like 0.02",
            )
        elif k < 2:
            smallest_share = math.ceil(1.5 / max(num_images, 2) * 1e4) / 1e4
            yield Problem(
                "e_step.num_clusters",
                list(given),
                f"{meaning} is fewer than 2 clusters; use at least {smallest_share} or a count",
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
    for name, every in (
        ("every_epochs", e_step.every_epochs),
        ("early_every_epochs", e_step.early_every_epochs),
    ):
        if e_step.features == "bank" and every > 1 and e_step.bank_momentum >= 0.9:
            yield Problem(
                "e_step.bank_momentum",
                e_step.bank_momentum,
                f"the bank would hold features many epochs old; below 0.9 with e_step.{name} > 1",
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
            guess = ",".join([f"{sum(value) / max(len(value), 1):.3g}"] * channels)
            message = f"needs one number a channel, and data.channels = {channels}; {guess} will do"
            yield Problem(name, list(value), message)
    if config.encoder.batch_norm == "sync" and workers > 1 and not config.resources.gpus_per_worker:
        yield Problem(
            "encoder.batch_norm", "sync", "synchronised batch norm needs GPUs; use shuffle or plain on CPUs"
        )
    on_cpu = not config.resources.gpus_per_worker
    if config.train.precision == "bf16" and on_cpu and not machine.multiplies_bfloat16():
        yield Problem(
            "train.precision",
            "bf16",
            "bf16 is several times slower than fp32 on CPUs like this one, which has neither AMX nor AVX-512"
            " BF16; use auto or fp32, or set resources.gpus_per_worker",
        )


def _encoder_problems(config: RunConfig) -> Iterator[Problem]:
    encoder, parts = config.encoder, config.encoder.batch_norm_parts
    if parts > 1 and encoder.batch_norm == "sync":
        yield Problem(
            "encoder.batch_norm_parts",
            parts,
            "takes statistics of less than a worker's batch, encoder.batch_norm = sync those of all workers'"
            " together; use shuffle or plain",
        )
    images = config.train.batch_size // max(config.resources.workers, 1)
    images //= sizes.micro_batches(images, config.train.micro_batch)
    if parts > 1 and images >= 2 > images // parts:
        yield Problem(
            "encoder.batch_norm_parts",
            parts,
            f"leaves a part fewer than 2 of the {images} images of a worker's pass; at most {images // 2}",
        )
    if encoder.stem_stride != 1 and encoder.backbone != "small_resnet":
        yield Problem(
            "encoder.stem_stride",
            encoder.stem_stride,
            f"is for encoder.backbone = small_resnet; encoder.stem chooses that of {encoder.backbone}. Set"
            " encoder.stem_stride=1",
        )
    if encoder.head == "linear":
        hidden = {"head_width": (encoder.head_width, "null")}
        hidden["head_batch_norm"] = (encoder.head_batch_norm or None, "false")
        for name, (value, none) in hidden.items():
            if value is not None:
                message = "is for encoder.head = mlp; a linear head has no hidden layer. Set"
                yield Problem(f"encoder.{name}", value, f"{message} encoder.{name}={none}")


def _pretrained_notes(config: RunConfig) -> Iterator[str]:
    """What helps a run that begins with trained weights not to lose what they know."""
    if config.encoder.init_from is None:
        return
    optimizer = config.optimizer
    if optimizer.lr >= _PRETRAINED_LR[optimizer.name]:
        yield (
            f"optimizer.lr = {optimizer.lr:g}: trained weights want smaller steps, about a third of what"
            " random ones are trained with; encoder.freeze_stages keeps the first stages as they are"
        )
    if not optimizer.warmup_epochs:
        yield (
            "optimizer.warmup_epochs = 0: the head or the queue is new, and its first gradients are large; 1"
            " or 2 epochs spare the trained weights them"
        )


def notes(config: RunConfig, num_images: int, num_holdout: int) -> Iterator[str]:
    """What is legal but worth saying of a configuration without mistakes."""
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
    if config.loss.cluster_positives and queue < max(counts) and warmup < epochs:
        yield (
            f"loss.cluster_positives: a queue of {queue} keys rarely holds another image of one of"
            f" {max(counts)} clusters; a larger loss.queue_size or fewer e_step.num_clusters"
        )
    ramp = config.loss.prototype_ramp_epochs
    if ramp > epochs - warmup > 0:
        yield (
            f"loss.prototype_ramp_epochs = {ramp:g}: only {epochs - warmup} epochs follow the warm-up, so the"
            " prototype term never has its full weight"
        )
    wanted, batch = config.loss.negative_prototypes, config.train.batch_size
    if isinstance(wanted, int) and wanted > min(counts) - batch:
        yield (
            f"loss.negative_prototypes = {wanted}: a batch of {batch} may hold so many of the {min(counts)}"
            " prototypes that fewer are left to draw; then all that are left are taken"
        )
    loaders = config.data.loader_workers
    if loaders and config.augment.engine == "batch" and sizes.in_memory(config, num_images + num_holdout):
        yield f"data.loader_workers = {loaders}: not needed, the images are in memory"
    e_step = config.e_step
    only_cold = e_step.warm_start == "none" and e_step.cold_iterations is None
    if only_cold and e_step.iterations != EStepConfig().iterations and e_step.iterations < 20:
        yield (
            f"e_step.iterations = {e_step.iterations} is for warm starts; without them 20 are made,"
            " e_step.cold_iterations changes that"
        )
    if config.resources.e_step_gpus and sizes.e_step_mode(config, num_images) == "distributed":
        yield (
            "resources.e_step_gpus: the workers cluster on their own GPUs (e_step.mode = distributed); the"
            " E-step actor needs none"
        )
    yield from worker_notes(config)
    yield from _pretrained_notes(config)
    if not num_holdout:
        yield "no held-out images: no kNN accuracy; data.holdout keeps a share of the images for evaluation"
