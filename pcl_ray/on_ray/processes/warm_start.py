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


class _Parent:
    """The warm process, and the folder of its socket, which only we can open. It ends with this process."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pcl_ray-")
        self.address = os.path.join(self._folder, "warm")
        command = [sys.executable, "-P", "-m", "pcl_ray.on_ray.processes.warm_parent", self.address]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the driver
            )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing, and those that it has forked are Ray's
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


_early: list[_Parent] = []  # one that was started before it is needed, at most


@contextmanager
def ahead(resources: ResourcesConfig) -> Iterator[None]:
    """The warm process of the run that follows loads beside what is done in the block, and goes on after it,
    unless that raises.
    """
    if is_possible(resources) and resources.workers and not _early:
        _early.append(_Parent())
    try:
        yield
    except BaseException:
        while _early:
            _early.pop().end()
        raise


@contextmanager
def warm_parent() -> Iterator[str]:
    """Inside the block a process loads and forks; yields what Ray is given as `py_executable`."""
    parent = _early.pop() if _early else _Parent()
    try:
        yield shlex.join([sys.executable, "-S", "-E", warm_client.__file__, parent.address])
    finally:
        parent.end()
