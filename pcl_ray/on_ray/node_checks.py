"""Checks that every node of a cluster sees what a run needs of the disk, before anything trains: a worker
that does not would fail hours later.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import FileImages, Images
from pcl_ray.data.sources.packed import PackedImages
from pcl_ray.data.sources.shards import Shard
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed
from pcl_ray.support import storage, storage_address

_FILES = 16  # images of a part that are looked at
_TIMEOUT_S = 120.0  # a node that has run nothing yet starts a process and imports numpy first


@dataclass(frozen=True)
class Requirements:
    """What a node has to see: what the driver has just written, in the run's folder or in its storage, and
    some of the images with their sizes in bytes, alone or in shards.
    """

    probe: str  # a file, or an object below the run's folder in the storage
    content: str
    files: tuple[tuple[str, int], ...] = ()
    shards: tuple[Shard, ...] = ()
    storage_uri: str | None = None
    run: str = ""


@dataclass(frozen=True)
class NodeReport:
    """What a node lacks; "" where it lacks nothing."""

    folder_problem: str  # why it cannot use the run's folder or storage
    image_problem: str  # the first image that is not there or is another one


def check(run_dir: Path, splits: DataSplits, data_path: str | None, storage_uri: str | None = None) -> None:
    """Asks every node that may get a worker; none where the only node is this machine.

    Checkpoints lie in the storage, or without one in `run_dir`, which all have to share then. Raises
    ConfigError where a node cannot use that, DataError where images are missing.
    """
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]
    if not nodes or [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]:
        return
    parts = [part for part in (splits.train, splits.holdout) if part is not None]
    files = tuple(file for part in parts for file in _sample(part))
    shards = tuple(shard for part in parts for shard in _sampled_shards(part))
    name, content = f".seen-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    probe = name if storage_uri else str(run_dir / name)
    requirements = Requirements(probe, content, files, shards, storage_uri, run_dir.name)
    with _probe_written(requirements):
        reports = _ask(nodes, requirements)
    _raise_problems(reports, requirements, run_dir, data_path)


@contextmanager
def _probe_written(requirements: Requirements) -> Iterator[None]:
    """Has the probe written during the block. Raises ConfigError where the storage does not take it."""
    if requirements.storage_uri is None:
        try:
            Path(requirements.probe).write_text(requirements.content)
            yield
        finally:
            with suppress(OSError):
                Path(requirements.probe).unlink()
        return
    run_storage = storage.of_run(requirements.storage_uri, requirements.run)
    try:
        run_storage.write(requirements.probe, requirements.content.encode())
    except RunFailed as failure:
        raise ConfigError([Problem("resources.storage", str(run_storage), str(failure))]) from failure
    try:
        yield
    finally:
        with suppress(RunFailed):
            run_storage.remove(requirements.probe)


def examine_node(requirements: Requirements) -> NodeReport:
    """What the node that this is run on lacks."""
    if requirements.storage_uri is None:
        folder_problem = _folder_problem(requirements)
    else:
        folder_problem = _storage_problem(requirements, requirements.storage_uri)
    return NodeReport(folder_problem, _image_problem(requirements))


def _image_problem(requirements: Requirements) -> str:
    for file, size in requirements.files:
        try:
            if os.stat(file).st_size != size:
                return f"{file} has another size there"
        except OSError as error:
            return f"{file}: {error.strerror}"
    for shard in requirements.shards:
        try:
            version = shard.current()
        except (OSError, RunFailed) as error:
            return f"{shard}: {error}"
        if version is None:
            return f"{shard}: No such file"
        if version.size != shard.size:
            return f"{shard} has another size there"
    return ""


def _folder_problem(requirements: Requirements) -> str:
    try:
        same = Path(requirements.probe).read_text() == requirements.content
    except OSError as error:
        return error.strerror or str(error)
    return "" if same else "another file is there"


def _storage_problem(requirements: Requirements, uri: str) -> str:
    """Reads before it writes: in a folder that is not mounted on this node, writing would make a folder of
    the node's own, and seem to work.
    """
    run_storage = storage.of_run(uri, requirements.run)
    try:
        if run_storage.read(requirements.probe) != requirements.content.encode():
            return "what the driver has just written is not there"
        own_probe = f"{requirements.probe}-{uuid.uuid4().hex[:8]}"
        run_storage.write(own_probe, b"seen")  # any node may be the one that writes the checkpoints
        run_storage.remove(own_probe)
    except storage.StorageFailed as failure:
        return failure.reason
    return ""


def _sample(images: Images) -> tuple[tuple[str, int], ...]:
    """Paths and sizes of some images, evenly over all; none for images in memory, which Ray carries."""
    if not isinstance(images, FileImages) or not len(images):
        return ()
    paths = [images.path(number) for number in _evenly(len(images))]
    return tuple((str(path), path.stat().st_size) for path in paths)


def _sampled_shards(images: Images) -> list[Shard]:
    """Some of the shards that images lie in, evenly over all."""
    if not isinstance(images, PackedImages) or not len(images):
        return []
    numbers = dict.fromkeys(int(images.shard_N[number]) for number in _evenly(len(images)))
    return [images.shards[number].shard for number in numbers]


def _evenly(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, _FILES)).astype(int)).tolist()


def _ask(nodes: Sequence[dict[str, Any]], requirements: Requirements) -> list[tuple[str, NodeReport | None]]:
    """Each node's name, which others may have too, and its report; None where it does not answer."""
    examine: Any = ray.remote(examine_node)
    references = []
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        options = examine.options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
        references.append(options.remote(requirements))
    ray.wait(references, num_returns=len(references), timeout=_TIMEOUT_S)
    return [
        (f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", _report(reference))
        for node, reference in zip(nodes, references, strict=True)
    ]


def _report(reference: Any) -> NodeReport | None:
    try:
        return ray.get(reference, timeout=0)
    except (GetTimeoutError, RayError):
        return None


def _raise_problems(
    reports: Sequence[tuple[str, NodeReport | None]],
    requirements: Requirements,
    run_dir: Path,
    data_path: str | None,
) -> None:
    silent = [name for name, report in reports if report is None]
    if silent:
        raise ConfigError(
            f"{_nodes_text(silent)} did not answer within {_TIMEOUT_S:g} s, or has no pcl_ray of this version"
            " installed; mend or remove it"
        )
    answers = [(name, report) for name, report in reports if report is not None]
    if without_folder := [(name, report) for name, report in answers if report.folder_problem]:
        reason = without_folder[0][1].folder_problem
        nodes = _nodes_text([name for name, _ in without_folder])
        raise _folder_error(nodes, reason, requirements.storage_uri, run_dir)
    if without_images := [(name, report) for name, report in answers if report.image_problem]:
        reason = without_images[0][1].image_problem
        nodes = _nodes_text([name for name, _ in without_images])
        way_out = "put them at the same path on every node"
        if "://" in (data_path or ""):
            way_out = "every node needs a way to their storage, with its credentials in the environment"
        message = f"{nodes} does not have these images ({reason}); {way_out}"
        raise DataError(str(Problem("data.path", data_path, message)))


def _folder_error(nodes: str, reason: str, uri: str | None, run_dir: Path) -> ConfigError:
    if uri is None:
        return ConfigError(
            f"{nodes} does not see {run_dir} ({reason}): set PCL_RAY_HOME to a folder on storage that all"
            " nodes share, or resources.storage to such a place"
        )
    if "://" not in uri or uri.startswith("file:"):
        way_out = "mount it there at the same path, or name a storage that all nodes reach (s3://bucket/path)"
    else:
        way_out = (
            "every node needs a way to it and its credentials in the environment, or name a storage that all"
            " nodes reach"
        )
    message = f"{nodes} cannot use it ({reason}); {way_out}"
    return ConfigError([Problem("resources.storage", storage_address.without_secrets(uri), message)])


def _nodes_text(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"node{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
