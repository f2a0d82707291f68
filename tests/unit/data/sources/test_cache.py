"""The files that a node keeps of shards: made once, whole or not at all, and no more of them than allowed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_files import order, samples, write_folder, write_parquet, write_tar

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.sources import cache
from pcl_ray.data.sources.cache import ShardCache
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.support.files import file_lock
from pcl_ray.support.storage import Storage

KB = 1e-6  # GB


def writer(size: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(bytes(size)) and None


def entries(store: ShardCache) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if not path.name.startswith("."))


def used_at(store: ShardCache, key: str, age_s: float) -> None:
    os.utime(store.folder / key, (time.time() - age_s,) * 2)


def key(number: int) -> str:
    return f"{number:032x}.data"


def test_an_entry_is_written_once(tmp_path: Path) -> None:
    store = ShardCache(1.0)
    assert store.folder == tmp_path / "pcl_ray_home/cache"
    written: list[Path] = []

    def write(path: Path) -> None:
        written.append(path)
        path.write_bytes(b"content")

    assert store.find(key(1)) is None
    for _ in range(3):
        path = store.get(key(1), 7, write, "it")
        assert path.read_bytes() == b"content"
    assert len(written) == 1
    assert store.find(key(1)) == path
    assert written[0] != path


def test_what_fails_half_way_is_not_there() -> None:
    store = ShardCache(1.0)

    def fails(path: Path) -> None:
        path.write_bytes(b"hal")
        raise RunFailed("the line went dead")

    with pytest.raises(DataError, match="it cannot be fetched: the line went dead"):
        store.get(key(1), 7, fails, "it")
    assert entries(store) == []

    def disk_full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"it cannot be kept in .*cache \(No space left on device\)"):
        store.get(key(1), 7, disk_full, "it")
    assert store.get(key(1), 7, writer(7), "it").stat().st_size == 7


def test_the_least_recently_used_go_first() -> None:
    store = ShardCache(10 * KB)
    for number in range(3):
        store.get(key(number), 3000, writer(3000), "it")
        used_at(store, key(number), 1000 - 100 * number)
    cache._noted.clear()  # as another process, or a minute later
    assert store.find(key(0)) is not None  # counts as a use
    store.get(key(3), 3000, writer(3000), "it")
    assert entries(store) == [key(0), key(2), key(3)]
    store.get(key(4), 5000, writer(5000), "it")
    assert entries(store) == [key(3), key(4)]
    with pytest.raises(DataError, match=r"it takes 0\.0 GB of .*cache, and data\.cache_gb = 1e-05; raise it"):
        store.get(key(5), 10_001, writer(10_001), "it")
    assert entries(store) == [key(3), key(4)]


def test_the_limit_holds_for_what_turns_out_larger() -> None:
    store = ShardCache(10 * KB)
    store.get(key(1), 6000, writer(6000), "it")
    used_at(store, key(1), 100)
    path = store.get(key(2), 0, writer(9000), "it")  # nobody knew
    assert entries(store) == [key(2)]
    assert path.exists()


def test_leftovers_of_a_crash_go_and_what_is_being_written_stays() -> None:
    store = ShardCache(10 * KB)
    store.get(key(1), 10, writer(10), "it")
    old, new = store.folder / f"{key(2)}.7-7.partial", store.folder / f"{key(3)}.8-8.partial"
    for path in (old, new):
        path.write_bytes(bytes(9000))
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    store.get(key(4), 5000, writer(5000), "it")
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 4000))
    store = ShardCache(1.0)
    store.get(key(1), 3000, writer(3000), "it")
    with pytest.raises(
        DataError, match=r"takes 5\.0 GB, and the disk of .*cache has 0\.0 GB left; PCL_RAY_HOME"
    ):
        ShardCache(100).get(key(2), 5_000_000_000, writer(1), "the shard")
    assert entries(store) == []  # what could go has gone


def test_others_wait_for_whoever_writes() -> None:
    store, begun, go_on = ShardCache(1.0), threading.Event(), threading.Event()
    written: list[int] = []

    def slowly(path: Path) -> None:
        begun.set()
        assert go_on.wait(60)
        written.append(1)
        path.write_bytes(b"content")

    threads = [threading.Thread(target=store.get, args=(key(1), 7, slowly, "it")) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    assert not (store.folder / key(1)).exists()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert written == [1]


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TIME_LIMIT_S", 0.1)
    store = ShardCache(1.0)
    store.folder.mkdir(parents=True)
    lock = store.folder / f".lock-{cache.hash_of(key(1)) % 256:03d}"
    with (
        file_lock(lock),
        pytest.raises(DataError, match=r"it: another process has been fetching it into .* for 0 s"),
    ):
        store.get(key(1), 7, writer(7), "it")
    assert store.get(key(1), 7, writer(7), "it").exists()


# --- with shards


def shards_in(bucket: str, folder: Path) -> None:
    storage = Storage(bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write(str(path.relative_to(folder)), path.read_bytes())


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
def test_object_storage_gives_the_same_images_as_files(tmp_path: Path, bucket: str, source: str) -> None:
    numbers = order(30)
    straight = DataConfig(source="folder", path=str(write_folder(tmp_path / "f", numbers)))
    for number, part in enumerate((numbers[:11], numbers[11:])):
        if source == "parquet":
            write_parquet(tmp_path / f"d/s-{number}.parquet", part)
        else:
            suffix = (".tar", ".tar.gz")[number]
            write_tar(tmp_path / f"d/s-{number}{suffix}", samples(part), [f"{i:04}" for i in part])
    shards_in(bucket, tmp_path / "d")
    local = DataConfig(source=source, path=f"{tmp_path}/d")
    remote = DataConfig(source=source, path=bucket)
    expected = datasets.load(straight, cache_dir=tmp_path / "checked")
    splits = [datasets.load(config, cache_dir=tmp_path / "checked") for config in (local, remote)]
    assert datasets.sizes(remote) == (len(expected.train), expected.num_holdout)
    assert splits[0].train.fingerprint == splits[1].train.fingerprint
    for other in splits:
        assert other.train.class_names == expected.train.class_names
        assert np.array_equal(other.train.labels, expected.train.labels)
        for i in range(len(expected.train)):
            assert np.array_equal(other.train.read(i), expected.train.read(i))


def test_paths_in_object_storage_are_fetched_with_their_shard(tmp_path: Path, bucket: str) -> None:
    numbers = order(20)
    root = write_folder(tmp_path / "d/pictures", numbers)
    files = sorted(str(path.relative_to(tmp_path / "d")) for path in root.rglob("*.png"))
    folder, _, options = bucket.partition("?")
    whole = [f"{folder}/{files[0]}", *files[1:]]  # an address as well as a path from the shard's folder
    write_parquet(tmp_path / "d/a.parquet", (), file_name=whole, label=[file.split("/")[1] for file in files])
    shards_in(bucket, tmp_path / "d")
    remote = DataConfig(source="parquet", path=f"{folder}/a.parquet?{options}", holdout=0.25)
    splits = datasets.load(remote, cache_dir=tmp_path / "checked")
    assert datasets.sizes(remote) == (len(splits.train), splits.num_holdout) == (15, 5)
    local = DataConfig(source="folder", path=str(root), holdout=0)
    expected = datasets.load(local, cache_dir=tmp_path / "checked")
    by_name = {expected.train.name(i).removeprefix(f"{root}/"): i for i in range(20)}
    for i in range(15):
        image = by_name[splits.train.name(i).rpartition("pictures/")[2]]
        assert np.array_equal(splits.train.read(i), expected.train.read(image))
        assert splits.train.class_names[splits.train.labels[i]] == files[image].split("/")[1]
    left = DataConfig(source="parquet", path=remote.path, holdout=0, exclude=["cat"])
    assert len(datasets.load(left, cache_dir=tmp_path / "checked").train) == sum(
        "/cat/" not in f for f in files
    )
    Storage(bucket).remove(files[3])
    for path in (tmp_path / "pcl_ray_home/cache").glob("*"):
        path.unlink()
    with pytest.raises(
        DataError, match=rf"1 of 20 images cannot be read.*\n.*its file {files[3]} is not there"
    ):
        datasets.load(remote, cache_dir=tmp_path / "checked2")


def test_an_object_is_fetched_once_and_again_only_when_it_went(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "d/a.tar", samples(range(6)))
    shards_in(bucket, tmp_path / "d")
    fetched: list[str] = []
    real = Storage.download

    def noting(self: Storage, key: str, file: Path) -> object:
        fetched.append(key)
        return real(self, key, file)

    monkeypatch.setattr(Storage, "download", noting)
    config = DataConfig(source="webdataset", path=bucket, holdout=0)
    for _ in range(2):
        assert datasets.sizes(config) == (6, 0)
        splits = datasets.load(config, cache_dir=tmp_path / "checked")
        datasets.fetch(splits)
    assert fetched == ["a.tar"]
    for path in (tmp_path / "pcl_ray_home/cache").glob("*.data"):
        path.unlink()
    assert datasets.sizes(config) == (6, 0)  # the index is still there
    assert fetched == ["a.tar"]
    assert splits.train.read(0)[0, 0, 0] == 0
    assert fetched == ["a.tar"] * 2
    Storage(bucket).write("a.tar", b"another version")
    for path in (tmp_path / "pcl_ray_home/cache").glob("*.data"):
        path.unlink()
    with pytest.raises(DataError, match=r"a\.tar.* has changed: it had \d+ bytes and has 15"):
        splits.train.read(0)


def test_data_that_do_not_fit_are_refused_before_a_run(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(20))
    config = DataConfig(source="parquet", path=str(tmp_path), cache_gb=5 * KB)
    for ask in (datasets.sizes, lambda config: datasets.load(config, cache_dir=tmp_path / "checked")):
        with pytest.raises(
            DataError, match=r"takes 0\.0 GB of .*cache, and data\.cache_gb = 5e-06; raise it"
        ):
            ask(config)


READ = """
import sys
from pathlib import Path
from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
splits = datasets.load(DataConfig(source="parquet", path=sys.argv[1], holdout=0), cache_dir=Path(sys.argv[2]))
print(sum(int(splits.train.read(i).sum()) for i in range(len(splits.train))))
"""


def test_processes_that_begin_together_share_one_copy(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(40))
    command = [sys.executable, "-c", READ, str(tmp_path / "a.parquet"), str(tmp_path / "checked")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert len(list((tmp_path / "pcl_ray_home/cache").glob("*.data"))) == 1


OTHER_NODE = """
import pickle, sys
splits = pickle.load(open(sys.argv[1], "rb"))
print(sum(int(splits.train.read(i).sum()) for i in range(len(splits.train))))
"""


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
def test_a_node_that_has_nothing_makes_the_same_copies(tmp_path: Path, bucket: str, source: str) -> None:
    """What a worker on another node gets is the index alone, and it has a cache of its own."""
    if source == "parquet":
        write_parquet(tmp_path / "d/a.parquet", range(20))
    else:
        write_tar(tmp_path / "d/a.tar", samples(range(20)))
        write_tar(tmp_path / "d/b.tar.gz", samples(range(20, 25)))
    shards_in(bucket, tmp_path / "d")
    for path in (bucket, f"{tmp_path}/d"):
        splits = datasets.load(
            DataConfig(source=source, path=path, holdout=0), cache_dir=tmp_path / "checked"
        )
        expected = sum(int(splits.train.read(i).sum()) for i in range(len(splits.train)))
        (tmp_path / "splits.pickle").write_bytes(pickle.dumps(splits))
        ended = subprocess.run(
            [sys.executable, "-c", OTHER_NODE, str(tmp_path / "splits.pickle")],
            env={**os.environ, "PCL_RAY_HOME": str(tmp_path / "other")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.stdout == f"{expected}\n", ended.stderr
    assert list((tmp_path / "other/cache").glob("*.data"))
