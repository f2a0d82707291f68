"""Processes that tests start and must not wait for without end."""

from __future__ import annotations

import pytest
import torch.multiprocessing as mp


def joined(context: mp.ProcessContext, seconds: int) -> None:
    """Waits for the workers; ends those that hang, so that a deadlock is a failure and not a test run without end."""
    for _ in range(seconds):
        if context.join(timeout=1):
            return
    for process in context.processes:
        process.kill()
    pytest.fail(f"the workers did not end within {seconds} s")
