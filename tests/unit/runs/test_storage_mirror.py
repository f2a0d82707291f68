from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from storages import STORAGE, TINY, leased_run

from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.runs import driver, lease, request, storage_mirror
from pcl_ray.runs.folder import Busy, RunFolder
from pcl_ray.support import storage


def test_a_driver_of_this_machine_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    config = request.check("digits", TINY).config
    for pid, refused in ((os.getppid(), True), (gone.pid, False)):
        file = leased_run(tmp_path / "shared", **{**lease.this_process(), "pid": pid})
        with RunFolder.create(f"one{pid}", config) as folder:
            folder.name = "one"
            mirror = storage_mirror.StorageMirror(folder, str(tmp_path / "shared"), pytest.fail)
            if refused:
                with pytest.raises(Busy, match=str(pid)):
                    mirror.__enter__()
                continue
            with mirror:
                assert json.loads(file.read_text())["pid"] == os.getpid()
            assert not file.exists()


def test_a_renewal_that_is_slow_does_not_say_that_a_run_is_trained_which_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, write = threading.Event(), storage.Storage.write

    def slow(run_storage: storage.Storage, key: str, content: bytes) -> storage.ObjectVersion:
        if threading.current_thread().name == "storage-lease" and key == "owner.json":
            begun.set()
            time.sleep(1.0)
        return write(run_storage, key, content)

    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(storage.Storage, "write", slow)
    with RunFolder.create("one", request.check("digits", TINY).config) as folder:
        mirror = storage_mirror.StorageMirror(folder, str(tmp_path / "shared"), pytest.fail, new=True)
        with mirror:
            assert begun.wait(60)
        for thread in threading.enumerate():
            if thread.name == "storage-lease":
                thread.join(60)
    assert not (tmp_path / "shared/runs/one/owner.json").exists()


@pytest.mark.parametrize(
    "failure", [RunFailed("the network is away"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_a_run_that_did_not_start_is_free_at_once(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = leased_run(tmp_path / "shared", host="elsewhere", pid=12, machine="another")
    old = time.time() - 2 * lease.FRESH_S
    os.utime(file, (old, old))

    def get(*_: object) -> storage.ObjectVersion:
        raise failure

    monkeypatch.setattr(storage.Storage, "download", get)
    with (
        RunFolder.create("one", request.check("digits", TINY).config) as folder,
        pytest.raises(ConfigError if isinstance(failure, RunFailed) else type(failure)),
        storage_mirror.StorageMirror(folder, str(tmp_path / "shared"), pytest.fail),
    ):
        pytest.fail("it began")
    assert not file.exists()


def test_the_lease_is_removed_where_the_last_files_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    write = storage.Storage.write

    def no_figures(run_storage: storage.Storage, key: str, content: bytes) -> storage.ObjectVersion:
        if key == "figures.csv":
            raise RunFailed("no more figures here")
        return write(run_storage, key, content)

    with (
        RunFolder.create("one", request.check("digits", TINY).config) as folder,
        storage_mirror.StorageMirror(folder, str(tmp_path / "shared"), warnings.append, new=True),
    ):
        (folder.path / "figures.csv").write_text("epoch")
        monkeypatch.setattr(storage.Storage, "write", no_figures)
    assert len(warnings) == 1
    assert "no more figures here" in warnings[0]
    assert not (tmp_path / "shared/runs/one/owner.json").exists()


def test_without_a_storage_there_is_nothing_to_mirror() -> None:
    config = request.check("digits", TINY).config
    with (
        RunFolder.create("one", config) as folder,
        storage_mirror.for_new_run(folder, config, pytest.fail) as mirror,
    ):
        mirror.upload()
        mirror.check_held()
        mirror.download_checkpoint(keep=2)
        assert mirror.checkpoints_address is None


def test_the_environment_names_the_storage_and_the_run_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "shared"))
    config = request.check("digits", TINY).config
    assert config.resources.storage == str(tmp_path / "shared")
    assert request.check(
        "digits", [*TINY, STORAGE.format(tmp_path / "other")]
    ).config.resources.storage == str(tmp_path / "other")
    monkeypatch.delenv(storage.VARIABLE)
    assert request.changed(config, [], "mine") == config
    assert request.changed(config, ["resources.storage=null"], "mine").resources.storage is None
    monkeypatch.setenv(storage.VARIABLE, "not/absolute")
    with pytest.raises(ConfigError, match="PCL_RAY_STORAGE = 'not/absolute'"):
        request.check("digits", TINY)


def test_a_configuration_with_credentials_is_not_gone_on_with(tmp_path: Path) -> None:
    with RunFolder.create("one", request.check("digits", TINY).config):
        pass
    with pytest.raises(ConfigError, match="resources.storage = 's3://bucket/x"):
        driver.resume("one", ["resources.storage=s3://a:b@bucket/x"])
