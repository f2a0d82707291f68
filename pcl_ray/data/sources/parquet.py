"""Parquet shards, as Hugging Face's data sets are stored: a column with the bytes of images, alone or in a
struct {bytes, path}, or with paths of files; beside it a column of labels.

Their pages are compressed, so that no byte range is an image: the images are packed once into one file after
the other, row group by row group, and read from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pcl_ray.data.sources.shard_index import IndexBuilder, ShardIndex
from pcl_ray.data.sources.shards import DamagedShard, Shard
from pcl_ray.data.sources.webdataset import NO_LABELS, label_list
from pcl_ray.errors import DataError

SHARD_SUFFIXES = (".parquet", ".pq")
_ROWS = 64  # decoded at a time
_FOOTER_BYTES = 64 << 20  # at the most
_IMAGE_NAMES = ("image", "img", "picture", "image_bytes", "bytes", "jpg", "png", "content")
_PATH_NAMES = ("path", "image_path", "file_name", "file", "filename", "filepath", "image", "img")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "fine_label")

ImageKind = Literal["struct", "bytes", "paths"]
# The content of the files with these paths, as a Parquet file has them; None for one that is not there.
ReadFiles = Callable[[Sequence[str]], Sequence[bytes | None]]


@dataclass(frozen=True)
class Columns:
    """What is read of the rows of a Parquet file."""

    image: str
    kind: ImageKind
    label: str | None = None
    class_names: tuple[str, ...] = ()  # of the ClassLabel in Hugging Face's metadata


def find_columns(schema: Any, image: str | None, label: str | None, shard: str) -> Columns:
    """The columns of a schema (pyarrow's) that `data.image_column` and `data.label_column` name, or else the
    usual ones. Raises DataError.
    """
    features = _features(schema)
    name, kind = _image_column(schema, features, image, shard)
    if label == NO_LABELS and NO_LABELS not in schema.names:
        return Columns(name, kind)
    if label is None:
        label = _usual_label(schema, features)
    elif label not in schema.names:
        raise DataError(
            f"data.label_column = {label!r}: {shard} has no such column; it has {', '.join(schema.names)},"
            " and none stands for no labels"
        )
    class_names = () if label is None else _class_names(features.get(label))
    return Columns(name, kind, label, class_names)


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says of it."""

    rows: int
    image_bytes: int  # of the images, not compressed; no fewer than they have
    columns: Columns


def read_footer(shard: Shard, image: str | None, label: str | None) -> Footer:
    """Reads the footer, not the rows. Raises DataError, also where the file is damaged; RunFailed."""
    from pyarrow import ArrowException, parquet

    def read(file: Any) -> Footer | DataError:
        try:
            opened = parquet.ParquetFile(file)
            columns = find_columns(opened.schema_arrow, image, label, str(shard))
            metadata = opened.metadata
        except (ArrowException, OSError, ValueError) as error:
            return error if isinstance(error, DataError) else DamagedShard(_unreadable(shard, error))
        # of all columns: Arrow ends the process where what it knows of a single one is damaged
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        return Footer(max(metadata.num_rows, 0), sum(max(size, 0) for size in sizes), columns)

    if shard.is_local:
        with open(shard.path, "rb") as file:
            answer = read(file)
    else:  # what is wrong with the file is an answer: at an error the storage would try again
        answer = shard.storage().examine(shard.key, read, _FOOTER_BYTES)
    if isinstance(answer, DataError):
        raise answer
    return answer


def pack(path: Path, columns: Columns, packed: IO[bytes], read_files: ReadFiles | None) -> ShardIndex:
    """Writes the images of a Parquet file one after the other, and says where they are.

    read_files: reads the files of rows that have a path and no bytes; with None a path is a name, and of a
    column of paths nothing is written. A row without an image, and rows of a group that is damaged, get a
    reason instead. Raises OSError, and what `read_files` raises.
    """
    from pyarrow import ArrowException, parquet

    builder = IndexBuilder()
    wanted = [columns.image] + ([columns.label] if columns.label is not None else [])
    # an opened file: Arrow takes no names that are no UTF-8
    with path.open("rb") as file, parquet.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            end = len(builder) + opened.metadata.row_group(group).num_rows
            batches = opened.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (ArrowException, OSError) as error:  # of decoding, whatever its kind
                    reason = f"its row group {group} is damaged ({_first_line(error)})"
                    for row in range(len(builder), end):
                        builder.add(f"row {row}", 0, 0, [], reason)
                    break
                if batch is None:
                    break
                labels = (
                    [[]] * len(batch) if columns.label is None else batch.column(columns.label).to_pylist()
                )
                images = _images_of(batch.column(columns.image).to_pylist(), columns.kind, read_files)
                for (content, image_path), label in zip(images, labels, strict=True):
                    named = _named_labels(label_list(label), columns.class_names)
                    if columns.kind == "paths" and read_files is None and image_path:
                        builder.add(image_path, 0, 0, named)
                    else:
                        _add_image(builder, content, image_path, named, columns.kind, packed)
    return builder.index(columns.class_names)


def _images_of(
    values: Sequence[Any], kind: ImageKind, read_files: ReadFiles | None
) -> list[tuple[bytes | None, str | None]]:
    """The bytes and the path of each row, as far as it has them."""
    if kind == "bytes":
        return [(value, None) for value in values]
    if kind == "paths":
        rows: list[tuple[bytes | None, str | None]] = [(None, value or None) for value in values]
    else:
        rows = [((value or {}).get("bytes"), (value or {}).get("path")) for value in values]
    missing = [path for content, path in rows if content is None and path]
    if not missing or read_files is None:
        return rows
    contents = dict(zip(missing, read_files(missing), strict=True))
    return [(contents.get(path) if content is None and path else content, path) for content, path in rows]


def _add_image(
    builder: IndexBuilder,
    content: bytes | None,
    path: str | None,
    labels: list[object],
    kind: ImageKind,
    packed: IO[bytes],
) -> None:
    row = f"row {len(builder)}"
    if content is None:
        reason = f"its file {path} is not there" if path else "the row has no image"
        builder.add(path or row, 0, 0, labels, reason)
        return
    name = f"{row}, {path}" if path and kind != "paths" else path or row
    builder.add(name, packed.tell(), len(content), labels)
    packed.write(content)


def _named_labels(labels: list[object], class_names: tuple[str, ...]) -> list[object]:
    """The labels by their names, where the file says what numbers mean; other numbers are no labels."""
    if not class_names:
        return labels
    names = [
        class_names[label] if isinstance(label, int) and label < len(class_names) else label
        for label in labels
    ]
    return [name for name in names if name in class_names]


def _image_column(
    schema: Any, features: dict[str, Any], wanted: str | None, shard: str
) -> tuple[str, ImageKind]:
    kinds = {name: kind for name in schema.names if (kind := _kind(schema.field(name).type)) is not None}
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in kinds:
            raise DataError(
                f"data.image_column = {wanted!r}: {shard} has no column of bytes, of a struct with bytes or"
                f" of paths with this name; it has {columns}"
            )
        return wanted, kinds[wanted]
    declared = [name for name in kinds if _type_of(features.get(name)) == "Image"]
    holding = [name for name, kind in kinds.items() if kind != "paths"]
    for group, usual in ((declared, _IMAGE_NAMES), (holding, _IMAGE_NAMES)):
        named = [name for name in usual if name in group] or group
        if named and (len(group) == 1 or named[0] in usual):
            return named[0], kinds[named[0]]
        if group:
            raise DataError(
                f"{shard} has the columns {', '.join(group)}, which may all be images; data.image_column says"
                " which to take"
            )
    if name := next((name for name in _PATH_NAMES if name in kinds), None):
        return name, kinds[name]
    raise DataError(f"{shard} has no column of images or of their paths, but {columns}")


def _kind(column: Any) -> ImageKind | None:
    """What a column of this type may hold."""
    from pyarrow import types

    if types.is_dictionary(column):
        column = column.value_type
    if types.is_struct(column):
        names = [column.field(i).name for i in range(column.num_fields)]
        return "struct" if "bytes" in names and _kind(column.field("bytes").type) == "bytes" else None
    if types.is_binary(column) or types.is_large_binary(column) or types.is_fixed_size_binary(column):
        return "bytes"
    return "paths" if types.is_string(column) or types.is_large_string(column) else None


def _usual_label(schema: Any, features: dict[str, Any]) -> str | None:
    """The column of labels where none is named: one of classes by Hugging Face's metadata, or by its name."""
    declared = [name for name in schema.names if _class_names(features.get(name))]
    named = [name for name in _LABEL_NAMES if name in (declared or schema.names)]
    return next(iter(named or declared), None)


def _features(schema: Any) -> dict[str, Any]:
    """Hugging Face's description of the columns, in the schema's metadata; {} where there is none."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}


def _type_of(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, alone or in a list; () of any other feature."""
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return ()
    if _type_of(feature) == "ClassLabel" and isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return _class_names(feature.get("feature"))


def _unreadable(shard: Shard, error: BaseException) -> str:
    return f"{shard} cannot be read as Parquet: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
