"""A head and a second node of a Ray cluster, both on this host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import free_port

from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.support import processes
from pcl_ray.support.processes import StartedProcess

LIMIT_S = 300
TOKEN = "t" * 32


class TwoNodes:
    """hides: the second has another, empty folder at `hidden`, as without a storage that both see."""

    def __init__(self, place: Path, *, hides: bool, second_cpus: int = 2):
        self.place, self.hidden, self._hides = place, place / "shared", hides
        self._second_cpus, self._seconds = second_cpus, 0
        self.hidden.mkdir()
        self.ports = [free_port() for _ in range(12)]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = variables | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        options = ["--num-cpus", "1", "--port", str(self.ports[0]), "--dashboard-port", str(self.ports[1])]
        command = [*_RAY, "start", "--head", "--block", *options, "--metrics-export-port", str(self.ports[2])]
        self.started = [self._start(command, "head")]
        try:
            self._wait(1)
            self.start_second()
        except BaseException:
            self.end()
            raise

    def start_second(self) -> None:
        """The second node, at the start or in the place of one that was lost."""
        # In one folder of sessions it would remove what the first has unpacked.
        self._seconds += 1
        temporary = self.place / f"temp{self._seconds}"
        temporary.mkdir()
        options = ["--temp-dir", str(temporary), "--num-cpus", str(self._second_cpus)]
        with_ports = (
            "--metrics-export-port",
            "--dashboard-agent-listen-port",
            "--node-manager-port",
            "--object-manager-port",
            "--runtime-env-agent-port",
        )
        for option, port in zip(with_ports, self.ports[3:], strict=False):
            options += [option, str(port)]
        command = [*_RAY, "start", "--block", "--address", f"127.0.0.1:{self.ports[0]}", *options]
        if self._hides:
            script = f"mount -t tmpfs none {self.hidden} && exec {' '.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", script]
        self.started.append(self._start(command, "second"))
        self._wait(2)

    def lose_second(self) -> None:
        """Kills all processes of the second node at once, as when its machine is switched off."""
        leader = psutil.Process(self.started.pop().pid)
        for process in (leader, *leader.children(recursive=True)):
            process.kill()
        leader.wait(LIMIT_S)

    def _start(self, command: list[str], name: str) -> StartedProcess:
        return processes.start(command, self.environment, self.place, self.place / f"{name}.log")

    def _wait(self, nodes: int) -> None:
        cluster, deadline = Cluster(f"http://127.0.0.1:{self.ports[1]}", TOKEN), time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if cluster.alive() and len(cluster.nodes()) == nodes:
                return
            if self.started and self.started[-1].process() is None:
                break
            time.sleep(0.5)
        pytest.fail("\n".join(processes.last_lines(log) for log in self.place.glob("*.log")))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pcl_ray.cli", "train", *words]

    def environment_of(self, home: Path) -> dict[str, str]:
        """For a run that is started on the first node."""
        address = f"127.0.0.1:{self.ports[0]}"
        return self.environment | {"RAY_ADDRESS": address, "PCL_RAY_HOME": str(home)}

    def train(self, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
        """From the first node."""
        return subprocess.run(
            self.command(*words),
            env=self.environment_of(home),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def end(self) -> None:
        for started in reversed(self.started):
            processes.end(started)


_RAY = (sys.executable, "-m", "ray.scripts.scripts")
