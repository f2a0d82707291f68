"""Which images a collection is made of, and their bytes: folders, files, lists of paths, Parquet.

A name says where an image is: the absolute path of a file, or `/data/images.parquet#17` for row 17 of a table
with encoded images, as Hugging Face's data sets are stored.
"""

from __future__ import annotations

import csv
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pcl_ray.data import folders
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.paths import lines_of, path_from_text, path_text
from pcl_ray.support.text import suggestion_sentence

_ROW = re.compile(r"(.+\.parquet)#(\d+)", re.DOTALL | re.IGNORECASE)
_LISTS = (".txt", ".lst", ".list", ".csv", ".tsv")
_PATHS = ("path", "file", "file_name", "filename", "image_path", "filepath")
_IMAGES = ("image", "img", "jpg", "png", "bytes", "image_bytes")


def names_of(words: Sequence[str], column: str | None = None) -> list[str]:
    """The names of all images in folders, files, lists and Parquet files, each once, in this order.

    column: that of Parquet files with the images or their paths; None: the one that looks like it. Raises
    ConfigError for what does not exist or is none of these, DataError for a folder without images or a file
    that cannot be read.
    """
    return list(dict.fromkeys(name for word in words for name in _names(word, column)))


def _names(word: str, column: str | None) -> Iterable[str]:
    path = Path(os.path.abspath(os.path.expanduser(word)))
    if path.is_dir():
        return _in_folder(path, column)
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no {word!r}.{suggestion_sentence(path.name, near)}")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _in_table(path, column)
    if suffix in _LISTS:
        return _in_list(path)
    if suffix in folders.SUFFIXES:
        return [str(path)]
    raise ConfigError(
        f"{word!r} is neither a folder, an image, a list of paths ({' '.join(_LISTS)}) nor a .parquet file"
    )


def _in_folder(folder: Path, column: str | None) -> Iterator[str]:
    tables = sorted(folder.rglob("*.parquet"))
    try:
        images = folders.find_images(folder, 3)
    except DataError:
        if not tables:
            raise
        for table in tables:
            yield from _in_table(table, column)
        return
    for index in range(len(images)):
        yield str(images.path(index))


def _in_list(file: Path) -> Iterator[str]:
    """The paths of a list, one a line, or of the column `path` of a table; relative ones are below the list's
    folder, or else below the working directory.
    """
    try:
        words = lines_of(file.read_bytes())
        if file.suffix.lower() in (".csv", ".tsv"):
            # with its line break, which a quoted cell may hold
            lines = (f"{word}\n" for word in words)
            rows = csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            header = next(rows, [])
            names = [title.strip().lower() for title in header]
            number = next((names.index(name) for name in _PATHS if name in names), None)
            words = [] if number is not None else header[:1]
            words += [row[number or 0] for row in rows if len(row) > (number or 0)]
        else:
            words = [word for word in words if not word.startswith("#")]
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"the list {path_text(file)} cannot be read: {error}") from None
    words = [word for word in words if word.strip()]
    if not words:
        raise DataError(f"the list {path_text(file)} has no paths")
    yield from (_resolved(word, file.parent) for word in words)


def _resolved(word: str, folder: Path) -> str:
    options = [os.path.expanduser(name) for name in dict.fromkeys((word, path_from_text(word)))]
    below = [os.path.join(folder, option) for option in options]
    existing = (path for path in (*below, *options) if os.path.lexists(path))
    return os.path.abspath(next(existing, options[0]))


def _in_table(file: Path, column: str | None) -> Iterator[str]:
    try:
        with file.open("rb") as opened:  # Arrow takes no names that are no UTF-8
            table = pq.ParquetFile(opened)
            name = column_of(table.schema_arrow, file, column)
            if not _is_text(table.schema_arrow.field(name).type):
                yield from (f"{file}#{row}" for row in range(table.metadata.num_rows))
                return
            for batch in table.iter_batches(columns=[name]):
                yield from (_resolved(path, file.parent) for path in batch.column(0).to_pylist() if path)
    except (ConfigError, DataError):
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # a damaged footer is an OSError, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path_text(file)} cannot be read as Parquet: {reason}") from None


def column_of(schema: pa.Schema, file: str | Path, column: str | None) -> str:
    """The column with the images or their paths. Raises ConfigError where it is missing or not to be told."""
    if column is not None:
        if column not in schema.names:
            raise ConfigError(f"{file} has no column {column!r}; it has: {', '.join(schema.names)}")
        return column
    fitting = [name for name in schema.names if _has_images(schema.field(name).type)]
    for options, names in ((fitting, _IMAGES), (_texts(schema), _PATHS)):
        named = next((name for name in names if name in options), None)
        if named or len(options) == 1:
            return named or options[0]
    raise ConfigError(
        f"which column of {file} has the images or their paths? Name it by --column; there are:"
        f" {', '.join(schema.names)}"
    )


def _texts(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if _is_text(schema.field(name).type)]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_images(kind: pa.DataType) -> bool:
    """Whether it is bytes, or a record {bytes, path} as Hugging Face writes it."""
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return _is_bytes(kind)


class ImageReader:
    """Reads the bytes of images by their names, from several threads. Of a Parquet file the row group that
    was read last stays in memory: rows are to be asked for in their order.
    """

    def __init__(self, column: str | None = None):
        self._column, self._lock = column, threading.Lock()
        self._group: tuple[str, int, int, pa.ChunkedArray] | None = None  # file, first row, end, its images

    def read(self, name: str) -> bytes:
        """The encoded image. Raises OSError and DataError."""
        row = _ROW.fullmatch(name)
        if row is None:
            return Path(name).read_bytes()
        with self._lock:
            return self._in_table(row[1], int(row[2]))

    def _in_table(self, file: str, row: int) -> bytes:
        if self._group is None or self._group[0] != file or not self._group[1] <= row < self._group[2]:
            self._group = None  # before the next one is read
            self._group = self._row_group(file, row)
        _, first, _, images = self._group
        value = images[row - first].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or self._beside(file, value.get("path"))
        if not isinstance(value, bytes):
            raise DataError("the table has no image in this row")
        return value

    def _row_group(self, file: str, row: int) -> tuple[str, int, int, pa.ChunkedArray]:
        try:
            with open(file, "rb") as opened:
                table, first = pq.ParquetFile(opened), 0
                for group in range(table.num_row_groups):
                    end = first + table.metadata.row_group(group).num_rows
                    if row < end:
                        column = column_of(table.schema_arrow, file, self._column)
                        return file, first, end, table.read_row_group(group, columns=[column]).column(0)
                    first = end
        except pa.ArrowException as error:
            raise DataError(str(error).splitlines()[0]) from None
        raise DataError(f"the table has {first:,} rows")

    @staticmethod
    def _beside(file: str, path: str | None) -> bytes | None:
        return Path(_resolved(path, Path(file).parent)).read_bytes() if path else None
