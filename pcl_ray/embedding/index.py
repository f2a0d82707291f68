"""The index of a collection: its embeddings as unit vectors in a file, and exact search in them by faiss.

vectors.npy     [n, D] float32, mapped into memory: only what is looked at is read
shard-*.faiss   the same in half precision, half as much for a scan to read; some 60 million numbers each
state.json      of which parts they are; written last

What faiss finds is decided by the float32 vectors: rounding to half precision moves a cosine by less than a
known bound, so everything that may be among the k nearest is looked at again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from pcl_ray.embedding.collection import INDEX_FOLDER, Collection
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.files import LockHeld, atomic_file, file_lock, write_text
from pcl_ray.support.text import count

Say = Callable[[str], None]

LOCK_WAIT_S = 1800.0  # for another process that builds the same index
_VECTORS, _STATE = "vectors.npy", "state.json"
_SHARD = 2**26  # numbers
_BLOCK = 2**22  # numbers of vectors that are in memory at a time
_SPARE, _MOST = 64, 4096  # candidates beyond the k nearest at first; with more than so many all are looked at


def opened(collection: Collection, say: Say | None = None) -> SearchIndex:
    """The index of a collection, made anew where there is none or its parts have changed.

    Raises ConfigError for an empty collection, where the index cannot be written, or another process has been
    building it for half an hour; DataError for embeddings that are not finite.
    """
    if not len(collection):
        raise ConfigError(f"the collection in {collection.folder} has no images")
    folder = collection.folder / INDEX_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with file_lock(folder / "lock", LOCK_WAIT_S):
            if not _is_current(folder, collection):
                if say:
                    say(f"making the index of {count(len(collection), 'image')} …")
                _build(folder, collection)
    except LockHeld:
        raise ConfigError(f"another process has been building the index in {folder} for too long") from None
    except OSError as error:
        raise ConfigError(f"the index in {folder} cannot be written: {error.strerror or error}") from None
    return SearchIndex(folder)


def _is_current(folder: Path, collection: Collection) -> bool:
    try:
        return (folder / _STATE).read_text() == collection.state and (folder / _VECTORS).is_file()
    except OSError:
        return False


def _build(folder: Path, collection: Collection) -> None:
    (folder / _STATE).unlink(missing_ok=True)
    for stale in [*folder.glob("*.faiss"), *folder.glob("*.npz"), *folder.glob("*.partial")]:
        stale.unlink()
    blocks = ((start, _unit(block, start, collection)) for start, block in collection.embeddings())
    written(folder, blocks, len(collection), collection.manifest.dim)
    write_text(folder / _STATE, collection.state)


def written(folder: Path, blocks: Iterable[tuple[int, np.ndarray]], size: int, dim: int) -> Path:
    """Writes the index of [size, dim] unit vectors, which come in blocks with the number of their first row;
    gives back `folder`. Raises OSError.
    """
    import faiss

    with atomic_file(folder / _VECTORS, only_writer=True) as partial:
        vectors = open_memmap(partial, mode="w+", dtype=np.float32, shape=(size, dim))
        for start, block in blocks:
            vectors[start : start + len(block)] = block
        vectors.flush()
    rows = max(1, _SHARD // dim)
    for number, start in enumerate(range(0, size, rows)):
        shard = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        shard.add(vectors[start : start + rows])
        with atomic_file(folder / f"shard-{number:04d}.faiss", only_writer=True) as partial:
            faiss.write_index(shard, str(partial))
    return folder


def _unit(block: np.ndarray, start: int, collection: Collection) -> np.ndarray:
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        image = start + int(np.flatnonzero(~np.isfinite(norms[:, 0]))[0])
        raise DataError(f"the embedding of {collection.path(image)} is not finite: the weights are damaged")
    return block / np.maximum(norms, 1e-12)


class SearchIndex:
    """Unit vectors, and the images nearest to a query. May be used by one thread at a time."""

    def __init__(self, folder: Path):
        import faiss

        self.folder = folder
        self.vectors: np.ndarray = np.load(  # [n, D] float32
            folder / _VECTORS, mmap_mode="r", allow_pickle=False
        )
        self._shards: list[Any] = [
            faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for path in sorted(folder.glob("*.faiss"))
        ]
        self._rows = max(1, _SHARD // self.vectors.shape[1])
        self._pool = ThreadPoolExecutor(max(1, min(len(self._shards), os.cpu_count() or 1)))

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries_QD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """[Q, k] int64 the nearest images of each query by the cosine, the nearest first, of equal ones that
        with the lower number; [Q, k] float32 the cosines. k: `count`, or all images where there are fewer.
        """
        queries = np.ascontiguousarray(queries_QD, dtype=np.float32)
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        count = min(count, len(self))
        results = [self._nearest(query, count) for query in queries]
        if not results:
            return np.empty((0, count), np.int64), np.empty((0, count), np.float32)
        ids, cosines = (np.stack(part) for part in zip(*results, strict=True))
        return ids, cosines

    def _nearest(self, query_D: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        amount = min(len(self), count + _SPARE)
        while amount < min(len(self), _MOST):
            scores, ids = self._scan(query_D, amount)
            clear = scores < scores[count - 1] - 2 * _rounding(len(query_D))
            if clear[-1]:  # whoever is left out is farther for sure
                return self._decided(query_D, ids[~clear], count)
            amount *= 4
        return self._decided(query_D, None, count)

    def _scan(self, query_D: np.ndarray, amount: int) -> tuple[np.ndarray, np.ndarray]:
        """The `amount` best of all shards: their cosines in half precision, falling, and the images."""
        searches = [self._pool.submit(shard.search, query_D[None], amount) for shard in self._shards]
        parts = [search.result() for search in searches]
        scores = np.concatenate([scores[0] for scores, _ in parts])
        rows = [ids[0] for _, ids in parts]
        ids = np.concatenate([np.where(part < 0, -1, part + self._rows * i) for i, part in enumerate(rows)])
        scores, ids = scores[ids >= 0], ids[ids >= 0]
        order = np.argsort(-scores, kind="stable")[:amount]
        return scores[order], ids[order]

    def _decided(
        self, query_D: np.ndarray, ids: np.ndarray | None, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest of these images, or of all, by their float32 vectors."""
        if ids is None:
            ids, step = np.arange(len(self)), max(1, _BLOCK // len(query_D))
            blocks = [self.vectors[start : start + step] @ query_D for start in range(0, len(self), step)]
            cosines = np.concatenate(blocks)
        else:
            ids = np.sort(ids)
            cosines = self.vectors[ids] @ query_D
        order = np.argsort(-cosines, kind="stable")[:count]
        return ids[order], cosines[order]


def _rounding(dim: int) -> float:
    """How much the cosine of unit vectors may move in half precision, rounding of float32 sums included."""
    return 2.0**-11 + 2.0**-25 * math.sqrt(dim) + 2.0**-23 * dim
