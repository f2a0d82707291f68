"""The driver's side of `warm_parent`: starts it, and tells Ray to start its workers through it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pcl_ray.config import ResourcesConfig
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.processes import warm_client

SWITCH = "PCL_RAY_WARM_START"  # "0": every process of Ray loads what it needs


def is_possible(resources: ResourcesConfig) -> bool:
    """Whether a run can be started so: on this machine alone, without GPUs, and with one core for the E-step
    actor, since libraries of linear algebra count their threads when they are loaded.
    """
    return (
        sys.platform == "linux"
        and os.environ.get(SWITCH) != "0"
        and _is_here(os.environ.get("RAY_ADDRESS", ""))
        and not (resources.gpus_per_worker or resources.e_step_gpus)
        and resources.e_step_cpus <= 1
    )


def _is_here(address: str) -> bool:
    """Whether all of Ray's workers are on this machine: in a Ray of our own, or below the head of `pcl-ray
    up` that no other machine can join.
    """
    head = local_head_record.read() if address else None
    loopback = local_head_record.LOOPBACK
    return not address or (head is not None and head.ray_address == address and head.host == loopback)


@contextmanager
def warm_parent() -> Iterator[str]:
    """Inside the block a process loads and forks; yields what Ray is given as `py_executable`."""
    folder = tempfile.mkdtemp(prefix="pcl_ray-")  # only we can open it
    address = os.path.join(folder, "warm")
    command = [sys.executable, "-P", "-m", "pcl_ray.on_ray.processes.warm_parent", address]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    parent = None
    with suppress(OSError):
        parent = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver
        )
    try:
        yield shlex.join([sys.executable, "-S", "-E", warm_client.__file__, address])
    finally:
        if parent is not None:
            parent.kill()  # it holds nothing, and those that it has forked are Ray's
            parent.wait()
        shutil.rmtree(folder, ignore_errors=True)
