"""The two processes of `pcl-ray up`: how the MLflow server and the Ray head are started and waited for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

from pcl_ray import tracking
from pcl_ray.cluster import ray_api
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.config import TrackingConfig
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import environment as ray_environment
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LOOPBACK, LocalHead
from pcl_ray.on_ray.starting import warm_head, warm_start
from pcl_ray.support import processes, telemetry
from pcl_ray.support.paths import home
from pcl_ray.support.processes import StartedProcess
from pcl_ray.tracking import server

_START_S = 180.0
_STOP_WAIT_S = 60  # Ray kills a stopped job's driver after 3 s by default; a run then lacks its report
# two workers, the E-step actor and the driver: on a laptop they take turns rather than being refused
_FEWEST_CPUS = 4


def configured_mlflow_uri() -> str:
    """Where runs of this shell are recorded: MLFLOW_TRACKING_URI, or the database under PCL_RAY_HOME."""
    return tracking.tracking_uri(TrackingConfig(), home())


def start_mlflow(head: LocalHead) -> LocalHead:
    """Starts an MLflow server, records it, and waits until it answers. Raises RunFailed."""
    uri = configured_mlflow_uri()
    if tracking.is_server(uri):  # a dead one of ours is started again, whatever the shell says now
        uri = f"sqlite:///{home()}/mlflow/mlflow.db"
    process = server.start(
        uri,
        home() / "mlflow" / "artifacts",
        host=head.host,
        port=head.ports.mlflow,
        log=local_head_record.folder() / "mlflow.log",
        direct_artifacts=True,  # runs use the same store without the server, and after `down`
    ).started
    address = f"http://{head.host}:{head.ports.mlflow}"
    head = replace(head, mlflow_uri=address, mlflow=process)
    local_head_record.write(head)
    _wait_for("MLflow", process, lambda: _answers(f"{address}/health"))
    return head


def start_ray(head: LocalHead, num_cpus: int | None, num_gpus: int | None) -> LocalHead:
    """Starts a Ray head, records it, and waits until it has a node. Raises RunFailed."""
    if num_cpus is None:
        num_cpus = max(os.cpu_count() or 1, _FEWEST_CPUS)
    options = {
        "--node-ip-address": head.host,
        "--port": head.ports.ray,
        "--dashboard-host": head.host,
        "--dashboard-port": head.ports.dashboard,
        "--metrics-export-port": head.ports.metrics,
        "--num-cpus": num_cpus,
    }
    if num_gpus is not None:
        options["--num-gpus"] = num_gpus
    warm = head.host == LOOPBACK and warm_start.is_allowed()
    module = warm_head.__name__ if warm else "ray.scripts.scripts"
    command = [sys.executable, "-m", module, "start", "--head", "--block", "--disable-usage-stats"]
    for option, value in options.items():
        command += [option, str(value)]
    folder = local_head_record.folder()
    head = replace(head, ray=processes.start(command, ray_variables(head), folder, folder / "ray.log"))
    local_head_record.write(head)
    wait_for_ray(head)
    return head


def ray_variables(head: LocalHead) -> dict[str, str]:
    """The environment of the Ray head, and through it of every job's driver and every worker on it."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    }
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(local_head_record.token_file()),
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        # the jobs have been stopped before; Ray would wait half a minute for their idle processes
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "3",
        "PCL_RAY_HOME": str(home()),
        # with the password that it may hold, which is recorded nowhere
        "MLFLOW_TRACKING_URI": head.mlflow_uri if head.mlflow else configured_mlflow_uri(),
        # a job's `python` is the one that has our packages
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    loopback_only = ray_environment.LOOPBACK_ONLY if head.host == LOOPBACK else {}
    return telemetry.OFF | inherited | ours | loopback_only


def cluster_of(head: LocalHead) -> Cluster:
    """The head's dashboard with its token, or without one where the file cannot be read."""
    try:
        token = ray_api.read_token(local_head_record.token_file())
    except (OSError, ValueError):
        token = ""
    return Cluster(head.dashboard_address, token)


def wait_for_ray(head: LocalHead) -> None:
    """Waits until the cluster has a node. Raises RunFailed where the head ends or that takes too long."""
    cluster = cluster_of(head)
    _wait_for("Ray", head.ray, lambda: cluster.alive() and bool(cluster.nodes()))


def _wait_for(name: str, process: StartedProcess | None, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while process is not None and process.process() and time.monotonic() < deadline:
        try:
            if ready():
                return
        except RunFailed:
            pass
        except ConfigError:  # a cluster that does not take our token is another one
            break
        time.sleep(0.2)
    log = local_head_record.folder() / f"{name.lower()}.log"
    runs = process is not None and process.process()
    reason = f"did not answer within {_START_S:.0f} s" if runs else "ended at once"
    raise RunFailed(f"{name} {reason}; the end of {log}:\n{processes.last_lines(log)}")


def _answers(address: str) -> bool:
    try:
        with ray_api.opened(address, 5.0) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False
