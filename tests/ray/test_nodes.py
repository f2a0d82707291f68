"""Two nodes on one host: the second has another folder at PCL_RAY_HOME, as without a shared storage."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import DIGITS_RUN
from two_nodes import LIMIT_S, TwoNodes

from pcl_ray.on_ray import node_checks as check
from pcl_ray.support import storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("unshare"),
        reason="needs root and unshare, to hide a folder from the second node",
    ),
]


_ASK = """
import sys
from pcl_ray.on_ray import node_checks as nodes
requirements = nodes.Requirements("probe", "content", storage_uri=sys.argv[1], run="one")
print(nodes.examine_node(requirements).folder_problem)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    place = tmp_path_factory.mktemp("nodes")
    both = TwoNodes(place, hides=True)
    try:
        yield both
    finally:
        both.end()


RUN = (
    "resources.workers=2",
    "resources.e_step_cpus=0",
    "train.epochs=2",
    *(word for word in DIGITS_RUN if not word.startswith("train.epochs")),
)


def test_a_node_without_the_storage_ends_the_request(nodes: TwoNodes) -> None:
    ended = nodes.train("digits", *RUN, "--name", "blind", home=nodes.hidden / "home")
    assert ended.returncode == 2, ended.stderr
    assert "does not see" in ended.stderr
    assert "set PCL_RAY_HOME to a folder on storage that all nodes share" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_with_storage_that_both_see_two_nodes_train_together(nodes: TwoNodes, tmp_path: Path) -> None:
    ended = nodes.train("digits", *RUN, "--name", "both", home=tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "epoch 2/2 done" in ended.stdout


def test_checkpoints_on_a_storage_need_no_shared_home(nodes: TwoNodes, tmp_path: Path) -> None:
    """Each node has a copy; the storage's counts. The run ends and is made longer, so that all restore."""
    words = (*RUN, f"resources.storage=file://{tmp_path}/kept")
    ended = nodes.train("digits", *words, "--name", "kept", home=nodes.hidden / "home")
    assert ended.returncode == 0, ended.stderr
    shutil.rmtree(nodes.hidden / "home" / "runs" / "kept" / "checkpoints")
    longer = nodes.train("--resume", "kept", "train.epochs=4", home=nodes.hidden / "home")
    assert longer.returncode == 0, longer.stderr
    assert "going on with epoch 3/4" in longer.stdout


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_node_where_the_storage_is_not_mounted_ends_the_request(
    nodes: TwoNodes, tmp_path: Path, as_uri: bool
) -> None:
    """The second node writes under that path too, into its own folder: ask it for what the driver wrote."""
    shared = nodes.hidden / f"storage{as_uri:d}"
    uri = f"file://{shared}" if as_uri else str(shared)
    ended = nodes.train(
        "digits", *RUN, f"resources.storage={uri}", "--name", "adrift", home=tmp_path / "home"
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "resources.storage" in line]
    one = r"node \S+ \([\d.]+\) cannot use it \(what the driver has just written is not there\)"
    said = rf"resources.storage = {re.escape(repr(uri)[:77])}\S*: {one}"
    assert re.search(said, line), line
    assert (
        "mount it there at the same path, or name a storage that all nodes reach (s3://bucket/path)" in line
    )
    assert "Traceback" not in ended.stderr
    assert [
        path.name for path in (shared / "runs/adrift").iterdir() if path.name.startswith((".seen", "owner"))
    ] == []


def test_a_node_that_may_read_the_storage_but_not_write_it(tmp_path: Path) -> None:
    """Any node may be the one that writes the checkpoints."""
    place = storage.of_run(str(tmp_path), "one")
    place.write("probe", b"content")
    requirements = check.Requirements("probe", "content", storage_uri=str(tmp_path), run="one")
    assert check.examine_node(requirements) == check.NodeReport("", "")
    assert [path.name for path in (tmp_path / "runs/one").iterdir()] == ["probe"]
    script = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && exec {sys.executable}"
        f" -c '{_ASK}' {tmp_path}"
    )
    asked = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert "Read-only file system" in asked.stdout, asked.stderr


def test_a_node_without_the_images_ends_the_request(nodes: TwoNodes, tmp_path: Path) -> None:
    pictures = nodes.hidden / "pictures"
    rng = np.random.default_rng(0)
    for number in range(40):
        file = pictures / "a" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    few = tuple(
        word
        for word in RUN
        if not word.startswith(("data.limit", "e_step.num_clusters", "train.batch_size", "loss.queue_size"))
    )
    words = (
        "folder",
        f"data.path={pictures}",
        "data.in_memory=false",
        *few,
        "e_step.num_clusters=3",
        "train.batch_size=8",
        "loss.queue_size=16",
    )
    ended = nodes.train(*words, "encoder.backbone=small_resnet", "--name", "lacking", home=tmp_path / "home")
    assert ended.returncode == 2, ended.stderr
    assert "does not have these images" in ended.stderr
    assert "data.path" in ended.stderr
    in_memory = nodes.train(
        *words,
        "encoder.backbone=small_resnet",
        "data.in_memory=true",
        "--name",
        "carried",
        home=tmp_path / "home",
    )
    assert in_memory.returncode == 0, in_memory.stderr
