"""Makes one part of a collection: reads its images in threads, ahead of the encoder, and writes the file."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pcl_ray.data.pictures import decoding
from pcl_ray.embedding.collection import PARTS_FOLDER, Manifest, part_path, schema_of, write_part
from pcl_ray.embedding.embedder import Embedded, Embedder, Features
from pcl_ray.embedding.inputs import ImageReader
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.support.paths import path_text

READ_TIMEOUT_S = 300  # for one image: storage that is silent for so long hangs
_AHEAD = 2  # batches that are being read


@dataclass(frozen=True)
class PartResult:
    """What came of one part."""

    number: int
    images: int  # embedded
    broken: int  # not readable


@dataclass(frozen=True)
class _Read:
    """An image that was read: its view, or why there is none."""

    view: Tensor | None  # [channels, S, S] uint8
    digest: str = ""
    size: int = 0  # bytes
    reason: str = ""
    missing: bool = False


class PartMaker:
    """Embeds the images of parts, one part after the other. threads: those that read and decode."""

    def __init__(self, folder: Path, manifest: Manifest, embedder: Embedder, threads: int):
        self._folder, self._manifest, self._embedder = folder, manifest, embedder
        self._threads = max(1, threads)
        self._reader = ImageReader(manifest.column)

    def make(self, number: int, names: Sequence[str]) -> PartResult:
        """Embeds these images and writes them as the part of this number.

        Raises RunFailed where an image is not read in time, where none of the first part's is there though
        they were found, and where the file cannot be written.
        """
        reads, parts = self._encode(names)
        good = [row for row, read in enumerate(reads) if not read.reason]
        first = not any((self._folder / PARTS_FOLDER).glob("*.parquet"))
        if first and names and all(read.missing for read in reads):
            raise RunFailed(
                f"none of {len(names)} images is there any more, the first '{path_text(names[0])}': they have"
                " gone, or this machine does not see the file system that they are on"
            )
        broken = [
            (path_text(name), read.reason) for name, read in zip(names, reads, strict=True) if read.reason
        ]
        embedded = self._embedder.embedded(parts)
        try:
            table = self._table([(names[row], reads[row]) for row in good], embedded)
            write_part(part_path(self._folder, number), table, broken)
        except OSError as error:
            raise RunFailed(
                f"part {number} cannot be written to {self._folder} ({error.strerror or error}); what was"
                " written before stays: free some space and start again"
            ) from error
        return PartResult(number, len(good), len(broken))

    def _encode(self, names: Sequence[str]) -> tuple[list[_Read], list[Features]]:
        """What was read of each image, without the views, and the features of those that have one."""
        reads: list[_Read] = []
        parts: list[Features] = []
        for batch in self._batches(names):
            views = [read.view for read in batch if read.view is not None]
            if views:
                parts.append(self._embedder.features(torch.stack(views)))
            reads += [replace(read, view=None) for read in batch]
        return reads, parts

    def _batches(self, names: Sequence[str]) -> Iterator[list[_Read]]:
        """The images in batches, while the next ones are being read."""
        size = self._embedder.batch_size
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="images")
        waiting: deque[list[Future[_Read]]] = deque()
        try:
            with decoding.quiet():
                for start in range(0, len(names), size):
                    waiting.append([pool.submit(self._read, name) for name in names[start : start + size]])
                    if len(waiting) > _AHEAD:
                        yield self._results(waiting.popleft())
                while waiting:
                    yield self._results(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _results(batch: Sequence[Future[_Read]]) -> list[_Read]:
        try:
            return [future.result(READ_TIMEOUT_S) for future in batch]
        except NoAnswer:
            raise RunFailed(
                f"an image was not read within {READ_TIMEOUT_S} s: the storage hangs. What was written before"
                " stays; start again when it answers"
            ) from None

    def _read(self, name: str) -> _Read:
        try:
            content = self._reader.read(name)
        except (OSError, DataError, ValueError) as error:  # no name has a NUL
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return _Read(None, reason=reason, missing=isinstance(error, FileNotFoundError))
        if not content:
            return _Read(None, reason="empty file")
        try:
            view = self._embedder.view(content)
        except (DataError, ValueError) as error:
            return _Read(None, reason=str(error).partition("cannot be read: ")[2] or str(error))
        return _Read(view, hashlib.blake2b(content, digest_size=16).hexdigest(), len(content))

    def _table(self, images: list[tuple[str, _Read]], embedded: Embedded) -> pa.Table:
        head = self._manifest.features == "head"
        rows = np.ascontiguousarray(embedded.embeddings if head else embedded.backbone)
        columns: list[pa.Array] = [
            pa.array([path_text(name) for name, _ in images], pa.string()),
            pa.array([read.digest for _, read in images], pa.string()),
            pa.array([read.size for _, read in images], pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), self._manifest.dim),
        ]
        for ids, far in zip(embedded.prototypes, embedded.distances, strict=True):
            columns += [pa.array(ids, pa.int64()), pa.array(far, pa.float32())]
        return pa.table(columns, schema=schema_of(self._manifest))
