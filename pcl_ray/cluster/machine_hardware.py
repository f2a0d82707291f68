"""Checks of what the machine has: GPUs, memory, cores, and space under PCL_RAY_HOME."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from pcl_ray.cluster.check import Check
from pcl_ray.errors import ConfigError
from pcl_ray.runs.request import gpus_here
from pcl_ray.support import machine, paths
from pcl_ray.support.text import gigabytes
from pcl_ray.tracking.reachability import network_file_system

_SHARED_GB, _MEMORY_GB, _DISK_GB, _FULL_GB = 1.0, 4.0, 5.0, 0.5
_CGROUP = Path("/sys/fs/cgroup")


def gpus() -> Check:
    """The GPUs that torch sees, against the device files that there are."""
    import torch  # takes seconds, which only this check needs

    files = gpus_here()
    if not torch.cuda.is_available():
        if not files:
            return Check("GPUs", "ok", "none: training is on the CPU, resources.gpus_per_worker=0")
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return Check(
            "GPUs",
            "failed",
            f"there are {files} device files, but torch sees no GPU: torch {torch.__version__} is {build}",
            "nvidia-smi says which CUDA the driver takes; install a torch for that, or a newer driver",
        )
    seen: list[str] = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        precision = "bf16" if card.major >= 8 else "no bf16: fp32"
        seen.append(f"{card.name} ({gigabytes(card.total_memory, 0)}, {precision})")
    if len(seen) < files and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        advice = (
            f"{files} device files, {len(seen)} of them seen: is CUDA_VISIBLE_DEVICES or the container's"
            " setting what you mean?"
        )
        return Check("GPUs", "warning", ", ".join(seen), advice)
    return Check("GPUs", "ok", ", ".join(seen))


def shared_memory() -> Check:
    """Space in /dev/shm, where Ray keeps its objects."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", "ok", "no /dev/shm here: Ray keeps its objects elsewhere")
    space = shutil.disk_usage(folder)
    message = f"{space.free / 1e9:.1f} of {gigabytes(space.total)} free in /dev/shm"
    if space.free < _SHARED_GB * 1e9:
        return Check(
            "shared memory",
            "warning",
            f"{message}: too little for Ray's objects, which then go through the disk",
            "docker run --shm-size=4gb (shm_size in a compose file), or delete what lies there;"
            " resources.workers=0 needs none",
        )
    return Check("shared memory", "ok", message)


def memory() -> Check:
    """The machine's memory, or the container's limit of it, and what is free."""
    total, free = machine_memory()
    usable, message = free, gigabytes(total)
    limit = container_memory()
    if limit is not None and limit < total:
        usable = min(free, limit)
        message = f"{gigabytes(limit)}, the container's limit of {gigabytes(total)}"
    message += f", {gigabytes(free)} of the machine's free"
    if usable < _MEMORY_GB * 1e9:
        advice = (
            "close other programs or raise the container's limit; a worker takes about 1 GB before any image"
        )
        return Check("memory", "warning", message, advice)
    return Check("memory", "ok", message)


def machine_memory() -> tuple[int, int]:
    """Bytes of memory in all, and those that programs could have."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    return int(fields["MemTotal"].split()[0]) * 1024, int(fields["MemAvailable"].split()[0]) * 1024


def container_memory() -> int | None:
    """The container's limit of memory in bytes, of cgroup v2 or v1; None where there is none."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int((_CGROUP / file).read_text())
    return None


def cores() -> Check:
    """The cores of this process, and the CPU time that the container gives it."""
    usable, quota = machine.cores(), container_cpus()
    message = f"{usable} of {os.cpu_count()} usable by this process"
    if machine.multiplies_bfloat16():
        message += ", with bfloat16: train.precision=bf16 is faster here"
    if quota is not None and quota < usable:
        return Check(
            "cores",
            "warning",
            f"{message}, of which the container gives the time of {quota:g}",
            f"resources.cpus_per_worker × resources.workers below {max(quota, 1):g}: more threads than that"
            " wait for each other",
        )
    return Check("cores", "ok", message)


def container_cpus() -> float | None:
    """The CPUs whose time the container gives, by cgroup v2 or v1; None where it is not limited."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            int((_CGROUP / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else None
    return None


def home_folder() -> Check:
    """Whether PCL_RAY_HOME can be written, and the space that it has."""
    try:
        paths.check_writable()
    except ConfigError as error:
        return Check("PCL_RAY_HOME", "failed", str(error))
    home = paths.home()
    free = shutil.disk_usage(home).free / 1e9
    message = f"{home}, {free:.1f} GB free"
    if kind := network_file_system(home):
        message += f", on a network file system ({kind})"
    if free < _DISK_GB:
        advice = "free some space, set PCL_RAY_HOME to another disk, or train.keep_checkpoints=1"
        return Check("PCL_RAY_HOME", "failed" if free < _FULL_GB else "warning", message, advice)
    return Check("PCL_RAY_HOME", "ok", message)
