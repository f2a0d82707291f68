"""Processes that tests start and must not wait for without end, and where their servers listen."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def joined(context: mp.ProcessContext, seconds: int) -> None:
    """Waits for the workers; ends those that hang, so that a deadlock fails instead of running for ever."""
    for _ in range(seconds):
        if context.join(timeout=1):
            return
    for process in context.processes:
        process.kill()
    pytest.fail(f"the workers did not end within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def gloo_member(number: int, world: int, folder: str, timeout_s: int) -> Iterator[None]:
    """Inside of the block, this process is one of a gloo group, whose members meet in the folder."""
    torch.set_num_threads(1)
    meeting, timeout = f"file://{folder}/rendezvous", timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=world, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def saved_by_workers(worker: Callable[[int, str], None], world: int, folder: Path, seconds: int) -> list[Any]:
    """What each of `world` new processes that call worker(number, folder) saved as worker_{number}.pt."""
    arguments = (str(folder),)
    joined(mp.start_processes(worker, arguments, world, join=False, start_method="spawn"), seconds)
    return [torch.load(folder / f"worker_{number}.pt", weights_only=True) for number in range(world)]
