"""The process group of workers without GPUs, for Ray Train: what its TorchConfig does for them, with torch
imported in the workers alone and not in the driver and the controller.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

_LEAVE_S = 5.0  # how long the workers may take to leave; Ray ends them anyhow


@dataclass
class GlooGroupConfig(BackendConfig):
    """timeout_s: how long a worker waits for another in one operation."""

    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        return GlooGroup


class GlooGroup(Backend):
    """Lets the workers meet before they train, and leave afterwards."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, GlooGroupConfig)
        address, port = worker_group.execute_single(0, _free_address)
        size, limit_s = len(worker_group), backend_config.timeout_s
        joining = [
            worker_group.execute_single_async(number, _join, address, port, number, size, limit_s)
            for number in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=_LEAVE_S)


def _free_address() -> tuple[str, int]:
    """This node as the others reach it, and a free port."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return address, probe.getsockname()[1]


def _join(address: str, port: int, rank: int, size: int, limit_s: int) -> None:
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    from torch import distributed

    limit = timedelta(seconds=limit_s)
    distributed.init_process_group("gloo", init_method="env://", rank=rank, world_size=size, timeout=limit)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()
