"""One process' part of an E-step as it travels through Ray, and the actor that holds a part where one machine
cannot hold all.

                ┌ single: the E-step actor is the only process, it holds all features
cluster_shard ──┤ distributed: every train worker, on the features it made, over Ray Train's process group
                └ sharded: several EStepShard actors, each with a range of the images, over a gloo group
       └→ ShardResult of each process → merge_shards: one ClusterSet
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import TorchGroup
from pcl_ray.config import RunConfig
from pcl_ray.e_step import (
    Collapsed,
    EStepRefused,
    Outcome,
    Rejected,
    ShardInput,
    ShardResult,
    When,
    cluster_shard,
)
from pcl_ray.errors import OutOfMemory
from pcl_ray.features import FeatureShard, Gathering

# Names of the parts in which features travel: the head's of all training images; the backbone's, the head's
# and raw pixels of a LabelledSample's bank and queries.
TRAIN = "train"
BANK, QUERIES = "bank", "queries"
BANK_HEAD, QUERIES_HEAD = "bank/head", "queries/head"
BANK_PIXELS, QUERIES_PIXELS = "bank/pixels", "queries/pixels"
_OF_BANK = (BANK, BANK_HEAD, BANK_PIXELS)


@dataclass(frozen=True)
class EStepRequest:
    """What is wanted between epoch `epoch` − 1 and epoch `epoch`; with `references`, before the first step,
    the reference lines and nothing else.
    """

    epoch: int
    cluster: bool
    evaluate: bool
    shards: int  # how many workers push
    num_images: int
    # of the LabelledSample; 0 where nothing of it is pushed
    num_bank: int = 0
    num_queries: int = 0
    step: int | None = None  # global step of the encoder
    show: bool = False  # with `evaluate`: a snapshot comes with the answer
    references: bool = False
    final: bool = False  # with `evaluate`: the figures of `evaluation.final` too

    @property
    def labelled_parts(self) -> tuple[str, ...]:
        """The parts that are pushed of the labelled sample."""
        if self.references:
            return BANK, QUERIES, BANK_PIXELS, QUERIES_PIXELS
        return (BANK, QUERIES, BANK_HEAD, QUERIES_HEAD) if self.evaluate and self.num_bank else ()

    def total(self, part: str) -> int:
        """How many images the part has, over all workers."""
        if part == TRAIN:
            return self.num_images
        return self.num_bank if part in _OF_BANK else self.num_queries


def shard_result(
    shard: ShardInput,
    request: EStepRequest,
    config: RunConfig,
    previous: ClusterSet | None,
    *,
    gpu: bool = False,
) -> ShardResult:
    """`cluster_shard`, with what it refuses as a result: all processes of the group come to the same one.
    What is the same on all is in the result of rank 0 alone, so that it travels once.

    Raises OutOfMemory as `_on_gpu_or_cpu` does.
    """
    try:
        result = _on_gpu_or_cpu(shard, request, config, previous, gpu=gpu)
    except EStepRefused as error:
        return _refusal(error)
    return result if shard.group.rank == 0 else replace(result, clusterings=())


def _on_gpu_or_cpu(
    shard: ShardInput, request: EStepRequest, config: RunConfig, previous: ClusterSet | None, *, gpu: bool
) -> ShardResult:
    """`cluster_shard`. Where a process alone has not enough memory on its GPU, it clusters on the CPU
    instead, and says so. Raises OutOfMemory in a group, whose other processes cannot know.
    """
    when = When(request.epoch, request.step)
    clustered = partial(
        cluster_shard,
        shard,
        config.e_step,
        when,
        temperature=config.loss.temperature,
        seed=config.seed,
        previous=previous,
    )
    try:
        return clustered(gpu=gpu)
    except torch.OutOfMemoryError as error:
        reason = f"the GPU's memory was not enough ({str(error).splitlines()[0]})"
        if shard.group.size > 1:
            raise OutOfMemory(f"{when}: {reason}; e_step.mode=single clusters in the actor") from error
    torch.cuda.empty_cache()
    result = clustered(gpu=False)
    text = f"{when}: {reason}, so the CPU clustered; resources.e_step_gpus=0 does without the try"
    return replace(result, warnings=(*result.warnings, text))


def _refusal(error: EStepRefused) -> ShardResult:
    outcome: Outcome = "refused"
    if isinstance(error, Collapsed):
        outcome = "collapsed"
    elif isinstance(error, Rejected):
        outcome = "rejected"
    no_ids, no_labels = torch.empty(0, dtype=torch.long), torch.empty(0, 0, dtype=torch.int32)
    return ShardResult(no_ids, no_labels, figures=error.figures, outcome=outcome, reason=str(error))


class EStepShard:
    """Holds and clusters a range of the images, with its peers. A plain class; `on_ray.launch` wraps it."""

    def __init__(self, config: RunConfig, number: int, count: int):
        self._config, self._number, self._count = config, number, count
        self._lock = threading.Lock()
        self._key = ""
        self._gathering: Gathering | None = None

    def ping(self) -> None:
        """Answers as soon as the actor is up."""

    def address_at(self, host: str) -> str:
        """Where the group of this actor can meet; `host` is this machine, as the peers reach it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{host}:{port}"

    def join(self, address: str) -> None:
        """Meets the peers, anew where it had met them before. All peers call it at the same time."""
        if dist.is_initialized():
            dist.destroy_process_group()
        limit = timedelta(seconds=min(self._config.e_step.timeout_s, 86400))
        dist.init_process_group(
            "gloo", init_method=address, rank=self._number, world_size=self._count, timeout=limit
        )

    def push(self, key: str, num_images: int, indices: np.ndarray, features: np.ndarray) -> None:
        """Takes features of images of this actor's range; under a new key, what came before is dropped."""
        first, last = shard_range(self._number, self._count, num_images)
        with self._lock:
            if key != self._key or self._gathering is None:
                self._key, self._gathering = key, Gathering(last - first)
            self._gathering.add(FeatureShard(indices - first, features))

    def run(self, key: str, request: EStepRequest, previous: ClusterSet | None) -> ShardResult:
        """This actor's part of the E-step. Raises ValueError where features are missing."""
        with self._lock:
            gathering = self._gathering if key == self._key else None
            self._gathering = None
        if gathering is None:
            raise ValueError("the actor was restarted")
        first, last = shard_range(self._number, self._count, request.num_images)
        rows = torch.from_numpy(gathering.whole())
        shard = ShardInput(rows, request.num_images, torch.arange(first, last), TorchGroup())
        return shard_result(shard, request, self._config, previous)


def shard_range(number: int, count: int, num_images: int) -> tuple[int, int]:
    """Images first … last − 1 of shard `number` of `count`."""
    return number * num_images // count, (number + 1) * num_images // count
