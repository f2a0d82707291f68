"""Images as byte ranges of shards. A tar file of this machine is read where it lies; other shards have a copy
in the node's cache, which whoever reads first makes: of an object, of a compressed file, and of a Parquet
file, whose images are packed one after the other.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from pcl_ray.data.images import EncodedImages, digest
from pcl_ray.data.label_sets import LabelSets, label_bytes
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.data.sources import parquet
from pcl_ray.data.sources.cache import ShardCache
from pcl_ray.data.sources.parquet import Columns
from pcl_ray.data.sources.shard_index import MISSING, ShardIndex
from pcl_ray.data.sources.shards import DamagedShard, Shard
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.support.files import atomic_file
from pcl_ray.support.paths import path_text
from pcl_ray.support.storage import PIECE_BYTES

_FETCHERS = 4  # shards that are fetched or packed at a time
_CONNECTIONS = 8  # by which one of them reads the files that it names

S = TypeVar("S")
A = TypeVar("A")
Layout = Literal["tar", "compressed tar", "parquet"]


@dataclass(frozen=True)
class PackedShard:
    """A shard whose images are byte ranges of a local file: of the shard itself, or of its copy."""

    shard: Shard
    layout: Layout
    cache_gb: float
    size: int  # bytes of the local file; before it is there, about
    columns: Columns | None = None  # of a Parquet file

    @cached_property
    def key(self) -> str:
        """What the copy is called in the cache: another name for every version of the shard."""
        columns = self.columns
        parts = (
            *(str(self.shard), str(self.shard.size), str(self.shard.changed_ns), self.layout),
            columns.image if columns else "",
        )
        return digest(*(part.encode("utf-8", "surrogateescape") for part in parts))

    @property
    def names_files(self) -> bool:
        """Whether the shard has paths of files of this machine instead of images. Of paths in a storage the
        images are packed, as if they were in the shard.
        """
        return self.shard.is_local and self.columns is not None and self.columns.kind == "paths"

    @property
    def in_cache(self) -> bool:
        """Whether the images are read from a copy."""
        return not self.shard.is_local or self.layout != "tar"

    def local_file(self) -> Path:
        """The file that the images are ranges of, which is made now where it is not there. Raises DataError,
        also where the shard has changed.
        """
        if not self.in_cache:
            return Path(self.shard.path)
        return self._made(lambda index: None)

    def tar_index(self, setting: str, read: Callable[[Path], ShardIndex]) -> ShardIndex:
        """The index that `read` finds in the local file, from the cache where it has been read before.

        setting: what the index depends on beside the shard. Raises DataError.
        """
        key = self._index_key(setting)
        if (index := self._stored_index(key)) is None:
            index = read(self.local_file())
            self._store_index(key, index)
        return index

    def packed_index(self) -> ShardIndex:
        """The index of a Parquet file, which is packed for it if it has not been. Raises DataError."""
        assert self.columns is not None
        key = self._index_key(f"label {self.columns.label}")
        if (index := self._stored_index(key)) is None:
            if not self.names_files:
                self._made(lambda index: self._store_index(key, index))
            index = self._stored_index(key)  # whichever process has packed it
        if index is None:  # packed once with other labels
            index = self._pack(None)
            self._store_index(key, index)
        return index

    @property
    def _cache(self) -> ShardCache:
        return ShardCache(self.cache_gb)

    def _index_key(self, setting: str) -> str:
        return f"{digest(self.key.encode(), setting.encode())}.index"

    def _stored_index(self, key: str) -> ShardIndex | None:
        path = self._cache.find(key)
        return None if path is None else ShardIndex.read(path)

    def _store_index(self, key: str, index: ShardIndex) -> None:
        path = self._cache.folder / key
        with suppress(OSError):  # only costs the next run a second look
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                index.write(partial)

    def _made(self, take: Callable[[ShardIndex], None]) -> Path:
        """The copy. take: gets the index of a Parquet file that is packed now."""

        def write(target: Path) -> None:
            self._check_unchanged()
            if self.layout == "parquet":
                take(self._pack(target))
            elif self.layout == "compressed tar":
                self._unpack(target)
            else:
                self.shard.storage().download(self.shard.key, target)
                os.utime(target)  # of the cache, not of the object: it says when it was used last

        return self._cache.get(f"{self.key}.data", self._size_while_made(), write, str(self.shard))

    def _size_while_made(self) -> int:
        downloaded = self.shard.size if not self.shard.is_local and self.layout == "parquet" else 0
        return self.size + downloaded

    def _check_unchanged(self) -> None:
        try:
            version = self.shard.current()
        except OSError as error:
            raise DataError(f"{self.shard}: {error.strerror or error}") from error
        if version is None:
            raise DataError(f"{self.shard} is not there")
        # its time may be another one on another node
        if version.size != self.shard.size:
            raise DataError(
                f"{self.shard} has changed: it had {self.shard.size} bytes and has {version.size}"
            )

    def _pack(self, target: Path | None) -> ShardIndex:
        """Packs the images of a Parquet file into `target`, if it is not None. Raises OSError, RunFailed."""
        assert self.columns is not None
        with ExitStack() as opened:
            path, read_files = Path(self.shard.path), self._local_files
            if not self.shard.is_local:
                self._cache.folder.mkdir(parents=True, exist_ok=True)
                path = self._cache.folder / f"{self.key}.{os.getpid()}.source.partial"
                read_files = self._stored_files
                opened.callback(path.unlink, missing_ok=True)
                self.shard.storage().download(self.shard.key, path)
            packed = opened.enter_context(open(target or os.devnull, "wb"))
            return parquet.pack(path, self.columns, packed, None if self.names_files else read_files)

    def _local_files(self, paths: Sequence[str]) -> list[bytes | None]:
        """Files beside the shard."""
        contents: list[bytes | None] = []
        for path in paths:
            contents.append(None)
            with suppress(OSError):
                contents[-1] = (Path(self.shard.path).parent / path).read_bytes()
        return contents

    def _stored_files(self, paths: Sequence[str]) -> list[bytes | None]:
        """Objects of the shard's storage: beside it, or by their whole address. Raises RunFailed."""
        storage, folder = self.shard.storage(), posixpath.dirname(self.shard.key)
        root = f"{str(self.shard).partition('?')[0].removesuffix(self.shard.key)}"

        def read(path: str) -> bytes | None:
            key = posixpath.normpath(posixpath.join(folder, path.removeprefix("/")))
            if "://" in path:
                key = path.removeprefix(root) if path.startswith(root) else ""
            return None if not key or key.startswith("..") else storage.read(key)

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(read, paths))

    def _unpack(self, target: Path) -> None:
        if not self.shard.is_local:
            self.shard.storage().examine(
                self.shard.key, lambda file: self._unpack_from(file, target), self.shard.size
            )
            return
        with open(self.shard.path, "rb") as file:
            try:
                self._unpack_from(file, target)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise DamagedShard(f"{self.shard} cannot be unpacked: {error}") from error

    def _unpack_from(self, file: Any, target: Path) -> None:
        import pyarrow

        limit = self.cache_gb * 1e9
        try:
            kind = pyarrow.Codec.detect(self.shard.name.replace(".tgz", ".gz")).name
        except (ValueError, TypeError):
            kind = None
        if kind is None:
            raise DamagedShard(
                f"{self.shard} ends neither in .tar nor as compressed files do (.tar.gz, .tgz)"
            )
        with target.open("wb") as unpacked, pyarrow.CompressedInputStream(file, kind) as stream:
            while piece := stream.read(PIECE_BYTES):
                if unpacked.tell() + len(piece) > limit:
                    raise DataError(f"{self.shard} is larger than data.cache_gb = {self.cache_gb:g} unpacked")
                unpacked.write(piece)


@dataclass(frozen=True, eq=False)
class PackedImages(EncodedImages):
    """Images in shards, decoded when they are read. Numpy arrays serve all Ray workers of a node."""

    shards: tuple[PackedShard, ...]
    names: np.ndarray  # [N] utf-8 bytes
    shard_N: np.ndarray  # [N] int32, which of the shards
    offset_N: np.ndarray  # [N] int64, of the first byte in the shard's local file
    length_N: np.ndarray  # [N] int64, bytes; MISSING for an image that is not there
    channels: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    label_sets: LabelSets | None = None
    reasons: tuple[str, ...] = ()  # why images are not there; offset_N of such an image says which
    options: DecodingOptions = DecodingOptions()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def file_names(self) -> np.ndarray:
        return self.names

    def name(self, index: int) -> str:
        member = self.names[index].decode("utf-8", "surrogateescape")
        return f"{self.shards[self.shard_N[index]].shard}/{path_text(member)}"

    def encoded(self, index: int) -> io.BytesIO:
        length, offset = int(self.length_N[index]), int(self.offset_N[index])
        if length == MISSING:
            raise DataError(self.reasons[offset])
        packed = self.shards[self.shard_N[index]]
        with self._opened(packed) as file:
            if not packed.in_cache and os.fstat(file.fileno()).st_size != packed.shard.size:
                raise DataError("the shard has changed since the run began")
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise DataError("the shard is cut short")
        return NamedBytes(content, self.name(index))

    def take(self, indices: np.ndarray) -> PackedImages:
        return replace(
            self,
            names=self.names[indices],
            shard_N=self.shard_N[indices],
            offset_N=self.offset_N[indices],
            length_N=self.length_N[indices],
            labels=None if self.labels is None else self.labels[indices],
            label_sets=None if self.label_sets is None else self.label_sets.take(indices),
        )

    @property
    def fingerprint(self) -> str:
        names = "\n".join(packed.shard.name for packed in self.shards).encode("utf-8", "surrogateescape")
        return digest(
            names,
            b"\n".join(self.names.tolist()),
            self.shard_N.astype("<i4").tobytes(),
            self.length_N.astype("<i8").tobytes(),
            *label_bytes(self.labels, self.label_sets),
        )

    @property
    def content_state(self) -> list[object]:
        states = [(str(packed.shard), packed.shard.size, packed.shard.changed_ns) for packed in self.shards]
        return [self.fingerprint, states]

    def fetch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Makes what copies this node lacks, several at a time, instead of with the first batches."""
        used = [self.shards[number] for number in np.unique(self.shard_N).tolist()]
        fetch_all(
            [packed for packed in used if packed.in_cache], lambda packed: packed.local_file(), progress
        )

    @staticmethod
    def _opened(packed: PackedShard) -> io.FileIO:
        for _ in range(3):  # another process may remove an entry of the cache between the two lines
            path = packed.local_file()
            try:
                return io.FileIO(path)
            except FileNotFoundError:
                if not packed.in_cache:
                    raise
        raise DataError(f"{packed.shard} is removed from the cache again and again; raise data.cache_gb")


class NamedBytes(io.BytesIO):
    """Bytes of an image, by whose name Pillow calls them in its errors."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self._name = name

    def __repr__(self) -> str:
        return repr(self._name)


def fetch_all(
    shards: Sequence[S],
    work: Callable[[S], A],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[A]:
    """What `work` gives for each shard, several at a time. progress: called with the numbers done and of all.

    Raises DataError, the first one.
    """
    answers: list[A] = []
    with ThreadPoolExecutor(_FETCHERS) as pool:
        try:
            for answer in pool.map(work, shards):
                answers.append(answer)
                progress(len(answers), len(shards))
        except RunFailed as failure:
            raise DataError(str(failure)) from failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return answers
