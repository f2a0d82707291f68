"""The decoded pictures that are kept under PCL_RAY_HOME/decoded, so that a run on the same files starts, and
goes on, without decoding them again. Those least recently used go first where the limit is reached.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcl_ray.support.files import atomic_file

FOLDER = "decoded"
LIMIT_BYTES = 20_000_000_000  # of all entries together
_OF_FREE = 0.25  # of the disk: an entry that would take more is not kept
_SUFFIX, _PARTIAL = ".npy", ".partial"


@dataclass(frozen=True)
class Entry:
    """The decoded pictures of one part of a data set."""

    path: Path
    size: int  # bytes
    used_at: float  # seconds since 1970, when a run last read it


def entries(home: Path) -> list[Entry]:
    """All entries, least recently used first."""
    every = []
    with suppress(OSError):
        for path in (home / FOLDER).iterdir():
            if path.suffix in (_SUFFIX, _PARTIAL):
                with suppress(OSError):
                    status = path.stat()
                    every.append(Entry(path, status.st_size, status.st_mtime))
    return sorted(every, key=lambda entry: (entry.used_at, entry.path))


def clear(home: Path) -> int:
    """Removes all entries; gives back the bytes that are free now. A run that reads one is not disturbed."""
    return sum(entry.size for entry in entries(home) if _remove(entry))


def find(home: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of an entry by their names, mapped into memory and not to be written; None where there is
    none. It counts as used.
    """
    path = home / FOLDER / f"{key}{_SUFFIX}"
    try:
        arrays = {}
        with path.open("rb") as file:
            names = np.load(file, allow_pickle=False)
            for name in names.tolist():
                version = np.lib.format.read_magic(file)
                read_header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, kind = read_header(file)
                start = file.tell()
                size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
                if size:
                    mapped = np.memmap(path, kind, "r", start, shape)
                    arrays[name] = np.asarray(mapped)
                else:
                    arrays[name] = np.empty(shape, kind)
                file.seek(start + size)
        os.utime(path)
    except (OSError, ValueError, EOFError, TypeError):  # not there, damaged
        return None
    return arrays


def keep(home: Path, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Writes an entry whole, where the disk has room for it; gives back whether it did. Not to have it costs
    the next run some time and nothing else.
    """
    size = sum(array.nbytes for array in arrays.values())
    folder = home / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if size > min(LIMIT_BYTES, shutil.disk_usage(folder).free * _OF_FREE):
            return False
        _make_room(home, size)
        with atomic_file(folder / f"{key}{_SUFFIX}") as partial, partial.open("wb") as file:
            np.save(file, np.array(list(arrays)))
            for array in arrays.values():
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    except OSError:
        return False
    return True


def _make_room(home: Path, size: int) -> None:
    every = entries(home)
    used = sum(entry.size for entry in every)
    for entry in every:
        if used + size <= LIMIT_BYTES:
            return
        if _remove(entry):
            used -= entry.size


def _remove(entry: Entry) -> bool:
    try:
        entry.path.unlink()
    except OSError:
        return False
    return True
