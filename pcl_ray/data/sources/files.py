"""Images that are files: folders, lists of files, and their labels from folders or from a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pcl_ray.config import DataConfig
from pcl_ray.data import folders
from pcl_ray.data.images import FileImages
from pcl_ray.data.pictures.looks import BadImage
from pcl_ray.data.sources import arrays, label_table
from pcl_ray.data.sources.exclusion import matcher
from pcl_ray.data.sources.label_table import full_path
from pcl_ray.data.sources.parts import EncodedParts, class_order, numbered
from pcl_ray.errors import DataError
from pcl_ray.support.paths import path_from_text, path_text
from pcl_ray.support.text import count


def parts(config: DataConfig) -> EncodedParts:
    """Both parts of a folder, of ImageNet or of a list, with their labels. Raises DataError."""
    images = _listed(config) if config.list else _in_folders(config)
    return images if config.labels is None else _with_table(images, config, config.labels)


def _in_folders(config: DataConfig) -> EncodedParts:
    root = arrays.folder(config)
    train_folder, holdout_folder = folders.find_parts(root)
    if config.source == "imagenet" and holdout_folder is None:
        raise DataError(
            f"data.source = imagenet needs the folders train and val in {root}, each with one folder a class"
        )
    excluded = matcher(config.exclude)

    def find(folder: Path, class_names: tuple[str, ...] | None = None) -> FileImages:
        starts = {"", "" if folder == root else f"{folder.name}/"}
        return folders.find_images(
            folder, config.channels, class_names, lambda file: any(excluded(start + file) for start in starts)
        )

    train = find(train_folder)
    return EncodedParts(train, None if holdout_folder is None else find(holdout_folder, train.class_names))


def _listed(config: DataConfig) -> EncodedParts:
    """The files of `data.list` in its order, each once, as one part."""
    assert config.list is not None
    file = _table_file("data.list", config.list)
    root = arrays.folder(config) if config.path else file.parent
    bases = (root, file.parent)

    def is_image(text: str) -> bool:
        return os.path.exists(full_path(text, bases))

    rows = label_table.read_list("data.list", file, is_image)
    if addresses := [row.path for row in rows if "://" in row.path]:
        raise DataError(
            f"data.list = {config.list!r} has addresses ({addresses[0]}); it takes files of this machine."
            " Images in object storage are read from shards: data.source = parquet or webdataset"
        )
    labels = label_table.merged(rows, lambda path: _below(full_path(path, bases), root))
    excluded = matcher(config.exclude)
    files = [file for file in labels if not excluded(file)]
    if not files:
        raise DataError(f"data.exclude leaves none of the {len(labels)} images of {config.list!r}")
    missing = [file for file in files if not os.path.exists(os.path.join(root, file))]
    if missing and (config.on_bad_image == "fail" or len(missing) == len(files)):
        raise DataError(
            f"data.list = {config.list!r}: {len(missing)} of {count(len(files), 'file')} are not there, e.g."
            f" {_examples(missing)} (looked for below {root})"
        )
    bad = tuple(BadImage(path_text(os.path.join(root, file)), "it is not there") for file in missing)
    gone = set(missing)
    files = [file for file in files if file not in gone]
    images = folders.images_of(root, files, config.channels)
    lists = [labels[file] for file in files]
    notes: list[str] = []
    if len(rows) > len(labels):
        notes.append(f"data.list: {count(len(rows) - len(labels), 'line')} name an image again")
    if any(lists):
        images = _labelled(images, lists, class_order(label for own in lists for label in own))
    return EncodedParts(images, damaged=bad, notes=tuple(notes))


def _with_table(images: EncodedParts, config: DataConfig, table: str) -> EncodedParts:
    """Both parts with the labels of a CSV file, instead of their folders'. Raises DataError."""
    file = _table_file("data.labels", table)
    sides = [part for part in (images.train, images.holdout) if isinstance(part, FileImages)]
    paths = [[os.path.normpath(part.path(i)) for i in range(len(part))] for part in sides]
    resolve = _resolver([path for side in paths for path in side], config, sides, file.parent)
    rows = label_table.read_labels("data.labels", file, lambda text: resolve(text) is not None)
    labels: dict[str, list[str]] = {}
    unknown: list[str] = []
    for row in rows:
        if (path := resolve(row.path)) is not None:
            own = labels.setdefault(path, [])
            own += [label for label in row.labels if label not in own]
        elif not os.path.exists(
            full_path(row.path, _bases(config, sides, file.parent))
        ):  # else it is left out
            unknown.append(row.path)
    if not labels or (unknown and config.on_bad_image == "fail"):
        raise DataError(
            f"data.labels = {table!r}: {len(unknown)} of {count(len(rows), 'row')} name no image, e.g."
            f" {_examples(unknown)}; an image is e.g. {_below(paths[0][0], Path(sides[0].root))}."
            + (" data.on_bad_image=skip goes on without them" if labels else "")
        )
    notes = list(images.notes)
    if unknown:
        notes.append(f"data.labels: {count(len(unknown), 'row')} name no image, e.g. {_examples(unknown)}")
    without = [path for side in paths for path in side if not labels.get(path)]
    if without:
        shown = [_below(path, Path(sides[0].root)) for path in without]
        verb = "has" if len(without) == 1 else "have"
        notes.append(f"data.labels: {count(len(without), 'image')} {verb} no label, e.g. {_examples(shown)}")
    lists = [[labels.get(path, []) for path in side] for side in paths]
    names = class_order(label for own in lists[0] for label in own)
    if not names:
        raise DataError(
            f"data.labels = {table!r} has no label for any of the {len(paths[0])} training images"
        )
    labelled = [_labelled(part, own, names) for part, own in zip(sides, lists, strict=True)]
    return EncodedParts(labelled[0], labelled[1] if len(labelled) > 1 else None, images.damaged, tuple(notes))


def _resolver(
    paths: Sequence[str], config: DataConfig, sides: Sequence[FileImages], beside: Path
) -> Callable[[str], str | None]:
    """Finds the image that a row of a table means, None where there is none: by its path relative to the
    images' folder or to the table, with or without its suffix.
    """
    every = set(paths)
    stems: dict[str, str | None] = {}
    for path in paths:  # where two images differ in nothing but the suffix, it has to be written
        stem = str(PurePosixPath(path).with_suffix(""))
        stems[stem] = None if stem in stems else path
    bases = _bases(config, sides, beside)

    def resolve(text: str) -> str | None:
        names = dict.fromkeys((text, path_from_text(text), text.replace("\\", "/")))
        options = [os.path.normpath(os.path.join(base, name)) for name in names for base in bases]
        exact = next((option for option in options if option in every), None)
        return exact or next((stems[option] for option in options if stems.get(option)), None)

    return resolve


def _bases(config: DataConfig, sides: Sequence[FileImages], beside: Path) -> list[str]:
    """The folders that paths in a table may be relative to."""
    root = [os.path.abspath(os.path.expanduser(config.path))] if config.path else []
    return [*root, *(part.root for part in sides), str(beside)]


def _labelled(images: FileImages, lists: Sequence[Sequence[str]], names: tuple[str, ...]) -> FileImages:
    labels, label_sets = numbered(lists, names)
    return replace(images, labels=labels, class_names=names, label_sets=label_sets)


def _table_file(knob: str, given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{knob} = {given!r} {reason}")
    return path


def _below(path: str, root: Path) -> str:
    """The path relative to the root where it lies below it."""
    start = f"{root}/"
    return path[len(start) :] if path.startswith(start) else path


def _examples(texts: Sequence[str]) -> str:
    return ", ".join(map(path_text, texts[:3]))
