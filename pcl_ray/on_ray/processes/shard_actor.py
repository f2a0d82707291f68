"""A shard of the E-step as Ray starts it."""

from __future__ import annotations

import ray

from pcl_ray.training.e_step_shards import EStepShard


class EStepShardActor(EStepShard):
    """An EStepShard that knows from Ray where its peers reach it."""

    def address(self) -> str:
        return self.address_at(ray.util.get_node_ip_address())
