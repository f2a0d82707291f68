"""What one node finds out about itself; that every node is asked is shown in tests/ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcl_ray.data.sources.shards import Shard
from pcl_ray.on_ray.node_checks import NodeReport, Requirements, examine_node
from pcl_ray.support import storage


@pytest.mark.parametrize(
    ("written", "problem"),
    [("content", ""), ("of another run", "another file is there"), (None, "No such file or directory")],
)
def test_a_folder_is_shared_where_the_driver_s_file_is_seen(
    tmp_path: Path, written: str | None, problem: str
) -> None:
    probe = tmp_path / "probe"
    if written is not None:
        probe.write_text(written)
    assert examine_node(Requirements(str(probe), "content")) == NodeReport(problem, "")


def test_a_storage_is_read_before_it_is_written(tmp_path: Path) -> None:
    requirements = Requirements("probe", "content", storage_uri=str(tmp_path / "shared"), run="one")
    assert "just written is not there" in examine_node(requirements).folder_problem
    assert not (tmp_path / "shared").exists()
    storage.of_run(str(tmp_path / "shared"), "one").write("probe", b"content")
    assert examine_node(requirements) == NodeReport("", "")
    assert [path.name for path in (tmp_path / "shared/runs/one").iterdir()] == ["probe"]


def test_shards_are_known_by_their_size(tmp_path: Path, bucket: str) -> None:
    probe, local, remote = tmp_path / "probe", tmp_path / "a.tar", storage.Storage(bucket)
    probe.write_text("content")
    local.write_bytes(b"12345")
    remote.write("b.tar", b"123456")
    shards = (Shard("a", 5, 1, path=str(local)), Shard("b", 6, 1, storage_uri=bucket, key="b.tar"))

    def problem() -> str:
        return examine_node(Requirements(str(probe), "content", shards=shards)).image_problem

    assert problem() == ""  # whatever their times are on this node
    remote.write("b.tar", b"1")
    assert problem() == f"{shards[1]} has another size there"
    remote.remove("b.tar")
    assert problem() == f"{shards[1]}: No such file"
    local.unlink()
    assert problem() == f"{local}: No such file"


def test_images_are_known_by_their_size(tmp_path: Path) -> None:
    probe, image = tmp_path / "probe", tmp_path / "image.png"
    probe.write_text("content")
    image.write_bytes(b"12345")
    for size, file, problem in (
        (5, image, ""),
        (6, image, f"{image} has another size there"),
        (5, tmp_path / "gone.png", f"{tmp_path}/gone.png: No such file or directory"),
    ):
        report = examine_node(Requirements(str(probe), "content", files=((str(file), size),)))
        assert report == NodeReport("", problem)
