from __future__ import annotations

from pathlib import Path

import pytest

from pcl_ray.checkpoints import epoch_files


@pytest.mark.parametrize("epochs", [1, 12, 99_999, 100_000])
def test_a_name_tells_the_epochs(tmp_path: Path, epochs: int) -> None:
    path = epoch_files.path_of(tmp_path, epochs)
    assert epoch_files.is_complete(path.name)
    assert epoch_files.epochs_done(path) == epochs


@pytest.mark.parametrize("name", ["epoch_00001.pt.partial", "epoch_1.pt", ".epoch_00001.pt", "best.pt"])
def test_other_files_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert not epoch_files.is_complete(name)
    assert epoch_files.complete(tmp_path) == []


def test_the_newest_are_kept_by_their_number(tmp_path: Path) -> None:
    for epochs in (99_999, 100_000, 7):
        epoch_files.path_of(tmp_path, epochs).touch()
    assert epoch_files.latest(tmp_path) == tmp_path / "epoch_100000.pt"
    epoch_files.prune(tmp_path, keep=2)
    assert [path.name for path in epoch_files.complete(tmp_path)] == ["epoch_99999.pt", "epoch_100000.pt"]
    epoch_files.prune(tmp_path / "missing", keep=2)
