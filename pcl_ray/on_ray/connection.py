"""The connection to Ray, and the data in its store. Without torch, which a sweep's driver does not need."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import RunFailed


@dataclass(frozen=True)
class SharedData:
    """The data in Ray's store: one copy a node, read by all its workers, of all runs that are given it."""

    splits: ray.ObjectRef  # DataSplits
    labels: ray.ObjectRef  # [N] int64 or None
    holdout_labels: ray.ObjectRef  # [Q] int64 or None


def share(splits: DataSplits) -> SharedData:
    """Puts the data into Ray's store, where a node's workers read one copy; one call serves many runs."""
    holdout_labels = splits.holdout.labels if splits.holdout is not None else None
    return SharedData(ray.put(splits), ray.put(splits.train.labels), ray.put(holdout_labels))


@contextmanager
def connected(cpus: float, py_executable: str | None = None) -> Iterator[bool]:
    """Attaches to the cluster that RAY_ADDRESS names (a submitted job finds its own there), or starts a Ray
    of our own, of at least so many CPUs, that ends with the run. Yields whether others may use it too.
    py_executable: the command by which Ray starts its workers; None: Python.

    Raises RunFailed where Ray cannot be reached or started.
    """
    if ray.is_initialized():
        yield True
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if py_executable is not None:
        quiet["runtime_env"] = {"py_executable": py_executable}
    shared = bool(os.environ.get("RAY_ADDRESS"))
    try:
        with _our_signals():
            if shared:
                ray.init(**quiet)
            else:
                # More CPUs than cores if need be: on a laptop two workers and the actor take turns.
                cores = max(os.cpu_count() or 1, int(cpus + 0.999))
                # Nobody could open its dashboard, whose token is in our memory alone.
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError, OSError) as error:
        raise RunFailed(
            f"Ray could not be reached or started: {str(error).strip().splitlines()[0]}"
        ) from error
    _silence_raylet()
    try:
        yield shared
    finally:
        ray.shutdown()


def _silence_raylet() -> None:
    """Keeps what raylets say of processes that died away from our output: the run says it, in its own words.
    Ray has no setting for that.
    """
    worker: Any = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _log_message


def _log_message(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    logging.getLogger(__name__).info("%s: %s", data.get("pid"), "\n".join(data.get("lines", ())))


@contextmanager
def _our_signals() -> Iterator[None]:
    """Puts our signal handlers back afterwards: Ray replaces SIGTERM's by one that ends the process where it
    stands, and a run that is asked to stop would count as failed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
