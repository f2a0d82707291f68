"""The images of shards as two parts: counted without reading them, or with an index of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from pcl_ray.config import DataConfig
from pcl_ray.data.images import EncodedImages, FileImages
from pcl_ray.data.pictures.looks import BadImage
from pcl_ray.data.sources import parquet, webdataset
from pcl_ray.data.sources.cache import ShardCache
from pcl_ray.data.sources.exclusion import matcher
from pcl_ray.data.sources.packed import PackedImages, PackedShard, fetch_all
from pcl_ray.data.sources.parts import EncodedParts, class_order, numbered
from pcl_ray.data.sources.shard_index import ShardIndex
from pcl_ray.data.sources.shards import DamagedShard, Shard, find_shards, split_parts
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.plan import SHARD_SOURCES
from pcl_ray.support.paths import path_from_text
from pcl_ray.support.text import count

_CLASS_FILE = "classnames.txt"  # beside tar shards whose labels are numbers: a name a line
_NAMES_SHOWN = 3
_FILE_BYTES = 64 << 10  # what a file of a storage has about, for the room that a copy of all needs
_NAMES_SEEN = 1000  # files of sub-folders that are looked at

Progress = Callable[[int, int], None]


def source_of(path: str) -> Literal["parquet", "webdataset"] | None:
    """The source that a path means by what it ends with, or by what lies in the folder; None: no shards."""
    folder = Path(path).expanduser()
    names = [path.partition("?")[0]]
    if folder.is_dir():
        entries = [*folder.glob("*.*"), *islice(folder.glob("*/*.*"), _NAMES_SEEN)]
        names = [entry.name for entry in entries if not _is_note(entry.name)]
    suffixes = {"parquet": parquet.SHARD_SUFFIXES, "webdataset": webdataset.SHARD_SUFFIXES}
    for source in SHARD_SOURCES:
        if names and all(name.lower().endswith(suffixes[source]) for name in names):
            return source
    return None


def _is_note(name: str) -> bool:
    """Whether a file beside shards only says something about them."""
    return name.lower().endswith((".txt", ".json", ".md", ".yaml")) or name.startswith(".")


def counts(config: DataConfig) -> tuple[int, int]:
    """The numbers of images of both parts: of Parquet files from their footers, of tar files from the headers
    of their members, which are read once. Raises DataError.
    """
    train, holdout, _ = _shard_sides(config)
    if config.source == "webdataset":
        return parts(config).counts
    footers = fetch_all([*train, *holdout], partial(_footer, config))
    readable = [footer for footer in footers if footer is not None]
    if readable and readable[0].columns.kind == "paths":  # some of them may be left out
        return parts(config).counts
    _check_room(config, sum(footer.image_bytes for footer in readable))
    rows = [0 if footer is None else footer.rows for footer in footers]
    sides = sum(rows[: len(train)]), sum(rows[len(train) :])
    _check_not_empty(config, *sides)
    return sides


def parts(config: DataConfig, progress: Progress = lambda done, total: None) -> EncodedParts:
    """Both parts with their labels; Parquet files are packed and objects fetched for it. Raises DataError.

    progress: called with the numbers of shards done and of all.
    """
    train, holdout, others = _shard_sides(config)
    indexed = fetch_all([*train, *holdout], partial(_indexed, config), progress)
    damaged = tuple(BadImage(str(shard), damage) for shard, _, _, damage in indexed if damage)
    if damaged and config.on_bad_image == "fail":
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in damaged)
        raise DataError(
            f"{count(len(damaged), 'shard')} of {len(indexed)} cannot be read; mend or remove them, or set"
            f" data.on_bad_image=skip:\n{listed}"
        )
    sides = [
        [(packed, index) for _, packed, index, _ in side if packed is not None and index is not None]
        for side in (indexed[: len(train)], indexed[len(train) :])
    ]
    _check_not_empty(config, *(sum(len(index) for _, index in side) for side in sides))
    copies = [packed for side in sides for packed, _ in side if packed.in_cache and not packed.names_files]
    _check_room(config, sum(packed.size for packed in copies))
    labels = _class_names([index for _, index in sides[0]])
    names = _with_names(labels, train) if config.source == "webdataset" else labels
    first, *held = [
        _images(side, config, labels, names) for side in sides if any(len(index) for _, index in side)
    ]
    notes = []
    if others:
        shown = ", ".join(shard.name for shard in others[:_NAMES_SHOWN])
        notes.append(f"data.path: {count(len(others), 'shard')} of other splits not taken, e.g. {shown}")
    return EncodedParts(first, held[0] if held else None, damaged, tuple(notes))


def _shard_sides(config: DataConfig) -> tuple[list[Shard], list[Shard], list[Shard]]:
    if not config.path:
        raise DataError(
            f"data.source = {config.source} needs data.path: a shard, a folder or pattern of shards"
        )
    suffixes = parquet.SHARD_SUFFIXES if config.source == "parquet" else webdataset.SHARD_SUFFIXES
    try:
        return split_parts(find_shards(config.path, suffixes, config.exclude))
    except OSError as error:
        raise DataError(
            f"{error.filename or config.path} cannot be read: {error.strerror or error}"
        ) from error


def _footer(config: DataConfig, shard: Shard) -> parquet.Footer | None:
    """None for a damaged file that is skipped."""
    try:
        return parquet.read_footer(shard, config.image_column, config.label_column)
    except DamagedShard:
        if config.on_bad_image == "skip":
            return None
        raise


def _indexed(config: DataConfig, shard: Shard) -> tuple[Shard, PackedShard | None, ShardIndex | None, str]:
    """A shard with its index, and what is wrong with it; without an index where nothing can be read."""
    try:
        if config.source == "parquet":
            footer = parquet.read_footer(shard, config.image_column, config.label_column)
            size = footer.image_bytes
            if footer.columns.kind == "paths" and not shard.is_local:
                size += footer.rows * _FILE_BYTES
            packed = PackedShard(shard, "parquet", config.cache_gb, size, footer.columns)
            index = packed.packed_index()
        else:
            compressed = not shard.name.lower().endswith(".tar")
            layout = "compressed tar" if compressed else "tar"
            packed = PackedShard(shard, layout, config.cache_gb, shard.size)
            read = partial(
                webdataset.index_tar,
                image=config.image_column,
                label=config.label_column,
                exclude=config.exclude,
                shown=str(shard),
            )
            setting = repr((config.image_column, config.label_column, config.exclude))
            index = packed.tar_index(setting, read)
    except DamagedShard as error:
        return shard, None, None, str(error).removeprefix(f"{shard} ")
    if packed.layout != "tar":  # now it is known
        packed = replace(packed, size=int((index.offsets + np.maximum(index.lengths, 0)).max(initial=0)))
    return shard, packed, index, index.damage


def _images(
    side: Sequence[tuple[PackedShard, ShardIndex]],
    config: DataConfig,
    classes: tuple[str, ...],
    class_names: tuple[str, ...],
) -> EncodedImages:
    """The images of shards one after the other. classes: as labels are written there, with their names."""
    lists = [labels for _, index in side for labels in _label_lists(index)]
    labels, label_sets = numbered(lists, classes) if classes else (None, None)
    if side[0][0].names_files:
        images = _files(side, config)
        if classes:
            images = replace(images, labels=labels, class_names=class_names, label_sets=label_sets)
        return _not_excluded(images, images.files, config)
    offsets, reasons = [], []
    for _, index in side:
        own = index.offsets.copy()
        for row, reason in index.reasons.items():
            own[row] = len(reasons)
            reasons.append(reason)
        offsets.append(own)
    packed_images = PackedImages(
        tuple(packed for packed, _ in side),
        np.concatenate([index.names for _, index in side]),
        np.repeat(np.arange(len(side), dtype=np.int32), [len(index) for _, index in side]),
        np.concatenate(offsets),
        np.concatenate([index.lengths for _, index in side]),
        config.channels,
        labels,
        class_names,
        label_sets,
        tuple(reasons),
    )
    columns = side[0][0].columns
    if columns is None or columns.kind != "paths":
        return packed_images
    return _not_excluded(packed_images, packed_images.names, config)


def _not_excluded(images: EncodedImages, paths: np.ndarray, config: DataConfig) -> EncodedImages:
    """The images whose paths (utf-8 bytes) `data.exclude` leaves."""
    excluded = matcher(config.exclude)
    names = [path.decode("utf-8", "surrogateescape") for path in paths.tolist()]
    left = [i for i, name in enumerate(names) if not excluded(name)]
    return images if len(left) == len(names) else images.take(np.array(left, dtype=np.int64))


def _files(side: Sequence[tuple[PackedShard, ShardIndex]], config: DataConfig) -> FileImages:
    """The files whose paths are in Parquet files; relative ones are below the folder of the file that names
    them, or below `data.path`.
    """
    given = os.path.abspath(os.path.expanduser(config.path or ""))
    first = side[0][0].shard
    root = first.path.removesuffix(f"/{first.name}") if first.is_local else ""
    files: list[str] = []
    for packed, index in side:
        folders = [os.path.dirname(packed.shard.path), *([given] if os.path.isdir(given) else [])]
        paths = [os.fsdecode(name) for name in index.names.tolist()]
        if paths and not os.path.exists(os.path.join(folders[0], paths[0])):
            folders.reverse()
        full = [os.path.normpath(os.path.join(folders[0], path)) for path in paths]
        files += [path.removeprefix(f"{root}/") for path in full]
    encoded = np.array([os.fsencode(_existing(root, file)) for file in files])
    return FileImages(root, encoded, config.channels)


def _existing(root: str, file: str) -> str:
    """The file, or the one that is meant where the table writes names as `path_text` does."""
    if "\\" not in file or os.path.exists(os.path.join(root, file)):
        return file
    return path_from_text(file)


def _label_lists(index: ShardIndex) -> list[list[str]]:
    """The labels of each image as texts."""
    texts = [index.label_texts[number] for number in index.label_numbers.tolist()]
    starts = index.label_starts.tolist()
    return [texts[start:end] for start, end in zip(starts[:-1], starts[1:], strict=True)]


def _class_names(indices: Sequence[ShardIndex]) -> tuple[str, ...]:
    """The classes of the training part: as the shards themselves name them, else all labels in order."""
    declared = list(dict.fromkeys(name for index in indices for name in index.class_names))
    labels = {text for index in indices for text in index.label_texts}
    return (*declared, *class_order(labels - set(declared)))


def _with_names(labels: Sequence[str], shards: Sequence[Shard]) -> tuple[str, ...]:
    """The names of classes that are numbers, from a file beside tar shards; else the numbers."""
    if not labels or not all(label.isdecimal() for label in labels):
        return tuple(labels)
    first = shards[0]
    try:
        if first.is_local:
            content = Path(first.path.removesuffix(first.name), _CLASS_FILE).read_bytes()
        else:
            content = first.storage().read(first.key.removesuffix(first.name) + _CLASS_FILE) or b""
    except (OSError, RunFailed):
        return tuple(labels)
    names = [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if len(set(names)) != len(names) or int(labels[-1]) >= len(names):
        return tuple(labels)
    return tuple(names[int(label)] for label in labels)


def _check_room(config: DataConfig, size: int) -> None:
    ShardCache(config.cache_gb).check_fits(size, f"data.source = {config.source}")


def _check_not_empty(config: DataConfig, train: int, holdout: int) -> None:
    if not train:
        hint = "" if config.image_column is None else f" with data.image_column = {config.image_column}"
        raise DataError(f"no images in the shards of data.path = {config.path!r}{hint}")
