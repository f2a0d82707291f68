"""Files that several processes write and read: whole or not at all, and one holder of a lock at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pcl_ray.support.files import (
    WAIT_FOREVER,
    LockHeld,
    acquire_lock,
    atomic_file,
    file_lock,
    is_unlocked,
    sync_to_disk,
    write_text,
)

HOLDER = """
import sys, time
from pathlib import Path
from pcl_ray.support.files import acquire_lock
lock = acquire_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the lock of `path`, once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# --- writing ---


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for text in ("one", "zwei ü"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["state.json"]


def test_what_utf8_cannot_hold_is_replaced_on_request(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "folder \udcff")
    assert not list(tmp_path.iterdir())
    write_text(path, "folder \udcff", errors="replace")
    assert path.read_text() == "folder ?"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_file_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_folder_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "file", "text")


@pytest.mark.parametrize("only_writer", [False, True])
def test_a_process_that_is_killed_before_the_file_is_renamed(tmp_path: Path, only_writer: bool) -> None:
    """The old content stays; a large file of a single writer does not pile up its remains."""
    path = tmp_path / "epoch_00001.pt"
    write_text(path, "old")
    killed = f"""
import os
from pathlib import Path
from pcl_ray.support.files import atomic_file
with atomic_file(Path({str(path)!r}), only_writer={only_writer}) as partial:
    partial.write_text("half")
    os._exit(9)
"""
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert path.read_text() == "old"
    remains = [name for name in os.listdir(tmp_path) if name != path.name]
    assert len(remains) == (1 if only_writer else 2)
    assert all(name.endswith(".partial") for name in remains)
    with atomic_file(path, only_writer=only_writer, sync=True) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    if only_writer:
        assert os.listdir(tmp_path) == [path.name]


def test_remains_that_are_a_link_to_another_file_do_not_change_it(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "epoch_00001.pt"
    other.write_text("a checkpoint")
    os.link(other, tmp_path / "epoch_00001.pt.partial")
    with atomic_file(path, only_writer=True) as partial:
        partial.write_text("new")
    assert (path.read_text(), other.read_text()) == ("new", "a checkpoint")


def test_readers_see_only_whole_files_while_several_threads_write(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = [str(number) * 200_000 for number in range(4)]
    write_text(path, texts[0])
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    def write(text: str) -> None:
        for _ in range(20):
            write_text(path, text)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join(60)
    done.set()
    reader.join(60)
    assert seen
    assert seen <= set(texts)
    assert os.listdir(tmp_path) == ["state.json"]


def test_files_and_folders_can_be_brought_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    sync_to_disk(path)
    sync_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_to_disk(tmp_path / "missing")


# --- locks ---


def test_a_lock_that_another_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = holder(path, 60)
    try:
        assert not is_unlocked(path)
        before = time.monotonic()
        with pytest.raises(LockHeld):
            acquire_lock(path)
        with pytest.raises(LockHeld), file_lock(path, 0.3):
            raise AssertionError
        assert 0.3 <= time.monotonic() - before < 30
    finally:
        other.kill()
        other.wait()
    assert is_unlocked(path)  # a killed process leaves no lock behind
    acquire_lock(path).release()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = holder(path, 0.5)
    try:
        with file_lock(path, WAIT_FOREVER):
            assert other.wait(60) == 0
            assert not is_unlocked(path)
    finally:
        other.kill()
        other.wait()


def test_a_lock_that_another_part_of_this_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = acquire_lock(path)
    with pytest.raises(LockHeld):
        acquire_lock(path)
    assert not is_unlocked(path)
    threading.Thread(target=lock.release).start()  # any thread may give it back
    with file_lock(path, 60.0):
        pass
    lock.release()  # a second release does nothing
    assert is_unlocked(path)


def test_an_error_in_the_block_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(RuntimeError), file_lock(path):
        raise RuntimeError
    assert is_unlocked(path)


def test_the_file_of_a_lock_stays_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("as an older version wrote it")
    with file_lock(path):
        pass
    assert path.read_text() == "as an older version wrote it"


def test_a_file_that_is_not_there_is_not_unlocked(tmp_path: Path) -> None:
    assert not is_unlocked(tmp_path / "lock")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        acquire_lock(tmp_path / "missing" / "lock")


def test_storage_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with file_lock(tmp_path / "lock"):
        acquire_lock(tmp_path / "lock").release()
        assert not is_unlocked(tmp_path / "lock")  # nobody knows
