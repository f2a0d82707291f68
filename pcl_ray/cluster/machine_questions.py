"""What `machine_check` asks: each question is a function that gives back one Check, and may raise."""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcl_ray import tracking
from pcl_ray.config import TrackingConfig
from pcl_ray.errors import ConfigError
from pcl_ray.runs.request import gpus_here
from pcl_ray.support import machine, paths, redaction
from pcl_ray.tracking.reachability import network_file_system, reachable

Level = Literal["ok", "warning", "failed"]

_SHOWN = ("torch", "torchvision", "ray", "faiss-gpu", "faiss-cpu", "mlflow")
_CONNECT_S, _RAY_S = 2.0, 8.0  # for a cluster: to be there, and to answer; importing Ray takes two of them
_SHARED_GB, _MEMORY_GB, _DISK_GB, _FULL_GB = 1.0, 4.0, 5.0, 0.5
_AFTER_TORCH_2 = 15  # torchvision 0.15 went with torch 2.0, and so on


@dataclass(frozen=True)
class Check:
    name: str
    ok: Level
    said: str
    advice: str = ""


# --- what is installed ---


def packages() -> Check:
    """Versions against the package's own lower bounds, and combinations that do not go together."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("pcl_ray") or ()]
    wrong = []
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            has = version(requirement.name)
            if has is None:
                wrong.append(f"{requirement.name} is missing")
            elif not requirement.specifier.contains(has, prereleases=True):
                wrong.append(f"{requirement.name} {has} is not {requirement.specifier}")
    has = {name: found for name in _SHOWN if (found := version(name))}
    said = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {found}" for name, found in has.items()
    )
    if wrong:
        return Check(
            "packages",
            "failed",
            f"{'; '.join(wrong)} ({said})",
            "pip install -U pcl_ray, in an environment of its own",
        )
    if pair := torch_pair(has.get("torch", ""), has.get("torchvision", "")):
        return Check(
            "packages",
            "failed",
            f"{said}: {pair}",
            "install torch and torchvision together, from the same place",
        )
    if {"faiss-gpu", "faiss-cpu"} <= has.keys():
        return Check(
            "packages",
            "warning",
            f"{said}: faiss-gpu and faiss-cpu overwrite each other's files",
            "uninstall both, then install one",
        )
    return Check("packages", "ok", said)


def torch_pair(torch: str, torchvision: str) -> str:
    """What is wrong with the two versions together; "" if nothing is, or it is not known."""
    try:
        (major, minor), (_, second) = (
            [int(part) for part in text.split("+")[0].split(".")[:2]] for text in (torch, torchvision)
        )
    except ValueError:
        return ""
    return (
        f"torchvision {torchvision} is made for torch 2.{second - _AFTER_TORCH_2}"
        if major == 2 and second != minor + _AFTER_TORCH_2
        else ""
    )


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# --- Ray ---


def ray_cluster() -> Check:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address == "local":
        return Check(
            "Ray",
            "ok",
            f"RAY_ADDRESS is not set: each run with workers starts a Ray of its own, with {os.cpu_count()}"
            f" CPUs and {gpus_here()} GPUs here",
        )
    place = address.rpartition("://")[2]
    host, colon, port = place.rpartition(":")
    advice = "unset RAY_ADDRESS to start a Ray on this machine, or start one there: ray start --head"
    try:
        if colon:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return Check("Ray", "failed", f"RAY_ADDRESS = {address}: nothing answers there ({error})", advice)
    if address.startswith("ray://"):
        return Check(
            "Ray",
            "warning",
            f"RAY_ADDRESS = {address} is for Ray's client, which no training goes through",
            "give the cluster's own address, host:6379",
        )
    return _asked_ray(address, advice)


def _asked_ray(address: str, advice: str) -> Check:
    """In a process of its own: Ray's client tries for a minute, and cannot be told otherwise."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_RAY_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        said = (
            f"RAY_ADDRESS = {address}: something listens there, but does not answer as a Ray cluster within"
            f" {_RAY_S:g} s"
        )
        return Check(
            "Ray",
            "failed",
            said,
            f"is it the cluster's own port (6379 by default), and is the token right? Else {advice}",
        )
    if answer.returncode == 0:
        return Check(
            "Ray", "ok", f"RAY_ADDRESS = {address}: the cluster answers, with the Ray version of this machine"
        )
    told = answer.stdout + answer.stderr
    if "auth" in told.lower() and "token" in told.lower():
        said = f"RAY_ADDRESS = {address}: the cluster asks for a token, and ours is missing or wrong"
        return Check(
            "Ray",
            "failed",
            said,
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=/file/with/the/cluster's/token",
        )
    lines = [line.strip()[:200] for line in told.splitlines() if line.strip()]
    return Check(
        "Ray", "failed", f"RAY_ADDRESS = {address}: {lines[-1] if lines else 'no cluster answers'}", advice
    )


def ray_token() -> Check:
    """What happens about the token, without telling it."""
    mode, cluster = os.environ.get("RAY_AUTH_MODE", "").lower(), bool(os.environ.get("RAY_ADDRESS"))
    source, wrong = _token_source()
    if mode == "disabled":
        said = "RAY_AUTH_MODE = disabled: whoever reaches Ray's ports can run code as you"
        return Check(
            "Ray's token",
            "warning",
            said,
            "RAY_AUTH_MODE=token, or only on a machine and a network that nobody else uses",
        )
    if wrong:
        return Check(
            "Ray's token",
            "failed" if "cannot" in wrong else "warning",
            wrong,
            "chmod 600 it, and let RAY_AUTH_TOKEN_PATH name a file of yours",
        )
    if not cluster and not mode:
        return Check(
            "Ray's token",
            "ok",
            "a Ray of our own gets a token in memory"
            + (f" (here {source})" if source == "RAY_AUTH_TOKEN" else ", new for each run"),
        )
    if not cluster:
        return Check(
            "Ray's token",
            "ok",
            f"RAY_AUTH_MODE = {mode}: a Ray of our own takes {source or '~/.ray/auth_token, which it makes'}",
        )
    if mode != "token":
        said = (
            "RAY_ADDRESS is set and RAY_AUTH_MODE is not: whether a token is asked for differs from command"
            " to command"
        )
        return Check(
            "Ray's token", "warning", said, "set RAY_AUTH_MODE to what the cluster has: token or disabled"
        )
    if not source:
        return Check(
            "Ray's token",
            "failed",
            "RAY_AUTH_MODE = token, but there is no token",
            "RAY_AUTH_TOKEN_PATH=/file/with/the/cluster's/token, chmod 600",
        )
    return Check("Ray's token", "ok", f"the cluster is given {source}")


def _token_source() -> tuple[str, str]:
    """Where Ray takes its token from, "" for nowhere; and what is wrong with that file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", ""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(given or "~/.ray/auth_token").expanduser()
    if not os.access(path, os.R_OK):
        return "", (
            f"RAY_AUTH_TOKEN_PATH = {given} cannot be read, and Ray does not start then" if given else ""
        )
    open_to_others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    return str(path), f"{path} can be read by others of this machine" if open_to_others else ""


# --- what the machine has ---


def gpus() -> Check:
    import torch

    files = gpus_here()
    if not torch.cuda.is_available():
        if files:
            built = (
                f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
                if torch.version.cuda
                else f"torch {torch.__version__} is built without CUDA"
            )
            advice = (
                "nvidia-smi says which CUDA the driver takes; install a torch for that, or a newer driver"
            )
            return Check(
                "GPUs", "failed", f"there are {files} device files, but torch sees no GPU: {built}", advice
            )
        return Check("GPUs", "ok", "none: training is on the CPU, resources.gpus_per_worker=0")
    said = []
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        said.append(
            f"{known.name} ({known.total_memory / 1e9:.0f} GB,"
            f" {'bf16' if known.major >= 8 else 'no bf16: fp32'})"
        )
    level: Level = "warning" if len(said) < files and not os.environ.get("CUDA_VISIBLE_DEVICES") else "ok"
    advice = (
        f"{files} device files, {len(said)} of them seen: is CUDA_VISIBLE_DEVICES or the container's setting"
        " what you mean?"
        if level == "warning"
        else ""
    )
    return Check("GPUs", level, ", ".join(said), advice)


def faiss() -> Check:
    from pcl_ray.clustering.faiss_state import faiss_state

    try:
        return Check("faiss", "ok", faiss_state())
    except ImportError as error:
        return Check(
            "faiss",
            "failed",
            f"cannot be imported ({error})",
            "pip install --force-reinstall faiss-gpu, or e_step.backend=torch",
        )


def shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "ok", "no /dev/shm here: Ray keeps its objects elsewhere")
    space = shutil.disk_usage(place)
    said = f"{space.free / 1e9:.1f} of {space.total / 1e9:.1f} GB free in /dev/shm"
    if space.free < _SHARED_GB * 1e9:
        advice = (
            "docker run --shm-size=4gb (shm_size in a compose file), or delete what lies there;"
            " resources.workers=0 needs none"
        )
        return Check(
            "shared memory",
            "warning",
            f"{said}: too little for Ray's objects, which then go through the disk",
            advice,
        )
    return Check("shared memory", "ok", said)


def memory() -> Check:
    total, free = _machine_memory()
    limit = _limit("memory.max", "memory/memory.limit_in_bytes")
    limited = limit is not None and limit < total
    said = (
        f"{min(limit, total) / 1e9:.1f} GB, the container's limit of {total / 1e9:.1f} GB"
        if limited and limit
        else f"{total / 1e9:.1f} GB"
    )
    said += f", {free / 1e9:.1f} GB of the machine's free"
    short = min(free, limit) if limited and limit else free
    advice = (
        "close other programs or raise the container's limit; a worker takes about 1 GB before any image"
        if short < _MEMORY_GB * 1e9
        else ""
    )
    return Check("memory", "warning" if advice else "ok", said, advice)


def _machine_memory() -> tuple[int, int]:
    """Bytes in all, and those that programs could have."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    return int(fields["MemTotal"].split()[0]) * 1024, int(fields["MemAvailable"].split()[0]) * 1024


def cores() -> Check:
    usable, quota = machine.cores(), _cpu_quota()
    said = f"{usable} of {os.cpu_count()} usable by this process"
    if quota is not None and quota < usable:
        said += f", of which the container gives the time of {quota:g}"
        advice = (
            f"resources.cpus_per_worker × resources.workers below {max(quota, 1):g}: more threads than that"
            " wait for each other"
        )
        return Check("cores", "warning", said, advice)
    return Check("cores", "ok", said)


def _cpu_quota() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            int(Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else None
    return None


def _limit(*files: str) -> int | None:
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            return int((Path("/sys/fs/cgroup") / file).read_text())
    return None


def home_folder() -> Check:
    try:
        paths.check_writable()
    except ConfigError as error:
        return Check("PCL_RAY_HOME", "failed", str(error))
    place = paths.home()
    free = shutil.disk_usage(place).free / 1e9
    said = f"{place}, {free:.1f} GB free" + (
        f", on a network file system ({kind})" if (kind := network_file_system(place)) else ""
    )
    if free < _DISK_GB:
        advice = "free some space, set PCL_RAY_HOME to another disk, or train.keep_checkpoints=1"
        return Check("PCL_RAY_HOME", "failed" if free < _FULL_GB else "warning", said, advice)
    return Check("PCL_RAY_HOME", "ok", said)


def tracking_store() -> Check:
    config = TrackingConfig()
    uri = tracking.tracking_uri(config, paths.home())
    if problems := tracking.check_uri(config, paths.home()):
        return Check(
            "tracking", "failed", "; ".join(f"{problem.value}: {problem.message}" for problem in problems)
        )
    level, said, advice = reachable(uri)
    return Check(
        "tracking",
        level,
        said if uri.startswith("sqlite") else f"{redaction.public_uri(uri)}: {said}",
        advice,
    )
