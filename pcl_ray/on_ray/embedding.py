"""Embeds a collection by Ray Data: batch inference by a pool of actors, one a GPU or core.

Each row of the data set is a part's number and the names of its images; an actor reads and embeds them,
and writes the part. What comes back is how many there were: neither pictures nor features travel.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from pcl_ray.embedding.collection import Manifest, part_path
from pcl_ray.embedding.job import EmbeddingJob
from pcl_ray.embedding.parts import PartResult
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.on_ray.connection import connected
from pcl_ray.support.text import count, duration

STALL_S = 1800  # without any part: something hangs, or the cluster has no room
_ASK_S = 60.0
_END_S = 15.0
_WORKER_BYTES = 1.5e9  # of a worker without a GPU
_LOGGERS = ("ray.data", "ray.data._internal")


@dataclass(frozen=True)
class WorkerShape:
    """How many workers there are, and what each of them reserves."""

    workers: int
    cpus: float
    gpus: float


class PartWorker:
    """Makes parts; `ray.data` starts one in each actor."""

    def __init__(self, folder: str, manifest: Manifest, embedder: str, gpu: bool, threads: int):
        import torch

        from pcl_ray.embedding.embedder import Embedder
        from pcl_ray.embedding.parts import PartMaker

        loaded = Embedder.load(Path(embedder), torch.device("cuda" if gpu else "cpu"))
        self._maker = PartMaker(Path(folder), manifest, loaded, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row in, one row out. What a user must know comes back as a row, other errors are raised."""
        number, names = int(batch["number"][0]), json.loads(str(batch["names"][0]))
        images = broken = 0
        error = ""
        try:
            result = self._maker.make(number, names)
            images, broken = result.images, result.broken
        except (RunFailed, DataError) as problem:
            error = str(problem)
        row = {"number": number, "images": images, "broken": broken, "error": error}
        return {name: np.array([value]) for name, value in row.items()}


def made_on_ray(job: EmbeddingJob, workers: int | None, say: Callable[[str], None]) -> Iterator[PartResult]:
    """Makes the parts on the cluster that RAY_ADDRESS names, or on a Ray of our own. workers: how many; None:
    one a GPU, or without GPUs one a core, as far as there are parts and memory.

    Raises RunFailed where Ray cannot be reached, a part cannot be made, no part comes for half an hour, or
    what a worker has written is not seen here.
    """
    # of Ray's own remarks on Ray Data's actors no user can make anything
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with connected(workers or 1):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shape = worker_shape(nodes, len(job.parts), workers)
        what = "GPU" if shape.gpus else "core"
        say(f"{count(shape.workers, 'worker')}, {shape.gpus or shape.cpus:g} {what} each")
        work = _Work(job, shape)
        with closing(_queued(work.rows, say, work.end)) as rows:
            for row in rows:
                if row["error"]:
                    raise RunFailed(row["error"])
                if not part_path(job.folder, row["number"]).exists():
                    raise RunFailed(
                        f"a worker has written part {row['number']} to {job.folder}, and it is not there: the"
                        " folder must be on a file system that all nodes see"
                    )
                yield PartResult(row["number"], row["images"], row["broken"])


def worker_shape(nodes: Sequence[Mapping[str, float]], parts: int, workers: int | None) -> WorkerShape:
    """What each worker reserves of a cluster whose nodes have these resources: never more than any node that
    can have one has, or it would wait for a node that there is not.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    suitable = [node for node in nodes if node.get("GPU" if gpus else "CPU", 0) >= 1]
    cpus = max(1, int(sum(node.get("CPU", 0) for node in suitable)))
    most = min((int(node.get("CPU", 0) // max(1, node.get("GPU", 0))) for node in suitable), default=1)
    if workers is None:
        fitting = sum(max(1, int(node.get("memory", 1e15) // _WORKER_BYTES)) for node in suitable) or 1
        workers = gpus or min(cpus, fitting)
    workers = max(1, min(workers, parts))
    if gpus:
        share = 1.0 if workers <= gpus else gpus / workers
        return WorkerShape(workers, max(1, min(most, cpus // max(workers, gpus))), share)
    if workers >= cpus:
        return WorkerShape(workers, cpus / workers, 0.0)
    return WorkerShape(workers, max(1, min(most, cpus // workers)), 0.0)


def _parts(job: EmbeddingJob, shape: WorkerShape) -> ray.data.Dataset:
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # as JSON: Arrow takes no names that are not UTF-8
    items = [{"number": number, "names": json.dumps(names)} for number, names in job.parts]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        PartWorker,
        fn_constructor_kwargs={
            "folder": str(job.folder),
            "manifest": job.manifest,
            "embedder": str(job.embedder_folder),
            "gpu": shape.gpus > 0,
            "threads": max(1, int(shape.cpus)),
        },
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=shape.workers, initial_size=shape.workers),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus or None,
    )


class _Work:
    """A job on Ray Data: `rows` in the thread that waits for them, `end` in another one."""

    def __init__(self, job: EmbeddingJob, shape: WorkerShape):
        self._job, self._shape = job, shape
        self._parts: ray.data.Dataset | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        self._parts = _parts(self._job, self._shape)
        yield from self._parts.iter_rows()

    def end(self) -> None:
        """Ends the work under way, for which Ray Data has no call of its own."""
        executor: Any = getattr(self._parts, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)


def _queued(
    rows: Callable[[], Iterator[dict[str, Any]]],
    say: Callable[[str], None],
    end: Callable[[], None] = lambda: None,
    stall_s: float = STALL_S,
) -> Generator[dict[str, Any], None, None]:
    """The rows, which are waited for no longer than stall_s seconds each: Ray Data's own iterators wait for
    ever. A thread waits for them. Whoever stops before the last row has it end by `end`: Ray's library, which
    is shut down next, would free what it reads.
    """
    results: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
    ended = threading.Event()

    def follow() -> None:
        try:
            for row in rows():
                results.put(row)
            results.put(None)
        except BaseException as error:
            results.put(error)
        finally:
            ended.set()

    threading.Thread(target=follow, name="embedding", daemon=True).start()
    try:
        yield from _as_they_come(results, say, stall_s)
    finally:
        if not ended.is_set():
            end()
            ended.wait(_END_S)


def _as_they_come(
    results: queue.Queue[dict[str, Any] | BaseException | None], say: Callable[[str], None], stall_s: float
) -> Iterator[dict[str, Any]]:
    waited = 0.0
    while True:
        try:
            row = results.get(timeout=min(_ASK_S, stall_s))
        except queue.Empty:
            waited += min(_ASK_S, stall_s)
            if waited >= stall_s:
                raise RunFailed(
                    f"no part has come for {duration(waited)}: the workers hang, or the cluster has no room"
                    " for them (`ray status` says); what was written stays"
                ) from None
            say(f"no part for {duration(waited)}: large images, or the cluster is busy")
            continue
        waited = 0.0
        if row is None:
            return
        if isinstance(row, RayError | ConnectionError):
            reason = (str(row).strip().splitlines() or [type(row).__name__])[-1]
            raise RunFailed(f"the workers failed: {reason}; what was written stays") from row
        if isinstance(row, BaseException):
            raise row
        yield row
