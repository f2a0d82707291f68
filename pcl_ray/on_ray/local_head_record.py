"""The record of what `pcl-ray up` started on this machine, which later commands and runs read.

PCL_RAY_HOME/service/  up.json (what runs, under which process numbers)  ray_token (what this Ray asks for)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pcl_ray.support.files import write_text
from pcl_ray.support.paths import home
from pcl_ray.support.processes import StartedProcess

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The ports of the Ray head, its dashboard, its metrics for Prometheus, and the MLflow server."""

    ray: int = 6379
    dashboard: int = 8265
    metrics: int = 8080
    mlflow: int = 5000


@dataclass(frozen=True)
class LocalHead:
    """What runs, as up.json holds it; `mlflow` is None where a server elsewhere is used."""

    host: str
    ports: Ports
    mlflow_uri: str
    ray: StartedProcess | None = None
    mlflow: StartedProcess | None = None

    @property
    def dashboard_address(self) -> str:
        return f"http://{self.host}:{self.ports.dashboard}"

    @property
    def ray_address(self) -> str:
        return f"{self.host}:{self.ports.ray}"


def folder() -> Path:
    return home() / "service"


def _file() -> Path:
    return folder() / "up.json"


def token_file() -> Path:
    return folder() / "ray_token"


def read() -> LocalHead | None:
    """What `up` started last and `down` has not ended; None where there is no record or a damaged one.

    Whether the processes still run is another question: ask them.
    """
    try:
        content = json.loads(_file().read_text())
        return LocalHead(
            host=str(content["host"]),
            ports=Ports(**{name: int(port) for name, port in content["ports"].items()}),
            mlflow_uri=str(content["mlflow_uri"]),
            ray=StartedProcess.of(content["ray"]) if content.get("ray") else None,
            mlflow=StartedProcess.of(content["mlflow"]) if content.get("mlflow") else None,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def write(head: LocalHead) -> None:
    write_text(_file(), json.dumps(asdict(head), indent=2))


def remove() -> None:
    _file().unlink(missing_ok=True)


def is_lone_head(address: str) -> bool:
    """Whether the Ray at this address is the head of `pcl-ray up`, and no other machine can join it."""
    head = read()
    return head is not None and head.ray_address == address and head.host == LOOPBACK
