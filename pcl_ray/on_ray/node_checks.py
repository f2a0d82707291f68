"""Whether every node of a cluster sees what a run needs of the disk, asked before anything trains: a worker
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

from pcl_ray.checkpoints import storage, storage_address
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import FileImages, Images
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed

_FILES = 16  # of a part, that are looked at
_LIMIT_S = 120.0  # a node that has run nothing yet starts a process and imports numpy first


@dataclass(frozen=True)
class Needs:
    """What has to be seen: what the driver has just written, in the run's folder or in its storage, and some
    of the images with their sizes in bytes.
    """

    probe: str  # a file, or an object below the run's place in the storage
    content: str
    files: tuple[tuple[str, int], ...] = ()
    storage_uri: str | None = None
    run: str = ""


@dataclass(frozen=True)
class Answer:
    """What a node lacks; "" where it lacks nothing."""

    place: str  # why it cannot use the run's folder or storage
    image: str  # the first image that is not there or is another one


def check(run_dir: Path, splits: DataSplits, data_path: str | None, storage_uri: str | None = None) -> None:
    """Asks every node that may get a worker. One node that is this machine is not asked.

    Checkpoints lie in the storage, or without one in `run_dir`, which all have to share then. Raises
    ConfigError where a node cannot use that place, DataError where images are missing.
    """
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]
    if not nodes or [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]:
        return
    files = _sample(splits.train) + (_sample(splits.holdout) if splits.holdout is not None else ())
    name, content = f".seen-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    needs = Needs(name if storage_uri else str(run_dir / name), content, files, storage_uri, run_dir.name)
    with _written(needs):
        answers = _ask(nodes, needs)
    _judge(answers, needs, run_dir, data_path)


@contextmanager
def _written(needs: Needs) -> Iterator[None]:
    """The probe is there during the block. Raises ConfigError where the storage does not take it."""
    if needs.storage_uri is None:
        try:
            Path(needs.probe).write_text(needs.content)
            yield
        finally:
            with suppress(OSError):
                Path(needs.probe).unlink()
        return
    place = storage.of_run(needs.storage_uri, needs.run)
    try:
        place.write(needs.probe, needs.content.encode())
    except RunFailed as failure:
        raise ConfigError([Problem("resources.storage", str(place), str(failure))]) from failure
    try:
        yield
    finally:
        with suppress(RunFailed):
            place.remove(needs.probe)


def missing(needs: Needs) -> Answer:
    """On a node: what it lacks."""
    place = _unseen(needs) if needs.storage_uri is None else _unusable(needs, needs.storage_uri)
    for file, size in needs.files:
        try:
            if os.stat(file).st_size != size:
                return Answer(place, f"{file} has another size there")
        except OSError as error:
            return Answer(place, f"{file}: {error.strerror}")
    return Answer(place, "")


def _unseen(needs: Needs) -> str:
    try:
        return "" if Path(needs.probe).read_text() == needs.content else "another file is there"
    except OSError as error:
        return error.strerror or str(error)


def _unusable(needs: Needs, uri: str) -> str:
    """Reads before it writes: in a folder that is not mounted here, writing would make a folder of this
    node's own, and seem to work.
    """
    place = storage.of_run(uri, needs.run)
    try:
        if place.read(needs.probe) != needs.content.encode():
            return "what the driver has just written is not there"
        mine = f"{needs.probe}-{uuid.uuid4().hex[:8]}"  # any node may be the one that writes the checkpoints
        place.write(mine, b"seen")
        place.remove(mine)
    except storage.StorageFailed as failure:
        return failure.reason
    return ""


def _sample(images: Images) -> tuple[tuple[str, int], ...]:
    """Evenly over the images; nothing where they lie in memory and travel through Ray's store."""
    if not isinstance(images, FileImages) or not len(images):
        return ()
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _FILES)).astype(int))
    return tuple((str(path), path.stat().st_size) for path in (images.path(int(index)) for index in chosen))


def _ask(nodes: Sequence[dict[str, Any]], needs: Needs) -> list[tuple[str, Answer | None]]:
    """Each node's name, which others may have too, and its answer; None where there is none."""
    look: Any = ray.remote(missing)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked.append(look.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(needs))
    ray.wait(asked, num_returns=len(asked), timeout=_LIMIT_S)
    return [
        (f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", _answer(reference))
        for node, reference in zip(nodes, asked, strict=True)
    ]


def _answer(reference: Any) -> Answer | None:
    try:
        return ray.get(reference, timeout=0)
    except (GetTimeoutError, RayError):
        return None


def _judge(
    answers: Sequence[tuple[str, Answer | None]], needs: Needs, run_dir: Path, data_path: str | None
) -> None:
    silent = [name for name, answer in answers if answer is None]
    if silent:
        raise ConfigError(
            f"{_listed(silent)} did not answer within {_LIMIT_S:g} s, or has no pcl_ray of this version"
            " installed; mend or remove it"
        )
    if blind := [(name, answer.place) for name, answer in answers if answer is not None and answer.place]:
        raise _blind(_listed([name for name, _ in blind]), blind[0][1], needs.storage_uri, run_dir)
    if lacking := [(name, answer.image) for name, answer in answers if answer is not None and answer.image]:
        where, what = _listed([name for name, _ in lacking]), lacking[0][1]
        raise DataError(
            str(
                Problem(
                    "data.path",
                    data_path,
                    f"{where} does not have these images ({what}); put them at the same path on every node",
                )
            )
        )


def _blind(where: str, why: str, uri: str | None, run_dir: Path) -> ConfigError:
    if uri is None:
        way_out = (
            "set PCL_RAY_HOME to a folder on storage that all nodes share, or resources.storage to such a"
            " place"
        )
        return ConfigError(f"{where} does not see {run_dir} ({why}): {way_out}")
    local = "://" not in uri or uri.startswith("file:")
    mend = (
        "mount it there at the same path"
        if local
        else "every node needs a way to it and its credentials in the environment"
    )
    other = (
        "or name a storage that all nodes reach (s3://bucket/path)"
        if local
        else "or name a storage that all nodes reach"
    )
    return ConfigError(
        [
            Problem(
                "resources.storage",
                storage_address.without_secrets(uri),
                f"{where} cannot use it ({why}); {mend}, {other}",
            )
        ]
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"node{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"
