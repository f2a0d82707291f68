"""Files that several processes write and read: replaced whole, and locked against each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

WAIT_FOREVER = -1.0


@contextmanager
def atomic_file(path: Path, *, sync: bool = False, only_writer: bool = False) -> Iterator[Path]:
    """A partial file beside `path`, which the block writes and which becomes `path` at its end. An error in
    the block removes it, and `path` stays as it was.

    sync: the content is on the disk before anybody can read it under its name. only_writer: nobody else
    writes this file meanwhile. The partial file then has a fixed name, so that the next write overwrites what
    a crash has left, which matters for large files. Raises OSError.
    """
    writer = "" if only_writer else f".{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f"{path.name}{writer}.partial")
    # Left by a crash, perhaps of a process with our number: it may be a link to a file that must not change.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        if sync:
            sync_to_disk(partial)
        os.replace(partial, path)
        if sync:
            sync_to_disk(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replaces the content of a file, in UTF-8, whole or not at all. Raises OSError."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change (ns) of a file; −1 both where it is not there."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return -1, -1


def sync_to_disk(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockHeld(Exception):
    """Another process, or another part of this one, holds the lock."""


def acquire_lock(path: Path, timeout_s: float = 0.0) -> BaseFileLock:
    """The lock of a file, held until its `release()` or the process's end. A missing file is made; it stays.

    Storage without locks, as some network file systems are, keeps nobody out. Raises LockHeld where another
    one holds it for longer than timeout_s seconds (WAIT_FOREVER: never), OSError where the file cannot be
    written.
    """
    path.touch()
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise LockHeld(str(path)) from None
    except OSError:
        pass
    return lock


@contextmanager
def file_lock(path: Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Holds the lock of `acquire_lock` for the length of the block. Raises as it does."""
    lock = acquire_lock(path, timeout_s)
    try:
        yield
    finally:
        lock.release()


def is_unlocked(path: Path) -> bool:
    """Whether the file exists and nobody here holds its lock. False too where the storage has no locks."""
    if not path.is_file():
        return False
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0.0)
    except OSError:  # held (a Timeout is an OSError), or not to be had
        return False
    lock.release()
    return True
