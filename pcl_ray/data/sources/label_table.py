"""Files that name images, with or without their labels: CSV files (`data.labels`) and lists (`data.list`)."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcl_ray.errors import DataError
from pcl_ray.support.paths import lines_of, path_from_text, storable
from pcl_ray.support.text import delimiter_of

_PATH_WORDS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image",
    "image_path",
    "image_id",
    "id",
    "name",
)
_LABEL_WORDS = ("label", "labels", "class", "classes", "class_name", "category", "target", "tags")
_SEVERAL = ";"  # stands between the labels of one image


@dataclass(frozen=True)
class TableRow:
    """A line of a table: an image as it is written there, and its labels, none or several."""

    path: str
    labels: tuple[str, ...]


def read_labels(knob: str, file: Path, is_image: Callable[[str], bool]) -> list[TableRow]:
    """The rows of a CSV file, of which the first may name the columns. Columns are set apart by commas, tabs
    or semicolons.

    is_image: whether a text in the first row names an image, and no column. Raises DataError.
    """
    lines = _lines(knob, file)
    try:
        # with its line break, which a quoted cell may hold
        rows = list(csv.reader((f"{line}\n" for line in lines), delimiter=delimiter_of(lines[0])))
    except csv.Error as error:
        raise DataError(f"{knob} = {str(file)!r} cannot be read as CSV: {error}") from None
    rows = [row for row in rows if any(map(str.strip, row))]
    if not rows:
        raise DataError(f"{knob} = {str(file)!r} has no row")
    path, label, has_header = _columns(knob, file, [cell.strip() for cell in rows[0]], is_image)
    return [
        TableRow(
            row[path] if is_image(row[path]) else row[path].strip(),
            _labels(row[label] if label < len(row) else ""),
        )
        for row in rows[has_header:]
        if path < len(row) and row[path].strip()
    ]


def read_list(knob: str, file: Path, is_image: Callable[[str], bool]) -> list[TableRow]:
    """The lines of a list: a path, with a label after a tab or a comma or without. Lines that begin with #
    are left out.

    is_image: whether a text names an image: then a comma in it is part of its name. Raises DataError.
    """
    rows: list[TableRow] = []
    for line in _lines(knob, file):
        if not line.strip() or line.startswith("#"):
            continue
        mark = "\t" if "\t" in line else ","
        path, _, label = line.rpartition(mark) if mark in line else (line, "", "")
        if is_image(line):
            path, label = line, ""
        rows.append(TableRow(path if is_image(path) else path.strip(), _labels(label)))
    if not rows:
        raise DataError(f"{knob} = {str(file)!r} has no line")
    return rows


def full_path(path: str, folders: Sequence[Path | str]) -> str:
    """The absolute path that is meant: relative to the first of these folders that has such a file, as it is
    written or as `path_text` writes it, else to the first.
    """
    names = dict.fromkeys((os.path.expanduser(path), os.path.expanduser(path_from_text(path))))
    options = [os.path.normpath(os.path.join(folder, name)) for name in names for folder in folders]
    return next((option for option in options if os.path.exists(option)), options[0])


def _lines(knob: str, file: Path) -> list[str]:
    try:
        return lines_of(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{knob} = {str(file)!r}: {error}") from None
    except OSError as error:
        raise DataError(f"{knob} = {str(file)!r} cannot be read: {error.strerror or error}") from None


def _columns(
    knob: str, file: Path, first: list[str], is_image: Callable[[str], bool]
) -> tuple[int, int, bool]:
    """Which column has the paths, which the labels, and whether the first row is their names."""
    words = [cell.lower() for cell in first]
    paths = [words.index(word) for word in _PATH_WORDS if word in words]
    labels = [words.index(word) for word in _LABEL_WORDS if word in words]
    has_header = bool(paths or labels) and not is_image(first[0])
    if not has_header and len(first) > 2:
        raise DataError(
            f"{knob} = {str(file)!r} has {len(first)} columns, and a first row that names none of them; it"
            " needs the columns path and label"
        )
    if not has_header:
        return 0, 1, False
    path = paths[0] if paths else next(i for i in range(len(words) + 1) if i not in labels)
    if not labels and len(words) == 2:
        labels = [1 - path]
    if not labels or path >= len(words):
        raise DataError(
            f"{knob} = {str(file)!r} has the columns {', '.join(first)}, of which none is called"
            f" {'label' if not labels else 'path'}"
        )
    return path, labels[0], True


def _labels(cell: str) -> tuple[str, ...]:
    labels = (label.strip() for label in storable(cell).split(_SEVERAL))
    return tuple(dict.fromkeys(label for label in labels if label))


def merged(rows: Sequence[TableRow], resolve: Callable[[str], str]) -> dict[str, list[str]]:
    """The labels of each image by the path that `resolve` gives, those of several rows together."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        own = labels.setdefault(resolve(row.path), [])
        own += [label for label in row.labels if label not in own]
    return labels
