"""Single numbers that follow from a configuration and the number of images: counts, bytes, processes."""

from __future__ import annotations

import math
from typing import Literal

from pcl_ray.config import AugmentConfig, RunConfig
from pcl_ray.support import machine

SHARD_SOURCES: tuple[Literal["parquet", "webdataset"], ...] = (
    "parquet",
    "webdataset",
)  # of files with many images each
FILE_SOURCES = ("folder", "imagenet", *SHARD_SOURCES)  # of images that are decoded when read
EStepMode = Literal["single", "distributed", "sharded"]

SMALL_CROP_MIN = 0.05  # share of the image's area, of small views (SwAV: Caron et al., NeurIPS 2020)
# loss.negative_prototypes = auto: above this K so many are drawn (the paper's number), below all are used.
_DENSE_UP_TO_ON_CPU = 32_768
_DENSE_UP_TO_ON_GPU = 262_144
_DRAWN = 16_384
# Values of a pass after the encoder's first layer with which a thread makes it faster: measured with one and
# two of them (benchmarks/RESULTS.md).
_VALUES_A_THREAD = 200_000
_USUAL_STEM = (64, 2)  # width and stride of other backbones' first layer


def e_step_mode(config: RunConfig, num_images: int) -> EStepMode:
    """Where the features are clustered: as configured, or by size and machines. GPU workers cluster what they
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
    needed = math.ceil(feature_bytes(config, num_images) / (config.e_step.memory_gb * 1e9))
    return config.e_step.shards or max(2, needed)


def small_crop_size(augment: AugmentConfig) -> int:
    """Pixels a side of the small views: as configured, or as many for each of a view as 96 are of 224."""
    if augment.small_crop_size is not None:
        return augment.small_crop_size
    return max(round(augment.image_size * 3 / 7), 4)


def memory_side(config: RunConfig) -> int:
    """Pixels a side where no crop is enlarged: the smallest's side is √(least share · 3/4) of the image's."""
    augment = config.augment
    side = augment.image_size / math.sqrt(augment.min_crop * 3 / 4)
    if augment.small_crops:
        side = max(side, small_crop_size(augment) / math.sqrt(SMALL_CROP_MIN * 3 / 4))
    return math.ceil(side)


def in_memory(config: RunConfig, num_images: int) -> bool:
    """Whether the images (num_images: of both parts) lie in one array; the slow reference reads files."""
    data = config.data
    if data.source not in FILE_SOURCES:
        return True
    if config.augment.engine == "torchvision":
        return False
    if data.in_memory == "auto":
        return decoded_bytes(config, num_images) <= data.memory_gb * 1e9
    return data.in_memory


def decoded_bytes(config: RunConfig, num_images: int) -> int:
    """Bytes that so many decoded files take at the most, kept in memory."""
    return num_images * memory_side(config) ** 2 * config.data.channels


def batches_ahead(config: RunConfig) -> int:
    """Batches made ready ahead, where something does that."""
    return 2 if config.data.prefetch is None else config.data.prefetch


def loader_workers(config: RunConfig, num_images: int) -> int:
    """Processes of each worker that decode: as configured, else all its cores but one where a GPU
    does the computing, a quarter of them elsewhere.
    """
    configured = config.data.loader_workers
    if in_memory(config, num_images):
        return (configured or 0) if config.augment.engine == "torchvision" else 0
    if configured is not None:
        return configured
    cores = cpus(config)
    return max(cores - 1, 1) if config.resources.gpus_per_worker else cores // 4


def cpus(config: RunConfig) -> int:
    """Cores of each worker; of this machine where there are no workers."""
    return max(int(config.resources.cpus_per_worker), 1) if config.resources.workers else machine.cores()


def threads(config: RunConfig, num_images: int) -> int:
    """Threads of each worker's training: its cores that do not decode; on a CPU only as many as have enough
    to do in each layer of a pass. Others only wait for each other.
    """
    own = max(cpus(config) - loader_workers(config, num_images), 1)
    if config.resources.gpus_per_worker:
        return own
    encoder, images = config.encoder, config.train.batch_size // max(config.resources.workers, 1)
    passes = micro_batches(images, config.train.micro_batch) * encoder.batch_norm_parts
    width, stride = (
        (encoder.width, encoder.stem_stride) if encoder.backbone == "small_resnet" else _USUAL_STEM
    )
    values = images / passes * (config.augment.image_size / stride) ** 2 * width
    return max(min(own, int(values / _VALUES_A_THREAD)), 1)


def micro_batches(images: int, at_most: int | None) -> int:
    """Forward passes for so many images; batch norm cannot take one alone, so a pass may have at_most + 1."""
    if at_most is None:
        return 1
    return max(min(math.ceil(images / at_most), images // 2), 1)


def negatives(config: RunConfig, count: int) -> int | None:
    """Negative prototypes of a clustering with `count` prototypes; None: all others, in one dense product."""
    wanted = config.loss.negative_prototypes
    if wanted == "all":
        return None
    if wanted != "auto":
        return wanted
    dense_up_to = _DENSE_UP_TO_ON_GPU if config.resources.gpus_per_worker else _DENSE_UP_TO_ON_CPU
    return _DRAWN if count > dense_up_to else None


def feature_bytes(config: RunConfig, num_images: int) -> int:
    """Bytes of the features of so many images, as they travel to the E-step."""
    return num_images * config.encoder.dim * (2 if config.e_step.feature_dtype == "float16" else 4)
