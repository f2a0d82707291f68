"""Starts `warm_parent`, and says which processes of Ray are forked from it: those of a run with a Ray of its
own, and on the head of `pcl-ray up`, which has one for all its jobs, those of runs that can.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pcl_ray.config import ResourcesConfig
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.starting import warm_client, warm_parent
from pcl_ray.on_ray.starting.warm_client import SWITCH

_MODULE = "pcl_ray.on_ray.starting.warm_parent"
_END_S = 10.0


@dataclass(frozen=True)
class WarmStart:
    """How a run's processes start. folder: of the warm process of a Ray of our own; None where each loads
    what it needs. by_head: those on the head of `pcl-ray up` may be forked from its warm process.
    """

    folder: str | None = None
    by_head: bool = False


COLD = WarmStart()


def is_possible(resources: ResourcesConfig) -> bool:
    """Whether a run can be started so: on this machine alone, without GPUs, and with one core for the E-step
    actor, since libraries of linear algebra count their threads when they are loaded.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    return (
        is_allowed()
        and (not address or local_head_record.is_lone_head(address))
        and not (resources.gpus_per_worker or resources.e_step_gpus)
        and resources.e_step_cpus <= 1
    )


def is_allowed() -> bool:
    """Whether this system can, and PCL_RAY_WARM_START does not forbid it."""
    return sys.platform == "linux" and os.environ.get(SWITCH) != "0"


class _Parent:
    """The warm process, and its folder, which only we can open. It ends with this process."""

    def __init__(self, *options: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="pcl_ray-")
        for name in (warm_client.SCRIPT, warm_client.SETUP):
            os.symlink(warm_client.__file__, os.path.join(self.folder, name))
        self._process = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, self.folder, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the driver
            )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing, and those that it has forked are Ray's
            self._process.wait(_END_S)
        warm_parent.remove_folder(self.folder)


_early: list[_Parent] = []  # one that was started before it is needed, at most


@contextmanager
def ahead(resources: ResourcesConfig) -> Iterator[None]:
    """The warm process of the run that follows loads beside what is done in the block, and goes on after it,
    unless that raises.
    """
    if resources.workers and not _early and is_possible(resources) and not os.environ.get("RAY_ADDRESS"):
        _early.append(_Parent())
    try:
        yield
    except BaseException:
        while _early:
            _early.pop().end()
        raise


@contextmanager
def of_run(resources: ResourcesConfig) -> Iterator[WarmStart]:
    """How the processes of a run start inside the block, which is where its Ray runs."""
    if not is_possible(resources):
        yield COLD
    elif os.environ.get("RAY_ADDRESS"):
        yield WarmStart(by_head=True)
    else:
        parent = _early.pop() if _early else _Parent()
        try:
            yield WarmStart(folder=parent.folder)
        finally:
            parent.end()


@contextmanager
def of_head() -> Iterator[WarmStart]:
    """How all processes of a head start whose node is this one."""
    parent = _Parent(warm_parent.OTHERS_ALONE)
    try:
        yield WarmStart(folder=parent.folder)
    finally:
        parent.end()
