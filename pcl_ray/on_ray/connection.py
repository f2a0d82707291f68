"""The connection to Ray, and the data in its store. Without torch, which a sweep's driver does not need."""

from __future__ import annotations

import ctypes
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
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.starting import lean_node, warm_client
from pcl_ray.on_ray.starting.warm_start import COLD, WarmStart
from pcl_ray.support.signals import heard_as_before

_SIGACTION_BYTES = 256  # more than a C library's struct sigaction has
_PUT_BACK_EVERY_S = 0.002


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
def connected(cpus: float, start: WarmStart = COLD) -> Iterator[bool]:
    """Attaches to the cluster that RAY_ADDRESS names (a submitted job finds its own there), or starts a Ray
    of our own, of at least so many CPUs, that ends with the run. Yields whether others may use it too.
    start: how its workers start.

    Raises RunFailed where Ray cannot be reached or started.
    """
    if ray.is_initialized():
        yield True
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS", "")
    shared = bool(address)
    if shared and not start.by_head and local_head_record.is_lone_head(address):
        quiet["runtime_env"] = {"env_vars": {warm_client.SWITCH: "0"}}
    try:
        # Ray replaces SIGTERM's handler by one that ends the process where it stands, and a run that is asked
        # to stop would count as failed.
        with heard_as_before():
            if shared:
                ray.init(**quiet)
            else:
                # More CPUs than cores if need be: on a laptop two workers and the actor take turns.
                cores = max(os.cpu_count() or 1, int(cpus + 0.999))
                with lean_node.without_unused_helpers(), lean_node.workers_forked(start.folder):
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError, OSError) as error:
        raise RunFailed(
            f"Ray could not be reached or started: {str(error).strip().splitlines()[0]}"
        ) from error
    _silence_raylet()
    try:
        yield shared
    finally:
        with _sigterm_kept():
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
def _sigterm_kept() -> Iterator[None]:
    """Ray's library, at its end, has SIGTERM end the process where it stands, seconds before all of Ray is
    ended: inside of the block a thread puts what was there back, again and again.
    """
    library = ctypes.CDLL(None)
    before, ended = ctypes.create_string_buffer(_SIGACTION_BYTES), threading.Event()
    if not hasattr(library, "sigaction") or library.sigaction(signal.SIGTERM, None, before):
        yield
        return

    def put_back() -> None:
        while not ended.wait(_PUT_BACK_EVERY_S):
            library.sigaction(signal.SIGTERM, before, None)

    thread = threading.Thread(target=put_back, name="sigterm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        library.sigaction(signal.SIGTERM, before, None)
