"""One process' part of an E-step as it travels through Ray, and the actor that holds a part where one machine
cannot hold all.

                ┌ single: the E-step actor is the only process, it holds all features
cluster_shard ──┤ distributed: every train worker, on the features it made, over Ray Train's process group
                └ sharded: several EStepShard actors, each with a range of the images, over a gloo group
       └→ ShardAnswer of each process → merged: one ClusterSet
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pcl_ray.clustering import ClusterSet
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.config import RunConfig
from pcl_ray.e_step import (
    Collapsed,
    EStepRefused,
    Rejected,
    ShardClustering,
    ShardResult,
    When,
    cluster_shard,
)
from pcl_ray.features import FeatureShard, Gathering

Outcome = Literal["clustered", "collapsed", "rejected", "refused"]


@dataclass(frozen=True)
class EStepRequest:
    """What is wanted between epoch `epoch` − 1 and epoch `epoch`."""

    epoch: int
    cluster: bool
    evaluate: bool
    shards: int  # how many workers push
    num_images: int
    num_holdout: int
    step: int | None = None  # global step of the encoder
    show: bool = False  # with `evaluate`: an exhibit comes with the answer


@dataclass(frozen=True)
class ShardAnswer:
    """What one process found. Plain numpy, which Ray shares without copying."""

    outcome: Outcome
    reason: str = ""
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n]
    labels: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int32))  # [M, n]
    # of rank 0: centroids, φ, valid, objective, figures
    common: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, float, dict[str, float]], ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def attempt(
    rows: Tensor,
    ids: Tensor | None,
    request: EStepRequest,
    config: RunConfig,
    previous: ClusterSet | None,
    group: Group | None = None,
    gpu: bool = False,
) -> ShardAnswer:
    """`cluster_shard`, with what it refuses as an answer: all processes of the group come to the same one."""
    try:
        result = cluster_shard(
            rows,
            ids,
            config.e_step,
            When(request.epoch, request.step),
            total=request.num_images,
            temperature=config.loss.temperature,
            seed=config.seed,
            previous=previous,
            group=group,
            gpu=gpu,
        )
    except Collapsed as reason:
        return ShardAnswer("collapsed", str(reason), figures=reason.figures)
    except Rejected as reason:
        return ShardAnswer("rejected", str(reason), figures=reason.figures)
    except EStepRefused as reason:
        return ShardAnswer("refused", str(reason), figures=reason.figures)
    first = group is None or group.rank == 0
    found = (
        (c.centroids.cpu().numpy(), c.concentration.numpy(), c.valid.cpu().numpy(), c.objective, c.figures)
        for c in result.clusterings
    )
    common = tuple(found) if first else ()
    return ShardAnswer(
        "clustered",
        "",
        result.ids.numpy(),
        result.stacked_labels(),
        common,
        result.figures,
        tuple(result.warnings),
    )


def merged(answers: list[ShardAnswer], request: EStepRequest) -> ClusterSet:
    """The clusters of all processes' answers. Raises ValueError where they do not cover every image once."""
    (leader,) = [answer for answer in answers if answer.common]
    arrived = sum(len(answer.ids) for answer in answers)
    if arrived != request.num_images:
        raise ValueError(f"assignments of {arrived} images arrived, there are {request.num_images}")
    clusterings = [
        ShardClustering(
            torch.empty(0),
            torch.tensor(centroids),
            torch.tensor(phi),
            torch.tensor(valid),
            objective,
            figures,
        )
        for centroids, phi, valid, objective, figures in leader.common
    ]
    whole = ShardResult(torch.empty(0), clusterings, {})
    return whole.cluster_set(
        request.epoch,
        whole.assignments(request.num_images, ((answer.ids, answer.labels) for answer in answers)),
    )


class EStepShard:
    """Holds a range of the images and clusters it with its peers. A plain class; `on_ray.launch` wraps
    it.
    """

    def __init__(self, config: RunConfig, number: int, count: int):
        self._config, self._number, self._count = config, number, count
        self._lock = threading.Lock()
        self._key = ""
        self._gathering: Gathering | None = None

    def ping(self) -> None:
        """Answers as soon as the actor is up."""

    def address(self) -> str:
        """Where the group of this actor can meet."""
        # not at the top: one process trains without Ray, and its token must be set before it is imported
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{ray.util.get_node_ip_address()}:{port}"

    def join(self, address: str) -> None:
        """Meets the peers, anew where it had met them before. All peers call it at the same time."""
        if dist.is_initialized():
            dist.destroy_process_group()
        limit = timedelta(seconds=min(self._config.e_step.timeout_s, 86400))
        dist.init_process_group(
            "gloo", init_method=address, rank=self._number, world_size=self._count, timeout=limit
        )

    def push(self, key: str, num_images: int, indices: np.ndarray, features: np.ndarray) -> None:
        """Features of images of this actor's range; under a new key, what came before is dropped."""
        first, last = range_of(self._number, self._count, num_images)
        with self._lock:
            if key != self._key or self._gathering is None:
                self._key, self._gathering = key, Gathering(last - first)
            self._gathering.add(FeatureShard(indices - first, features))

    def run(self, key: str, request: EStepRequest, previous: ClusterSet | None) -> ShardAnswer:
        """This actor's part of the E-step. Raises ValueError where features are missing."""
        with self._lock:
            gathering, self._gathering = (self._gathering if key == self._key else None), None
        if gathering is None:
            raise ValueError("the actor was restarted")
        first, last = range_of(self._number, self._count, request.num_images)
        return attempt(
            torch.from_numpy(gathering.whole()),
            torch.arange(first, last),
            request,
            self._config,
            previous,
            TorchGroup(),
        )


def range_of(number: int, count: int, num_images: int) -> tuple[int, int]:
    """Images first … last − 1 of shard `number` of `count`."""
    return number * num_images // count, (number + 1) * num_images // count
