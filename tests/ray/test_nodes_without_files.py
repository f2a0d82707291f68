"""Nodes that share nothing but a storage of objects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port
from small import DIGITS_RUN
from storages import STORAGE

from pcl_ray.checkpoints import remote
from pcl_ray.support import storage
from pcl_ray.support.paths import home

_NODE = """
mount -t tmpfs none "$PCL_RAY_HOME" && exec ray start --address=127.0.0.1:{port} --num-cpus=1 --block
"""


def _own_mounts() -> bool:
    try:
        return (
            subprocess.run(
                ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, timeout=20
            ).returncode
            == 0
        )
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _own_mounts(), reason="needs the right to give processes file systems of their own")
def test_nodes_that_share_no_files(tmp_path: Path, bucket: str) -> None:
    """Three nodes of one machine, of which two see an empty PCL_RAY_HOME of their own."""
    home().mkdir(parents=True)
    port = free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    head = [
        "ray",
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--block",
    ]
    nodes: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "nodes.log").open("w") as log:
        try:
            for command in (
                head,
                *(["unshare", "-m", "sh", "-c", _NODE.format(port=port)] for _ in range(2)),
            ):
                nodes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                time.sleep(12)
            environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
            for words in (
                [
                    "digits",
                    *DIGITS_RUN,
                    "resources.workers=2",
                    "train.epochs=2",
                    "--name",
                    "one",
                    STORAGE.format(bucket),
                ],
                ["--resume", "one"],
            ):
                ended = subprocess.run(
                    ["pcl-ray", "train", *words], env=environment, capture_output=True, text=True, timeout=300
                )
                assert ended.returncode == 0, ended.stderr
            assert remote.names(storage.of_run(bucket, "one")) == ["epoch_00001.pt", "epoch_00002.pt"]
            assert (home() / "runs/one/checkpoints/epoch_00002.pt").is_file()
        finally:
            for node in reversed(nodes):
                node.terminate()
                try:
                    node.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(node.pid, signal.SIGKILL)
