"""Two nodes on one host: the second has another folder at PCL_RAY_HOME, as without a shared storage."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import free_port
from small import DIGITS_RUN

from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.on_ray import node_checks as check
from pcl_ray.support import processes, storage
from pcl_ray.support.processes import StartedProcess

LIMIT_S = 300
TOKEN = "t" * 32
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


class Nodes:
    """A head and a second node, that has another folder instead of `hidden`."""

    def __init__(self, place: Path):
        self.place, self.hidden = place, place / "shared"
        self.hidden.mkdir()
        self.ports = [free_port() for _ in range(12)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        head = [
            "start",
            "--head",
            "--block",
            "--num-cpus",
            "1",
            "--port",
            str(self.ports[0]),
            "--dashboard-port",
            str(self.ports[1]),
        ]
        self.started = [
            self._start(
                [
                    sys.executable,
                    "-m",
                    "ray.scripts.scripts",
                    *head,
                    "--metrics-export-port",
                    str(self.ports[2]),
                ],
                "head",
            )
        ]
        self._wait(1)
        (place / "temp").mkdir()
        # In one folder of sessions the second node would remove what the first has unpacked.
        second = [
            "start",
            "--block",
            "--temp-dir",
            str(place / "temp"),
            "--num-cpus",
            "2",
            "--address",
            f"127.0.0.1:{self.ports[0]}",
        ]
        options = (
            "--metrics-export-port",
            "--dashboard-agent-listen-port",
            "--node-manager-port",
            "--object-manager-port",
            "--runtime-env-agent-port",
        )
        second += [
            word
            for option, port in zip(options, self.ports[3:], strict=False)
            for word in (option, str(port))
        ]
        ray = " ".join([sys.executable, "-m", "ray.scripts.scripts", *second])
        self.started.append(
            self._start(
                ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {self.hidden} && exec {ray}"],
                "second",
            )
        )
        self._wait(2)

    def _start(self, command: list[str], name: str) -> StartedProcess:
        return processes.start(command, self.environment, self.place, self.place / f"{name}.log")

    def _wait(self, nodes: int) -> None:
        cluster, deadline = Cluster(f"http://127.0.0.1:{self.ports[1]}", TOKEN), time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if cluster.alive() and len(cluster.nodes()) == nodes:
                return
            time.sleep(0.5)
        pytest.fail("\n".join(processes.last_lines(log) for log in self.place.glob("*.log")))

    def train(self, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
        """From the first node."""
        command = [sys.executable, "-m", "pcl_ray.cli", "train", *words]
        environment = self.environment | {
            "RAY_ADDRESS": f"127.0.0.1:{self.ports[0]}",
            "PCL_RAY_HOME": str(home),
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)

    def end(self) -> None:
        for known in reversed(self.started):
            processes.end(known)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    place = tmp_path_factory.mktemp("nodes")
    both = Nodes(place)
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


def test_a_node_without_the_storage_ends_the_request(nodes: Nodes) -> None:
    ended = nodes.train("digits", *RUN, "--name", "blind", home=nodes.hidden / "home")
    assert ended.returncode == 2, ended.stderr
    assert "does not see" in ended.stderr
    assert "set PCL_RAY_HOME to a folder on storage that all nodes share" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_with_storage_that_both_see_two_nodes_train_together(nodes: Nodes, tmp_path: Path) -> None:
    ended = nodes.train("digits", *RUN, "--name", "both", home=tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "epoch 2/2 done" in ended.stdout


def test_checkpoints_on_a_storage_need_no_shared_home(nodes: Nodes, tmp_path: Path) -> None:
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
    nodes: Nodes, tmp_path: Path, as_uri: bool
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


def test_a_node_without_the_images_ends_the_request(nodes: Nodes, tmp_path: Path) -> None:
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
