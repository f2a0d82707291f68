"""Where runs keep checkpoints and results beside PCL_RAY_HOME: a folder that all nodes see, or an object
store, through pyarrow's file systems.

    URI/runs/NAME/   config.yaml  state.json  owner.json  checkpoints/epoch_00012.pt
                     report.html  figures.csv  exhibit.npz

An object is there whole or not at all. Every call ends within a time that follows from what it moves, tries
again where that may help, and else raises RunFailed with one sentence that names the storage without its
secrets.
"""

from __future__ import annotations

import io
import os
import re
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pcl_ray.checkpoints.storage_address import problem as problem
from pcl_ray.checkpoints.storage_address import shown as shown
from pcl_ray.errors import RunFailed
from pcl_ray.support.files import atomic_file, sync_to_disk

VARIABLE = "PCL_RAY_STORAGE"
_WHOLE = ("s3", "gcs", "abfs")  # there, an object shows when it is complete
_PIECE = 8 << 20
_TRIES, _BETWEEN_S = 3, 1.0
_SLOWEST = 1e6  # bytes a second that a transfer is at least given time for
_CALM_S, _HURRIED_S = 60.0, 15.0

T = TypeVar("T")


def reachable(uri: str) -> str | None:
    """Why nothing can be kept there: an object is written, read and removed. None where that works."""
    place = Storage(uri, hurried=True)
    key = f".probe-{uuid.uuid4().hex}"
    try:
        place.write(key, b"probe")
        same = place.read(key) == b"probe"
        place.remove(key)
    except StorageFailed as failure:
        return (
            f"cannot be written and read ({failure.reason}); is the address right, does it exist, and are its"
            " credentials in the environment?"
        )
    return None if same else "gives back other bytes than were written"


def of_run(uri: str, name: str, *, hurried: bool = False) -> Storage:
    """The place of run `name`."""
    return Storage(uri, f"runs/{name}", hurried=hurried)


class StorageFailed(RunFailed):
    """What could not be done, with which storage, and why; `reason` is the last of these alone."""

    def __init__(self, place: Storage, what: str, reason: str):
        self.reason = reason
        super().__init__(f"storage {place}: {what} ({reason})")


@dataclass(frozen=True)
class Entry:
    """What tells one version of an object from another."""

    size: int  # bytes
    changed_ns: int  # by the clock of the storage

    def is_of(self, file: Path) -> bool:
        """Whether the local file is this version, as `get` and `Storage.stamp` leave it."""
        try:
            there = file.stat()
        except OSError:
            return False
        # file systems round
        return there.st_size == self.size and abs(there.st_mtime_ns - self.changed_ns) < 2_000_000_000


class Storage:
    """A folder of a storage. Connects at the first call. hurried: one try and short waits, for what is not
    worth waiting for.
    """

    def __init__(self, uri: str, below: str = "", *, hurried: bool = False):
        self.uri, self.below, self.hurried = uri, below, hurried
        self._opened: tuple[Any, str] | None = None

    def __str__(self) -> str:
        return shown(self.uri)

    def limit_s(self, size: int = 0) -> float:
        """Seconds after which moving `size` bytes is given up."""
        return _HURRIED_S if self.hurried else _CALM_S + size / _SLOWEST

    def put(self, file: Path, key: str) -> Entry:
        """Copies a local file there. The file then has the object's time, so that `Entry.is_of` knows it
        again.
        """

        def work(fs: Any, root: str) -> Entry:
            with file.open("rb") as source:
                entry = _write(fs, f"{root}/{key}", source)
            if entry.size != file.stat().st_size:
                fs.delete_file(f"{root}/{key}")
                raise OSError("it arrived in part")
            _stamp(file, entry)
            return entry

        return self._call(f"{key} could not be put there", work, file.stat().st_size if file.is_file() else 0)

    def get(self, key: str, file: Path) -> Entry:
        """Copies an object to a local file, which is there whole or not at all, with the object's time."""
        entry = self.entry(key)
        if entry is None:
            raise StorageFailed(self, f"{key} could not be fetched", "it is not there")

        def work(fs: Any, root: str) -> Entry:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial:
                with fs.open_input_stream(f"{root}/{key}") as source, partial.open("wb") as target:
                    while piece := source.read(_PIECE):
                        target.write(piece)
                if partial.stat().st_size != entry.size:
                    raise OSError("it arrived in part")
                _stamp(partial, entry)
            return entry

        return self._call(f"{key} could not be fetched", work, entry.size)

    def write(self, key: str, content: bytes) -> Entry:
        return self._call(
            f"{key} could not be written",
            lambda fs, root: _write(fs, f"{root}/{key}", io.BytesIO(content)),
            len(content),
        )

    def read(self, key: str) -> bytes | None:
        """A small object's bytes, None where it is not there."""

        def work(fs: Any, root: str) -> bytes | None:
            if not _is_file(fs.get_file_info(f"{root}/{key}")):
                return None
            with fs.open_input_stream(f"{root}/{key}") as source:
                return source.read()

        return self._call(f"{key} could not be read", work)

    def entry(self, key: str) -> Entry | None:
        def work(fs: Any, root: str) -> Entry | None:
            info = fs.get_file_info(f"{root}/{key}")
            return _entry(info) if _is_file(info) else None

        return self._call(f"{key} could not be looked for", work)

    def listed(self, folder: str = "") -> dict[str, Entry]:
        """The objects right in a folder by their names; none where there is no such folder."""

        def work(fs: Any, root: str) -> dict[str, Entry]:
            from pyarrow.fs import FileSelector

            found = fs.get_file_info(FileSelector(f"{root}/{folder}".rstrip("/"), allow_not_found=True))
            return {info.base_name: _entry(info) for info in found if _is_file(info)}

        return self._call(f"{folder or 'the folder'} could not be listed", work)

    def remove(self, key: str) -> None:
        """An object that is not there is removed already."""

        def work(fs: Any, root: str) -> None:
            with suppress(FileNotFoundError):
                fs.delete_file(f"{root}/{key}")

        self._call(f"{key} could not be removed", work)

    def _call(self, what: str, work: Callable[[Any, str], T], size: int = 0) -> T:
        """In a thread of its own, because pyarrow cannot be interrupted: not by a signal, nor where a mounted
        folder hangs.
        """
        answers: list[T] = []
        reasons: list[str] = []
        given_up = threading.Event()

        def tries() -> None:
            for number in range(1 if self.hurried else _TRIES):
                if given_up.wait(number * _BETWEEN_S):
                    return
                try:
                    self._opened = self._opened or _open(self.uri, 5.0 if self.hurried else 20.0)
                    fs, root = self._opened
                    answers.append(work(fs, f"{root}/{self.below}".rstrip("/")))
                    return
                except Exception as error:  # pyarrow raises errors of many kinds
                    reasons.append(_reason(error))

        thread = threading.Thread(target=tries, name="storage", daemon=True)
        thread.start()
        limit = self.limit_s(size)
        thread.join(limit)
        given_up.set()
        if answers:
            return answers[0]
        raise StorageFailed(self, what, reasons[-1] if reasons else f"no answer within {limit:.0f} s")


def _open(uri: str, patience_s: float) -> tuple[Any, str]:
    """pyarrow's file system and the folder in it."""
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), uri.rstrip("/")
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        if endpoint.netloc and "endpoint_override" not in options:
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        asked = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options["region"] = asked or (
            "us-east-1" if "endpoint_override" in options else fs.resolve_s3_region(parts.netloc)
        )
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=2)
        system = fs.S3FileSystem(
            **options, connect_timeout=5.0, request_timeout=patience_s, retry_strategy=retries
        )
        return system, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")
    if parts.scheme == "gs" and "retry_limit_seconds" not in parts.query:  # else a quarter of an hour
        uri += f"{'&' if parts.query else '?'}retry_limit_seconds={patience_s:.0f}"
    system, root = fs.FileSystem.from_uri(uri)
    return system, root.rstrip("/")


def _write(fs: Any, path: str, source: IO[bytes]) -> Entry:
    whole = fs.type_name in _WHOLE
    target = path if whole else f"{path}.partial"
    if not whole:
        fs.create_dir(path.rpartition("/")[0], recursive=True)
    stream = fs.open_output_stream(target)
    try:
        while piece := source.read(_PIECE):
            stream.write(piece)
    except BaseException:  # pyarrow cannot give an object up: whatever ends a stream completes it
        with suppress(Exception):
            stream.close()
        with suppress(Exception):
            fs.delete_file(target)
        raise
    stream.close()
    if fs.type_name == "local":
        sync_to_disk(Path(target))
    if not whole:
        fs.move(target, path)
    return _entry(fs.get_file_info(path))


def _stamp(file: Path, entry: Entry) -> None:
    os.utime(file, ns=(entry.changed_ns, entry.changed_ns))


def _is_file(info: Any) -> bool:
    from pyarrow.fs import FileType

    return info.type == FileType.File


def _entry(info: Any) -> Entry:
    return Entry(info.size, info.mtime_ns)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[Errno \d+\] |^.*AWS Error \w+ during \w+ operation: | \(Request ID.*$", "", text)
    return text if len(text) <= 240 else f"{text[:237]}..."
