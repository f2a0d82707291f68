from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reported import digits_snapshot, history

from pcl_ray.config import load
from pcl_ray.errors import ConfigError
from pcl_ray.runs import record_reader
from pcl_ray.runs.folder import SNAPSHOT_FILE, RunFolder
from pcl_ray.snapshot import save_snapshot
from pcl_ray.support.paths import home

CONFIG = load("digits", ["e_step.num_clusters=30,8"])


def run_folder(name: str = "first", **state: Any) -> Path:
    with RunFolder.create(name, CONFIG) as folder:
        folder.write_state(**state)
        return folder.path


def test_a_run_that_has_just_begun_is_under_way_and_has_no_curves() -> None:
    path = run_folder()
    record = record_reader.read("first")
    assert (record.name, record.config) == ("first", CONFIG)
    assert list(record.history) == []
    assert (record.num_images, record.num_clusters, record.class_names) == (0, (), ())
    assert (record.snapshot, record.thumbnails) == (None, None)
    assert path == home() / "runs" / "first"


def test_what_the_run_wrote_is_in_its_record() -> None:
    run_folder(
        state="failed",
        error="no room",
        num_images=1797,
        num_clusters=[30, 8],
        class_names=["zero", "one"],
        versions={"torch": "2"},
        command="pcl-ray train digits",
    )
    record = record_reader.read("first", history(3))
    assert (record.state, record.error, record.num_images) == ("failed", "no room", 1797)
    assert (record.num_clusters, record.class_names) == ((30, 8), ("zero", "one"))
    assert (record.versions, record.command) == ({"torch": "2"}, "pcl-ray train digits")
    assert [entry["epoch"] for entry in record.history] == [0, 1, 2]


def test_the_snapshot_comes_with_its_pictures() -> None:
    path = run_folder()
    snapshot, thumbnails = digits_snapshot()
    save_snapshot(path / SNAPSHOT_FILE, snapshot, thumbnails)
    record = record_reader.read("first")
    assert record.snapshot is not None
    assert record.thumbnails is not None
    assert (record.snapshot.epoch, len(record.snapshot.clusterings)) == (6, 2)
    assert (record.thumbnails.pixels == thumbnails.pixels).all()


def test_passwords_that_an_earlier_version_wrote_do_not_reach_the_record() -> None:
    address = "https://me:hunter2@host/mlflow"
    run_folder(error=f"no answer from {address}", command=f"train tracking.uri={address}", link=address)
    record = record_reader.read("first")
    assert all("hunter2" not in text for text in (record.error, record.command, record.link))
    assert "host/mlflow" in record.link


def test_a_run_is_read_by_its_name_or_its_folder(tmp_path: Path) -> None:
    path = run_folder()
    assert record_reader.folder_of("first") == path
    assert record_reader.folder_of(str(path)) == path
    assert record_reader.folder_of(f"{path}/") == path
    moved = path.rename(tmp_path / "elsewhere")
    assert record_reader.folder_of(str(moved)) == moved
    assert record_reader.read(str(moved)).name == "elsewhere"


def test_a_run_that_is_not_there_is_said_with_the_one_that_may_be_meant() -> None:
    run_folder()
    with pytest.raises(ConfigError, match="there is no run 'frist'.*did you mean 'first'"):
        record_reader.read("frist")
