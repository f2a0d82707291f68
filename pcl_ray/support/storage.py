"""Folders that all nodes see and object stores, through pyarrow's file systems: where runs keep checkpoints
and results beside PCL_RAY_HOME, and where images may lie.

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

from pcl_ray.errors import RunFailed
from pcl_ray.support.files import atomic_file, sync_to_disk
from pcl_ray.support.storage_address import without_secrets

VARIABLE = "PCL_RAY_STORAGE"  # the environment variable that names a storage
TRIES = 3
PAUSE_S = 1.0  # before the second try; twice as long before the third
PIECE_BYTES = 8 << 20  # moved at a time
TIME_LIMIT_S, HURRIED_TIME_LIMIT_S = 60.0, 15.0  # of one call
SLOWEST_TRANSFER = 1e6  # bytes a second that a transfer is at least given time for

# File systems where an object shows only when it is complete.
_WRITES_WHOLE = ("s3", "gcs", "abfs")
_SAME_TIME_NS = 2_000_000_000  # file systems round

T = TypeVar("T")


def access_problem(uri: str) -> str | None:
    """Why nothing can be stored there, or None: an object is written, read and removed to find out."""
    storage = Storage(uri, hurried=True)
    key = f".probe-{uuid.uuid4().hex}"
    try:
        storage.write(key, b"probe")
        same = storage.read(key) == b"probe"
        storage.remove(key)
    except StorageFailed as failure:
        return (
            f"cannot be written and read ({failure.reason}); is the address right, does it exist, and are its"
            " credentials in the environment?"
        )
    return None if same else "gives back other bytes than were written"


def of_run(uri: str, name: str, *, hurried: bool = False) -> Storage:
    """The folder of run `name` in a storage."""
    return Storage(uri, f"runs/{name}", hurried=hurried)


class StorageFailed(RunFailed):
    """What could not be done, with which storage, and why; `reason` is the last of these alone."""

    def __init__(self, storage: Storage, what: str, reason: str):
        self.reason = reason
        super().__init__(f"storage {storage}: {what} ({reason})")


@dataclass(frozen=True)
class ObjectVersion:
    """What tells one version of an object from another."""

    size: int  # bytes
    changed_ns: int  # by the clock of the storage

    def matches(self, file: Path) -> bool:
        """Whether the local file is this version, as `Storage.upload` and `Storage.download` leave it."""
        try:
            status = file.stat()
        except OSError:
            return False
        return status.st_size == self.size and abs(status.st_mtime_ns - self.changed_ns) < _SAME_TIME_NS


class Storage:
    """A folder of a storage; keys of objects are paths below it. It connects at the first call.

    hurried: one try and short waits, for what is not worth waiting for. All methods raise StorageFailed.
    """

    def __init__(self, uri: str, folder: str = "", *, hurried: bool = False):
        self.uri, self.folder, self.hurried = uri, folder, hurried
        self._file_system: tuple[Any, str] | None = None  # pyarrow's, and the folder of the URI in it

    def __str__(self) -> str:
        return without_secrets(self.uri)

    def time_limit_s(self, size: int = 0) -> float:
        """Seconds after which moving `size` bytes is given up."""
        return HURRIED_TIME_LIMIT_S if self.hurried else TIME_LIMIT_S + size / SLOWEST_TRANSFER

    def upload(self, file: Path, key: str) -> ObjectVersion:
        """Copies a local file into an object. The file then has the object's time, so that
        `ObjectVersion.matches` knows it again.
        """

        def work(fs: Any, root: str) -> ObjectVersion:
            with file.open("rb") as source:
                version = _write(fs, f"{root}/{key}", source)
            if version.size != file.stat().st_size:
                fs.delete_file(f"{root}/{key}")
                raise OSError("it arrived in part")
            _set_time(file, version)
            return version

        return self._call(f"{key} could not be put there", work, file.stat().st_size if file.is_file() else 0)

    def download(self, key: str, file: Path) -> ObjectVersion:
        """Copies an object to a local file, which is there whole or not at all, with the object's time."""
        version = self.version(key)
        if version is None:
            raise StorageFailed(self, f"{key} could not be fetched", "it is not there")

        def work(fs: Any, root: str) -> ObjectVersion:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial:
                with (
                    fs.open_input_stream(f"{root}/{key}", compression=None) as source,
                    partial.open("wb") as target,
                ):
                    while piece := source.read(PIECE_BYTES):
                        target.write(piece)
                if partial.stat().st_size != version.size:
                    raise OSError("it arrived in part")
                _set_time(partial, version)
            return version

        return self._call(f"{key} could not be fetched", work, version.size)

    def write(self, key: str, content: bytes) -> ObjectVersion:
        """Replaces an object."""

        def work(fs: Any, root: str) -> ObjectVersion:
            return _write(fs, f"{root}/{key}", io.BytesIO(content))

        return self._call(f"{key} could not be written", work, len(content))

    def read(self, key: str) -> bytes | None:
        """A small object's bytes, None where it is not there."""

        def work(fs: Any, root: str) -> bytes | None:
            if not _is_file(fs.get_file_info(f"{root}/{key}")):
                return None
            with fs.open_input_stream(f"{root}/{key}", compression=None) as source:
                return source.read()

        return self._call(f"{key} could not be read", work)

    def version(self, key: str) -> ObjectVersion | None:
        """The version that an object has now, None where it is not there."""

        def work(fs: Any, root: str) -> ObjectVersion | None:
            info = fs.get_file_info(f"{root}/{key}")
            return _version(info) if _is_file(info) else None

        return self._call(f"{key} could not be looked for", work)

    def list_objects(self, folder: str = "") -> dict[str, ObjectVersion]:
        """The objects right in a folder by their names; none where there is no such folder."""

        def work(fs: Any, root: str) -> dict[str, ObjectVersion]:
            from pyarrow.fs import FileSelector

            selector = FileSelector(f"{root}/{folder}".rstrip("/"), allow_not_found=True)
            return {info.base_name: _version(info) for info in fs.get_file_info(selector) if _is_file(info)}

        return self._call(f"{folder or 'the folder'} could not be listed", work)

    def list_tree(self) -> dict[str, ObjectVersion]:
        """The objects in the folder and below by their keys; none where there is no such folder."""

        def work(fs: Any, root: str) -> dict[str, ObjectVersion]:
            from pyarrow.fs import FileSelector

            selector = FileSelector(root, allow_not_found=True, recursive=True)
            start = len(root.rstrip("/")) + 1
            return {
                info.path[start:]: _version(info) for info in fs.get_file_info(selector) if _is_file(info)
            }

        return self._call("the folder could not be listed", work)

    def examine(self, key: str, examine: Callable[[Any], T], size: int = 0) -> T:
        """What `examine` gives back of an object opened for reading at any position, pyarrow's NativeFile.

        size: bytes that it reads at the most, which give it time. It may be called again after an error.
        """

        def work(fs: Any, root: str) -> T:
            with fs.open_input_file(f"{root}/{key}") as file:
                return examine(file)

        return self._call(f"{key} could not be read", work, size)

    def remove(self, key: str) -> None:
        """Removes an object. One that is not there is removed already."""

        def work(fs: Any, root: str) -> None:
            with suppress(FileNotFoundError):
                fs.delete_file(f"{root}/{key}")

        self._call(f"{key} could not be removed", work)

    def _call(self, what: str, work: Callable[[Any, str], T], size: int = 0) -> T:
        """Works in a thread, because pyarrow cannot be interrupted, even where a mounted folder hangs."""
        answers: list[T] = []
        reasons: list[str] = []
        given_up = threading.Event()

        def run_tries() -> None:
            for number in range(1 if self.hurried else TRIES):
                if given_up.wait(number * PAUSE_S):
                    return
                try:
                    self._file_system = self._file_system or _connect(self.uri, 5.0 if self.hurried else 20.0)
                    fs, root = self._file_system
                    answers.append(work(fs, f"{root}/{self.folder}".rstrip("/")))
                    return
                except Exception as error:  # pyarrow raises errors of many kinds
                    reasons.append(_reason(error))

        thread = threading.Thread(target=run_tries, name="storage", daemon=True)
        thread.start()
        limit = self.time_limit_s(size)
        thread.join(limit)
        given_up.set()
        if answers:
            return answers[0]
        raise StorageFailed(self, what, reasons[-1] if reasons else f"no answer within {limit:.0f} s")


def _connect(uri: str, timeout_s: float) -> tuple[Any, str]:
    """pyarrow's file system of an address, and the folder in it."""
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), uri.rstrip("/")
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return _connect_s3(uri, timeout_s)
    if parts.scheme == "gs" and "retry_limit_seconds" not in parts.query:  # else a quarter of an hour
        uri += f"{'&' if parts.query else '?'}retry_limit_seconds={timeout_s:.0f}"
    file_system, root = fs.FileSystem.from_uri(uri)
    return file_system, root.rstrip("/")


def _connect_s3(uri: str, timeout_s: float) -> tuple[Any, str]:
    """Connects with the endpoint and region of the address, else with those that AWS's own tools read."""
    from pyarrow import fs

    parts, environment = urlsplit(uri), os.environ
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    endpoint = urlsplit(environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or "")
    if endpoint.netloc and "endpoint_override" not in options:
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    region = options.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region and "endpoint_override" in options:
        region = "us-east-1"
    options["region"] = region or fs.resolve_s3_region(parts.netloc)
    file_system = fs.S3FileSystem(
        **options,
        connect_timeout=5.0,
        request_timeout=timeout_s,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
    )
    return file_system, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


def _write(fs: Any, path: str, source: IO[bytes]) -> ObjectVersion:
    """Writes an object, which shows only when it is complete."""
    writes_whole = fs.type_name in _WRITES_WHOLE
    target = path if writes_whole else f"{path}.partial"
    if not writes_whole:
        fs.create_dir(path.rpartition("/")[0], recursive=True)
    stream = fs.open_output_stream(target, compression=None)
    try:
        while piece := source.read(PIECE_BYTES):
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
    if not writes_whole:
        fs.move(target, path)
    return _version(fs.get_file_info(path))


def _set_time(file: Path, version: ObjectVersion) -> None:
    os.utime(file, ns=(version.changed_ns, version.changed_ns))


def _is_file(info: Any) -> bool:
    from pyarrow.fs import FileType

    return info.type == FileType.File


def _version(info: Any) -> ObjectVersion:
    return ObjectVersion(info.size, info.mtime_ns)


def _reason(error: BaseException) -> str:
    """The first line of an error, without what only the libraries below understand."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[Errno \d+\] |^.*AWS Error \w+ during \w+ operation: | \(Request ID.*$", "", text)
    return text if len(text) <= 240 else f"{text[:237]}..."
