"""A collection: a folder with the embeddings of many images as Parquet, which never are all in memory.

manifest.json      what the embeddings are of: weights, features, prototypes, image settings
parts/*.parquet    path, digest, bytes, embedding, prototype_0, distance_0, …; each is whole or not there
broken.csv         the images that could not be read, and why
embedder/          the encoder with its prototypes, so that other images can be compared
index/             what searching needs; made when it is first needed, and again when parts change
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.files import atomic_file, write_text
from pcl_ray.support.paths import path_text, storable

FORMAT = 1
MANIFEST_FILE, BROKEN_FILE, EMBEDDER_FOLDER, INDEX_FOLDER = "manifest.json", "broken.csv", "embedder", "index"
PARTS_FOLDER, _METADATA = "parts", b"pcl_ray"
_ROWS = 8192  # embeddings that are read at a time


@dataclass(frozen=True)
class Manifest:
    """What the embeddings of a collection are of."""

    source: str  # what was asked for: a run, a checkpoint, a weights file
    note: str  # what the weights were recognised as
    weights: str  # the embedder's digest
    features: str  # "backbone", or "head": unit vectors
    dim: int  # of an embedding
    num_clusters: tuple[int, ...]  # K of each clustering, none for weights without prototypes
    channels: int
    view: dict[str, Any]  # image_size, mean, std
    column: str | None = None  # of Parquet files with images
    version: int = FORMAT

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_text(folder / MANIFEST_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ConfigError where there is no collection, DataError for a damaged or later one."""
        try:
            content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            if content["version"] > FORMAT:
                raise DataError(
                    f"the collection in {folder} has format {content['version']}, this version reads up to"
                    f" {FORMAT}: upgrade pcl_ray"
                )
            content["num_clusters"] = tuple(content["num_clusters"])
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"there is no collection in {str(folder)!r}; make one by `pcl-ray embed RUN IMAGES --out"
                f" {folder}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{folder / MANIFEST_FILE} cannot be read: {error}") from None


def schema_of(manifest: Manifest) -> pa.Schema:
    """The columns of a part."""
    fields = [
        pa.field("path", pa.string()),
        pa.field("digest", pa.string()),  # of the file's bytes
        pa.field("bytes", pa.int64()),  # how many they are
        pa.field("embedding", pa.list_(pa.float32(), manifest.dim)),
    ]
    for m in range(len(manifest.num_clusters)):
        fields += [pa.field(f"prototype_{m}", pa.int64()), pa.field(f"distance_{m}", pa.float32())]
    return pa.schema(fields)


def part_path(folder: Path, number: int) -> Path:
    """The file of a part by its number."""
    return folder / PARTS_FOLDER / f"part-{number:06d}.parquet"


def write_part(path: Path, rows: pa.Table, broken: Sequence[tuple[str, str]]) -> None:
    """Writes a part whole or not at all, with the names of its broken images and the reasons. Raises
    OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"broken": list(broken)}).encode()
    rows = rows.replace_schema_metadata({_METADATA: content})
    # by the number of its process a partial file, so that a worker taken for dead cannot write into another's
    with atomic_file(path, sync=True) as partial:
        pq.write_table(rows, partial)


@dataclass(frozen=True)
class CollectionPart:
    """One file of a collection."""

    path: Path
    rows: int
    state: tuple[int, int]  # size and time of its file
    broken: tuple[tuple[str, str], ...]  # name and reason


class Collection:
    """A collection as it is on the disk when this is made. Images are known by their number, in the order of
    the parts.
    """

    def __init__(self, folder: Path):
        """Raises as `Manifest.read`, and DataError for a damaged part."""
        self.folder, self.manifest = folder, Manifest.read(folder)
        self.parts = [_part(path) for path in sorted((folder / PARTS_FOLDER).glob("part-*.parquet"))]

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def num_clusterings(self) -> int:
        return len(self.manifest.num_clusters)

    @property
    def next_number(self) -> int:
        """The number of the next part."""
        return max((int(part.path.stem.removeprefix("part-")) for part in self.parts), default=-1) + 1

    @property
    def state(self) -> str:
        """Another one whenever the parts are others."""
        return json.dumps([[part.path.name, part.rows, *part.state] for part in self.parts])

    @cached_property
    def paths(self) -> pa.ChunkedArray:
        """[n] the names of all images, as `path_text` writes them."""
        return self._column("path", pa.string())

    def path(self, image: int) -> str:
        return self.paths[int(image)].as_py()

    def numbers_of(self, names: Sequence[str]) -> dict[str, int]:
        """The numbers of the images that have these names, of those that are in the collection.

        A name is a path, or what `path_text` makes of one.
        """
        searched = {*names, *map(path_text, names)}
        numbers = {text: i for i, text in enumerate(self.paths.to_pylist()) if text in searched}
        options = {name: [text for text in (path_text(name), name) if text in numbers] for name in names}
        return {name: numbers[texts[0]] for name, texts in options.items() if texts}

    def digests(self) -> pa.ChunkedArray:
        """[n] the digest of every image's file: the same for the same bytes."""
        return self._column("digest", pa.string())

    def content_numbers(self) -> np.ndarray:
        """[n] int64, the same number for images whose files are the same bytes."""
        return np.unique(self.digests().to_pylist(), return_inverse=True)[1]

    def bytes(self) -> np.ndarray:
        """[n] int64, the size of every image's file."""
        return self._column("bytes", pa.int64()).to_numpy()

    def prototypes(self, m: int) -> np.ndarray:
        """[n] int64, the nearest prototype of clustering m."""
        return self._column(f"prototype_{m}", pa.int64()).to_numpy()

    def distances(self, m: int) -> np.ndarray:
        """[n] float32, how far it is: Euclidean, 0 … 2."""
        return self._column(f"distance_{m}", pa.float32()).to_numpy()

    def embeddings(self) -> Iterator[tuple[int, np.ndarray]]:
        """All embeddings in blocks: the number of the first image, and [b, D] float32."""
        start = 0
        for part in self.parts:
            for block in _blocks(part.path, self.manifest.dim):
                yield start, block
                start += len(block)

    def broken(self) -> dict[str, str]:
        """The images that no part has, and the reasons."""
        reasons = {name: reason for part in self.parts for name, reason in part.broken}
        if reasons:
            for chunk in self.paths.chunks:
                for name in chunk.to_pylist():
                    reasons.pop(name, None)
        return reasons

    def write_broken(self) -> int:
        """Writes broken.csv, or removes it without broken images; gives back how many. Raises OSError."""
        broken, path = self.broken(), self.folder / BROKEN_FILE
        if not broken:
            path.unlink(missing_ok=True)
            return 0
        with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            rows = ((storable(path), storable(reason)) for path, reason in broken.items())
            csv.writer(file).writerows([("path", "reason"), *rows])
        return len(broken)

    def _column(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for part in self.parts:
            with _readable(part.path):
                column = pq.read_table(part.path, columns=[name]).column(0).cast(kind)
                column.validate(full=True)  # names that are no text, too
                chunks += column.chunks
        return pa.chunked_array(chunks, type=kind)


def _blocks(path: Path, dim: int) -> Iterator[np.ndarray]:
    """The embeddings of a part, [b, dim] float32 each. Raises DataError where it is damaged."""
    with _readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=["embedding"]):
            column = batch.column(0)
            yield column.flatten().to_numpy().reshape(len(column), dim)


def _part(path: Path) -> CollectionPart:
    with _readable(path):
        status, metadata = path.stat(), pq.read_metadata(path)
        content = json.loads((metadata.metadata or {})[_METADATA])
        broken = tuple((str(name), str(reason)) for name, reason in content["broken"])
        return CollectionPart(path, metadata.num_rows, (status.st_size, status.st_mtime_ns), broken)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Makes a DataError of what reading a damaged part raises."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the part {path} is damaged ({reason}); remove it, and `pcl-ray embed` makes its images again"
        ) from None
