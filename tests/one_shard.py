"""The E-step of one process that holds all features, with the labels beside the clustering they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import GroupClustering, ShardInput, ShardResult, When, cluster_shard, merge_shards


@dataclass(frozen=True, eq=False)
class Labelled(GroupClustering):
    labels: Tensor  # [N] int64


class OneShard:
    def __init__(self, result: ShardResult):
        self.result = result
        self.figures = result.figures
        self.warnings = list(result.warnings)
        pairs = zip(result.clusterings, result.labels, strict=True)
        self.clusterings = [Labelled(**vars(shared), labels=labels.long()) for shared, labels in pairs]

    def published(self, epoch: int) -> ClusterSet:
        return merge_shards([self.result], epoch, len(self.result.ids))


def clustered(
    data: Tensor,
    settings: EStepConfig,
    when: When,
    *,
    ids: Tensor | None = None,
    temperature: float = 0.2,
    previous: ClusterSet | None = None,
) -> OneShard:
    shard = ShardInput(data, len(data), ids)
    result = cluster_shard(shard, settings, when, temperature=temperature, seed=0, previous=previous)
    assert result.labels.dtype == torch.int32
    return OneShard(result)
