"""The files that a node keeps of shards: fetched, unpacked or indexed once by whichever process needs them
first, while the others wait. Those least recently used go first where `data.cache_gb` is full.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pcl_ray.errors import DataError, RunFailed
from pcl_ray.support import paths
from pcl_ray.support.files import LockHeld, atomic_file, file_lock
from pcl_ray.support.storage import SLOWEST_TRANSFER, TIME_LIMIT_S, TRIES
from pcl_ray.support.text import gigabytes

_LOCKS = 256  # files with locks; entries that share one only wait for each other
_ROOM_TIMEOUT_S = 60.0
_USED_EVERY_S = 60.0  # so often a process notes that it uses an entry
_LEFTOVER_S = 24 * 3600.0  # a partial file of this age is a crash's
_PARTIAL = ".partial"

_noted: dict[Path, float] = {}  # when this process noted its use of an entry


class ShardCache:
    """The cache of this node, `PCL_RAY_HOME/cache`, with room for limit_gb · 10⁹ bytes."""

    def __init__(self, limit_gb: float):
        self.folder, self.limit_gb = paths.home() / "cache", limit_gb

    def find(self, key: str) -> Path | None:
        """The file of this entry, None where there is none. It counts as used."""
        path = self.folder / key
        now = time.monotonic()
        last = _noted.get(path)
        try:
            if last is None or now - last > _USED_EVERY_S:
                os.utime(path)
                _noted[path] = now
                return path
        except FileNotFoundError:
            return None
        except OSError:  # somebody else's file, of a cache that several users share
            pass
        return path if path.exists() else None

    def get(self, key: str, size: int, write: Callable[[Path], None], what: str) -> Path:
        """The file of this entry, which `write` writes where there is none: whole or not at all.

        size: bytes that it will have about. what: what a message calls it. Raises DataError where it cannot
        be written, or another process takes too long to do it.
        """
        if path := self.find(key):
            return path
        path = self.folder / key
        limit_s = (TRIES + 1) * (TIME_LIMIT_S + size / SLOWEST_TRANSFER)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / f".lock-{hash_of(key) % _LOCKS:03d}", limit_s):
                if self.find(key):
                    return path
                self._make_room(size, what)
                with atomic_file(path) as partial:
                    write(partial)
                self._make_room(0, what, keep=path)
        except LockHeld:
            raise DataError(
                f"{what}: another process has been fetching it into {self.folder} for {limit_s:.0f} s; end it"
            ) from None
        except RunFailed as failure:
            raise DataError(f"{what} cannot be fetched: {failure}") from failure
        except OSError as error:
            raise DataError(
                f"{what} cannot be kept in {self.folder} ({error.strerror or error}); PCL_RAY_HOME names"
                " another disk"
            ) from error
        return path

    def check_fits(self, size: int, what: str) -> None:
        """Raises DataError where so many bytes, which are needed together, are more than the limit."""
        if size > self.limit_gb * 1e9:
            raise DataError(
                f"{what} takes {gigabytes(size)} of {self.folder}, and data.cache_gb = {self.limit_gb:g}; "
                "raise it where the disk has the room"
            )

    def _make_room(self, size: int, what: str, keep: Path | None = None) -> None:
        """Removes entries, the one unused for longest first, until `size` bytes more are within the limit and
        on the disk.
        """
        self.check_fits(size, what)
        with file_lock(self.folder / ".lock-room", _ROOM_TIMEOUT_S):
            entries: list[tuple[float, int, Path]] = []
            for file in self.folder.iterdir():
                with suppress(OSError):
                    status = file.stat()
                    if file.name.endswith(_PARTIAL) and time.time() - status.st_mtime > _LEFTOVER_S:
                        file.unlink()
                    elif not file.name.startswith("."):
                        entries.append((status.st_mtime, status.st_size, file))
            used = sum(entry[1] for entry in entries)
            for _, bytes_of_file, file in sorted(entries):
                fits = used + size <= self.limit_gb * 1e9 and shutil.disk_usage(self.folder).free > size
                if fits:
                    return
                if file != keep and not file.name.endswith(_PARTIAL):
                    with suppress(OSError):
                        file.unlink()
                        used -= bytes_of_file
                        _noted.pop(file, None)
            if (free := shutil.disk_usage(self.folder).free) < size:
                raise DataError(
                    f"{what} takes {gigabytes(size)}, and the disk of {self.folder} has {gigabytes(free)}"
                    " left; PCL_RAY_HOME names another disk"
                )


def hash_of(key: str) -> int:
    """A number that follows from a key, which is a digest in hexadecimal with a word after it."""
    return int(key[:8], 16)
