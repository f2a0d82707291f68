"""Processes that tests start and must not wait for without end, and where their servers listen."""

from __future__ import annotations

import socket

import pytest
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
