from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcl_ray.checkpoints import epoch_files, remote
from pcl_ray.errors import RunFailed
from pcl_ray.support import storage


def test_a_checkpoint_is_fetched_again_only_where_it_is_another(tmp_path: Path) -> None:
    run_storage = storage.of_run(str(tmp_path / "shared"), "one")
    first, second = tmp_path / "here", tmp_path / "there"
    first.mkdir()
    for epoch, content in ((1, b"one"), (2, b"two"), (10, b"ten")):
        path = first / f"epoch_{epoch:05d}.pt"
        path.write_bytes(content)
        remote.upload(run_storage, path, keep=2)
    assert remote.names(run_storage) == ["epoch_00002.pt", "epoch_00010.pt"]
    assert remote.newest(run_storage) == "epoch_00010.pt"
    fetched = remote.download(run_storage, "epoch_00010.pt", second, keep=2)
    number = fetched.stat().st_ino
    assert remote.download(run_storage, "epoch_00010.pt", second, keep=2).stat().st_ino == number
    fetched.write_bytes(b"TEN")  # of as many bytes, from another time
    os.utime(fetched, (1_000_000_000, 1_000_000_000))
    assert remote.download(run_storage, "epoch_00010.pt", second, keep=2).read_bytes() == b"ten"
    (second / "epoch_00011.pt").write_bytes(b"of another run of this name")
    remote.remove_newer(second, "epoch_00010.pt")
    assert [path.name for path in epoch_files.complete(second)] == ["epoch_00010.pt"]


def test_a_checkpoint_that_is_gone_is_no_file(tmp_path: Path) -> None:
    run_storage = storage.of_run(str(tmp_path / "shared"), "one")
    assert remote.newest(run_storage) is None
    with pytest.raises(RunFailed, match="epoch_00001.pt was there a moment ago"):
        remote.download(run_storage, "epoch_00001.pt", tmp_path / "local", keep=2)
