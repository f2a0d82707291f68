"""Services of `docker/compose.yaml` as processes of this machine, for tests: other hosts, ports and paths."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from composed import DOCKER, ROOT, compose
from processes import free_port

START_S, END_S = 240, 30  # guards against hanging, nothing is timed


class Stack:
    """Services of compose.yaml as processes of this machine. `end` leaves none of them."""

    def __init__(self, folder: Path, prefix: Path):
        self.folder, self.prefix = folder, prefix
        self.services = compose()["services"]
        self.common = {number: free_port() for number in ("6379", "8265", "5000", "5432")}
        self.own = {name: {number: free_port() for number in ("52365", "8080")} for name in self.services}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        # Each node its own, as each container has: in one folder, the second node removes the working
        # directory that the first one's driver is in.
        self.nodes = Path(tempfile.mkdtemp(prefix="pcl_ray_", dir="/tmp"))  # short, since sockets lie below
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        shutil.copytree(DOCKER, folder / "docker", ignore=shutil.ignore_patterns("secrets", "data", ".env"))
        subprocess.run([str(folder / "docker" / "make_secrets.sh")], check=True, timeout=60)
        for name in ("pcl_ray", "artifacts", "user"):
            (folder / name).mkdir()
        shutil.copytree(ROOT / "jobs", folder / "app" / "jobs", ignore=shutil.ignore_patterns("__pycache__"))

    def port(self, number: str, service: str = "") -> str:
        return str(self.common.get(number) or self.own[service][number])

    def native(self, text: str, service: str) -> str:
        """The same words for this machine."""
        ports = self.common | self.own[service]
        text = re.sub(
            r"(^|[:=])(\d{4,5})\b", lambda found: found[1] + str(ports.get(found[2], found[2])), text
        )
        text = re.sub(r"/run/secrets/(\w+)", rf"{self.folder}/docker/secrets/\1.txt", text)
        for there, here in (
            ("/usr/local/bin", self.folder / "docker"),
            ("/var/lib/pcl_ray", self.folder / "pcl_ray"),
            ("/mlartifacts", self.folder / "artifacts"),
        ):
            text = text.replace(there, str(here))
        text = re.sub(r"^postgres$|(?<==)(0\.0\.0\.0|ray-head)(?=:|$)", "127.0.0.1", text)
        return text.replace("//mlflow:", "//127.0.0.1:")

    def environment(self, service: str) -> dict[str, str]:
        """That of the container, and of this machine nothing but where programs are."""
        part = "mlflow" if service == "mlflow" else "ray"
        given = {
            name: self.native(str(value), service)
            for name, value in self.services[service].get("environment", {}).items()
            if value is not None
        }
        path = os.pathsep.join(
            [str(self.prefix / part / "bin"), str(self.folder / "docker"), os.environ["PATH"]]
        )
        return {
            **given,
            "PATH": path,
            "HOME": str(self.folder / "user"),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
        }

    def command(self, service: str) -> list[str]:
        first = (
            ["python", str(self.folder / "docker" / "mlflow_entrypoint.py")]
            if service == "mlflow"
            else ["entrypoint.sh"]
        )
        return [*first, *(self.native(word, service) for word in self.services[service]["command"])]

    def start(self, service: str, *more: str) -> None:
        """Starts it, and waits until its own healthcheck says so."""
        self.launch(service, [*self.command(service), *more], self.environment(service))
        self.wait(service)

    def launch(self, service: str, command: list[str], environment: dict[str, str], **options: Any) -> None:
        with self.log(service).open("ab") as log:
            self.running[service] = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder / "app",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def wait(self, service: str) -> None:
        deadline = time.monotonic() + START_S
        while self.healthcheck(service) != 0:
            said = self.log(service).read_text(errors="replace")[-3000:]
            assert self.running[service].poll() is None, f"{service} ended\n{said}"
            assert time.monotonic() < deadline, f"{service} is not healthy\n{said}"
            time.sleep(0.5)

    def healthcheck(self, service: str) -> int:
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        environment = {**self.environment(service), "PGPORT": self.port("5432")}
        return subprocess.run(
            [self.native(word, service) for word in words], env=environment, capture_output=True, timeout=60
        ).returncode

    def end_one(self, service: str) -> None:
        """As `docker stop`: SIGTERM to the first process, and with it all that it started is gone."""
        process = self.running.pop(service)
        under = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT if service == "postgres" else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        for left in [*under, process]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()

    def left(self) -> list[psutil.Process]:
        """Processes that came with this stack, and are neither ended nor merely to be collected."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.pid in self._before:
                    continue
                if process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)
                else:
                    found.append(process)
        return found

    def end(self) -> None:
        for service in [*self.running][::-1]:
            self.end_one(service)
        deadline = time.monotonic() + END_S
        while (left := self.left()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.2)
        shutil.rmtree(self.nodes, ignore_errors=True)


def answer(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code


def in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
