"""The storage itself: a folder, and a real S3 server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.support import storage


def test_what_is_put_comes_back_whole(storage_uri: str, tmp_path: Path) -> None:
    assert storage.access_problem(storage_uri) is None
    run_storage = storage.of_run(storage_uri, "one")
    file = tmp_path / "a file"
    file.write_bytes(os.urandom(20 << 20))  # several parts
    assert run_storage.list_objects("checkpoints") == {}
    entry = run_storage.upload(file, "checkpoints/a file")
    assert entry.matches(file)
    assert run_storage.list_objects("checkpoints") == {"a file": entry}
    assert list(run_storage.list_objects()) == []
    copy = tmp_path / "new folder" / "copy"
    assert run_storage.download("checkpoints/a file", copy).matches(copy)
    assert copy.read_bytes() == file.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert storage.Storage(storage_uri, "runs").list_tree() == {"one/checkpoints/a file": entry}
    assert storage.Storage(storage_uri, "nowhere").list_tree() == {}

    def last_bytes(opened: Any) -> bytes:
        opened.seek(opened.size() - 10)
        return opened.read()

    assert run_storage.examine("checkpoints/a file", last_bytes) == file.read_bytes()[-10:]
    with pytest.raises(RunFailed, match="gone could not be read"):
        run_storage.examine("gone", last_bytes)
    run_storage.write("note", b"one")
    run_storage.write("note", b"another")
    assert run_storage.read("note") == b"another"
    run_storage.write("note.gz", b"as it is")  # pyarrow would compress it, by its name
    assert run_storage.read("note.gz") == b"as it is"
    assert run_storage.examine("note.gz", lambda opened: opened.read()) == b"as it is"
    for _ in range(2):
        run_storage.remove("note")
    assert run_storage.read("note") is None
    with pytest.raises(RunFailed, match="note.*not there"):
        run_storage.download("note", copy)
    assert copy.read_bytes() == file.read_bytes()


def test_half_of_an_object_is_never_there(
    storage_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_storage = storage.of_run(storage_uri, "one")
    file = tmp_path / "epoch_00001.pt"
    file.write_bytes(os.urandom(9 << 20))
    monkeypatch.setattr(storage, "PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(storage, "TRIES", 1)
    real = Path.open

    class Breaks:
        def __init__(self, inner: Any):
            self.inner, self.left = inner, 3

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.close()

        def read(self, size: int) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError(5, "Input/output error")
            return self.inner.read(size)

    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *words, **more: (
            Breaks(real(self, *words, **more)) if self == file else real(self, *words, **more)
        ),
    )
    with pytest.raises(RunFailed, match="could not be put there .*Input/output error"):
        run_storage.upload(file, "checkpoints/epoch_00001.pt")
    assert run_storage.list_objects("checkpoints") == {}


def test_a_storage_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "HURRIED_TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(2))
    assert "no answer" in (storage.access_problem(str(tmp_path)) or "")


def test_another_try_where_that_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sync, failures = os.fsync, [OSError("SLOW_DOWN"), OSError("SLOW_DOWN")]

    def sometimes(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sometimes)
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)
    storage.Storage(str(tmp_path)).write("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    assert not failures
