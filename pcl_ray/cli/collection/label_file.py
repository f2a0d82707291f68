"""The labels that a user gives: a table of paths and labels, and which images of a collection they mean."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.paths import lines_of, path_text, storable
from pcl_ray.support.text import count, delimiter_of

if TYPE_CHECKING:
    import pyarrow as pa

_PATHS, _LABELS = ("path", "file", "filename", "file_name", "image"), ("label", "class", "category")


def read(file: Path, paths: pa.ChunkedArray) -> dict[int, str]:
    """The label of each image that has one, by its number. A path is meant whole, from the file's folder,
    from the working directory, or by its end (`cats/7.jpg`), where only one image ends so.

    Raises ConfigError where there is no such file or it has other columns, DataError where no label fits, or
    one image has two.
    """
    given = _rows(file)
    wanted = {candidate for path, _ in given for candidate in _candidates(path, file)}
    names = {_name(text) for path, _ in given for text in _spellings(path)}
    numbers: dict[str, int] = {}
    alike: dict[str, list[tuple[int, str]]] = {}
    for number, path in enumerate(_texts(paths)):
        if path in wanted:
            numbers[path] = number
        if _name(path) in names:
            alike.setdefault(_name(path), []).append((number, path))
    labels: dict[int, str] = {}
    missing = []
    for path, label in given:
        number = next((numbers[one] for one in _candidates(path, file) if one in numbers), None)
        if number is None:
            fitting = {
                i
                for text in _spellings(path)
                for i, whole in alike.get(_name(text), [])
                if whole.endswith("/" + text.lstrip("./"))
            }
            number = fitting.pop() if len(fitting) == 1 else None
        if number is None:
            missing.append(path)
        elif labels.setdefault(number, label) != label:
            raise DataError(f"{file}: {path!r} has two labels, {labels[number]!r} and {label!r}")
    if not labels:
        raise DataError(f"no path in {file} is an image of the collection, the first is {missing[0]!r}")
    if missing:
        print(
            f"{count(len(missing), 'path')} of {file} {'is' if len(missing) == 1 else 'are'} no image of the"
            f" collection, the first is {missing[0]!r}",
            file=sys.stderr,
        )
    return labels


def has_labels(table: Path) -> bool:
    """Whether the table, .csv or .parquet, is there and has labels that somebody filled in."""
    if not table.exists():
        return False
    try:
        return bool(_rows(table))
    except (ConfigError, DataError, OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors
        return False


def _rows(file: Path) -> list[tuple[str, str]]:
    """Paths and labels, without the rows that have no label. `sample` writes Parquet, too."""
    if file.suffix.lower() == ".parquet" and file.exists():
        return _with_labels(file, _parquet_rows(file))
    try:
        lines = lines_of(file.read_bytes())
        rows = csv.DictReader((f"{line}\n" for line in lines), delimiter=delimiter_of(lines[0]))
        columns = {storable(name or "").strip().lower(): name for name in rows.fieldnames or ()}
        path = next((columns[name] for name in _PATHS if name in columns), None)
        label = next((columns[name] for name in _LABELS if name in columns), None)
        if path is None or label is None:
            raise ConfigError(
                f"{file} needs the columns path and label; it has: {', '.join(columns) or 'none'}"
            )
        given = [(row[path] or "", storable(row[label] or "").strip()) for row in rows]
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(file)!r}") from None
    except ConfigError:
        raise
    except (OSError, csv.Error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file} cannot be read: {reason}") from None
    return _with_labels(file, given)


def _parquet_rows(file: Path) -> list[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as opened:  # Arrow takes no names that are no UTF-8
            table = pq.read_table(opened)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    path = next((name for name in _PATHS if name in table.column_names), None)
    label = next((name for name in _LABELS if name in table.column_names), None)
    if path is None or label is None:
        columns = ", ".join(table.column_names) or "none"
        raise ConfigError(f"{file} needs the columns path and label; it has: {columns}")
    pairs = zip(table[path].to_pylist(), table[label].to_pylist(), strict=True)
    return [(str(one or ""), str("" if other is None else other).strip()) for one, other in pairs]


def _with_labels(file: Path, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    labelled = [(path, label) for path, label in rows if path.strip() and label]
    if not labelled:
        raise DataError(f"{file} has no row with a path and a label")
    return labelled


def _candidates(path: str, file: Path) -> list[str]:
    folders = (os.path.abspath(file.parent), os.getcwd())
    words = [os.path.expanduser(text) for text in _spellings(path)]
    return [os.path.normpath(os.path.join(path_text(folder), word)) for word in words for folder in folders]


def _spellings(path: str) -> list[str]:
    """A path as the collection may have it: as it is written, or as `path_text` writes it."""
    return list(dict.fromkeys((path, path_text(path), path.strip(), path_text(path.strip()))))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _texts(paths: pa.ChunkedArray) -> Iterable[str]:
    for chunk in paths.chunks:
        yield from chunk.to_pylist()
