"""Whether every node of a cluster sees what a run needs of the disk, asked before anything trains: a worker that does not would fail hours later."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import FileImages, Images
from pcl_ray.errors import ConfigError, DataError, Problem

_FILES = 16  # of a part, that are looked at
_LIMIT_S = 120.0  # a node that has run nothing yet starts a process and imports numpy first


@dataclass(frozen=True)
class Needs:
    """What has to be seen: a file that the driver has just written, and some of the images with their sizes in bytes."""

    probe: str
    content: str
    files: tuple[tuple[str, int], ...] = ()


def check(run_dir: Path, splits: DataSplits, data_path: str | None, *, shared_storage: bool = True) -> None:
    """Asks every node that may get a worker. One node that is this machine is not asked.

    shared_storage: checkpoints lie in `run_dir`, which all have to share. Raises ConfigError where it is not shared, DataError where images are missing.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))]
    files = _sample(splits.train) + (_sample(splits.holdout) if splits.holdout is not None else ())
    if not nodes or [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()] or not (shared_storage or files):
        return
    probe = run_dir / f".seen-{uuid.uuid4().hex[:8]}"
    needs = Needs(str(probe) if shared_storage else "", uuid.uuid4().hex, files)
    try:
        if shared_storage:
            probe.write_text(needs.content)
        answers = _ask(nodes, needs)
    finally:
        with suppress(OSError):
            probe.unlink()
    _judge(answers, run_dir, data_path)


def missing(needs: Needs) -> tuple[bool, str]:
    """On a node: whether it sees the driver's file, and the first image that is not there or is another one ("" if all are)."""
    seen = True
    if needs.probe:
        try:
            seen = Path(needs.probe).read_text() == needs.content
        except OSError:
            seen = False
    for file, size in needs.files:
        try:
            if os.stat(file).st_size != size:
                return seen, f"{file} has another size there"
        except OSError as error:
            return seen, f"{file}: {error.strerror}"
    return seen, ""


def _sample(images: Images) -> tuple[tuple[str, int], ...]:
    """Evenly over the images; nothing where they lie in memory and travel through Ray's store."""
    if not isinstance(images, FileImages) or not len(images):
        return ()
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _FILES)).astype(int))
    return tuple((str(path), path.stat().st_size) for path in (images.path(int(index)) for index in chosen))


def _ask(nodes: Sequence[dict[str, Any]], needs: Needs) -> list[tuple[str, tuple[bool, str] | None]]:
    """Each node's name, which others may have too, and its answer; None where there is none."""
    look: Any = ray.remote(missing)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked.append(look.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(needs))
    ray.wait(asked, num_returns=len(asked), timeout=_LIMIT_S)
    return [(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", _answer(reference)) for node, reference in zip(nodes, asked, strict=True)]


def _answer(reference: Any) -> tuple[bool, str] | None:
    try:
        return ray.get(reference, timeout=0)
    except (GetTimeoutError, RayError):
        return None


def _judge(answers: Sequence[tuple[str, tuple[bool, str] | None]], run_dir: Path, data_path: str | None) -> None:
    silent = [name for name, answer in answers if answer is None]
    if silent:
        raise ConfigError(f"{_listed(silent)} did not answer within {_LIMIT_S:g} s, or has no pcl_ray of this version installed; mend or remove it")
    blind = [name for name, answer in answers if answer is not None and not answer[0]]
    if blind:
        raise ConfigError(
            f"{_listed(blind)} does not see {run_dir}: set PCL_RAY_HOME to a folder on storage that all nodes share, or resources.storage to such a place"
        )
    lacking = [(name, answer[1]) for name, answer in answers if answer is not None and answer[1]]
    if lacking:
        where, what = _listed([name for name, _ in lacking]), lacking[0][1]
        raise DataError(str(Problem("data.path", data_path, f"{where} does not have these images ({what}); put them at the same path on every node")))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"node{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
