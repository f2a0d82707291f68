"""`pcl-ray up` and `down`: a Ray head and an MLflow server on this machine, without containers, that outlive the command.

PCL_RAY_HOME/service/  up.json (what runs, under which numbers)  ray_token  ray.log  mlflow.log  lock

Both listen on the loopback address alone, unless told otherwise; Ray asks for a token in any case, since its Jobs API runs whatever it is sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pcl_ray import tracking, tracking_server
from pcl_ray.config import TrackingConfig
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.service import dashboard, processes, ray_environment
from pcl_ray.service.dashboard import Cluster
from pcl_ray.service.folder import home
from pcl_ray.service.processes import Known

LOOPBACK = "127.0.0.1"
_START_S = 180.0
_STOP_JOBS_S = 90.0
_STOP_WAIT_S = 60  # Ray kills a stopped job's driver after 3 s by default; a run then lacks its report
_FEWEST_CPUS = 4  # two workers, the E-step actor and the driver: on a laptop they take turns rather than being refused


@dataclass(frozen=True)
class Ports:
    ray: int = 6379
    dashboard: int = 8265
    metrics: int = 8080
    mlflow: int = 5000


@dataclass(frozen=True)
class Wish:
    """What `pcl-ray up` was asked for."""

    host: str = LOOPBACK
    ports: Ports = Ports()
    num_cpus: int | None = None
    num_gpus: int | None = None


@dataclass(frozen=True)
class Up:
    """What runs, as up.json keeps it. mlflow: None where a server elsewhere is used."""

    host: str
    ports: Ports
    mlflow_uri: str
    ray: Known | None = None
    mlflow: Known | None = None

    @property
    def cluster(self) -> Cluster:
        return Cluster(f"http://{self.host}:{self.ports.dashboard}", _token_or_none())

    @property
    def ray_address(self) -> str:
        return f"{self.host}:{self.ports.ray}"


def folder() -> Path:
    return home() / "service"


def token_file() -> Path:
    return folder() / "ray_token"


def recorded() -> Up | None:
    """What `up` started last and `down` has not ended; whether it still runs is another question."""
    try:
        content = json.loads((folder() / "up.json").read_text())
        known = {name: Known(**content[name]) if content.get(name) else None for name in ("ray", "mlflow")}
        return Up(content["host"], Ports(**content["ports"]), content["mlflow_uri"], **known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def up(wish: Wish, say: Callable[[str], None]) -> Up:
    """Starts what does not run yet, and waits until it answers. What runs already stays as it is.

    Raises ConfigError for a port that is taken or a host that must not be opened, RunFailed where something does not come up.
    """
    with _alone():
        before = recorded()
        running = {name: bool(known and known.process()) for name, known in (("ray", before.ray), ("mlflow", before.mlflow))} if before else {}
        if before and any(running.values()):
            _same(before, wish)
        _check_host(wish.host)
        _make_token()
        now = before if before and any(running.values()) else Up(wish.host, wish.ports, "")
        now = _mlflow(now, bool(running.get("mlflow")), say)
        _record(now)
        if not running.get("ray"):
            now = _ray(now, wish, say)
            _record(now)
        return now


def down(say: Callable[[str], None]) -> bool:
    """Stops the jobs in good order, then Ray and MLflow. False where nothing ran."""
    with _alone():
        known = recorded()
        if known is None:
            return False
        if known.ray and known.ray.process():
            _stop_jobs(known.cluster, say)
        ended = [processes.end(one) for one in (known.ray, known.mlflow) if one]
        (folder() / "up.json").unlink(missing_ok=True)
        return any(ended)


@contextmanager
def _alone() -> Iterator[None]:
    """One `up` or `down` at a time."""
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder() / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"PCL_RAY_HOME = {str(home())!r} cannot be written ({error.strerror}); set PCL_RAY_HOME to a folder of yours") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("another `pcl-ray up` or `down` is under way; wait for it") from None
        yield


def _same(before: Up, wish: Wish) -> None:
    if (wish.host, wish.ports) != (before.host, before.ports):
        raise ConfigError(f"a Ray head of ours runs at {before.host} already, with other ports or another host; `pcl-ray down` first")


def _check_host(host: str) -> None:
    """Raises ConfigError where others could reach a Ray that asks for no token: whoever does can run code here."""
    if host in ("0.0.0.0", "::", "") or not _is_ours(host):
        raise ConfigError(f"--host {host!r}: give one address of this machine, by which the others of the cluster reach it")
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" and not tracking_server.loopback(host):
        raise ConfigError(
            f"RAY_AUTH_MODE = {os.environ['RAY_AUTH_MODE']}, and {host} can be reached by others: Ray's Jobs API runs whatever it is sent, so it is not "
            "started there without a token. Unset RAY_AUTH_MODE, or leave --host out"
        )


def _is_ours(host: str) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return False
    return True


def _make_token() -> None:
    file = token_file()
    if not file.exists() or not dashboard.read_token(file):
        dashboard.write_token(file, secrets.token_hex(32))
    elif dashboard.open_to_others(file):
        raise ConfigError(f"{file} can be read by others: take it as known, remove it, and start again with a new one (`pcl-ray down`, then `up`)")


def _token_or_none() -> str:
    try:
        return dashboard.read_token(token_file())
    except OSError:
        return ""


def _mlflow(now: Up, running: bool, say: Callable[[str], None]) -> Up:
    uri = tracking.tracking_uri(TrackingConfig(), home())
    if running:
        return now
    if uri.startswith(("http://", "https://")):  # MLFLOW_TRACKING_URI names a server
        return replace(now, mlflow_uri=uri, mlflow=None)
    _check_free(now.host, {"--mlflow-port": now.ports.mlflow})
    say("starting    MLflow")
    artifacts = home() / "mlflow" / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    command, environment = tracking_server.server_command(uri, artifacts, host=now.host, port=now.ports.mlflow)
    log = folder() / "mlflow.log"
    known, process = processes.start(command, environment, artifacts.parent, log)
    address = f"http://{now.host}:{now.ports.mlflow}"
    _wait_for("MLflow", lambda: _answers(f"{address}/health"), known, process, log)
    return replace(now, mlflow_uri=address, mlflow=known)


def _ray(now: Up, wish: Wish, say: Callable[[str], None]) -> Up:
    ports = now.ports
    _check_free(now.host, {"--port": ports.ray, "--dashboard-port": ports.dashboard, "--metrics-port": ports.metrics})
    say("starting    Ray")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address", now.host]
    command += ["--port", str(ports.ray), "--dashboard-host", now.host, "--dashboard-port", str(ports.dashboard), "--metrics-export-port", str(ports.metrics)]
    command += ["--num-cpus", str(wish.num_cpus if wish.num_cpus is not None else max(os.cpu_count() or 1, _FEWEST_CPUS))]
    command += ["--num-gpus", str(wish.num_gpus)] if wish.num_gpus is not None else []
    log = folder() / "ray.log"
    known, process = processes.start(command, _environment(now), folder(), log)
    _wait_for("Ray", lambda: now.cluster.alive() and bool(now.cluster.nodes()), known, process, log)
    return replace(now, ray=known)


def _environment(now: Up) -> dict[str, str]:
    """Of the head, and by it of every job's driver and every worker on it."""
    given = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        "PCL_RAY_HOME": str(home()),
        "MLFLOW_TRACKING_URI": now.mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # a job's `python` is the one that has our packages
    }
    return given | ours | (ray_environment.LOOPBACK_ONLY if now.host == LOOPBACK else {})


def _check_free(host: str, ports: dict[str, int]) -> None:
    for option, port in ports.items():
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                raise ConfigError(f"port {port} cannot be had at {host} ({error.strerror}): is another Ray or MLflow there? Choose another {option}") from None


def _wait_for(what: str, ready: Callable[[], Any], known: Known, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RunFailed, and leaves nothing behind, where it ends or does not answer in time."""
    deadline = time.monotonic() + _START_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(RunFailed):
                if ready():
                    return
            time.sleep(0.2)
        why = f"did not answer within {_START_S:.0f} s" if process.returncode is None else f"ended at once, exit code {process.returncode}"
    except BaseException:
        processes.end(known)
        raise
    processes.end(known)
    raise RunFailed(f"{what} {why}; the end of {log}:\n{processes.last_lines(log)}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _stop_jobs(cluster: Cluster, say: Callable[[str], None]) -> None:
    """So that runs end as stopped, with their checkpoints."""
    with suppress(RunFailed, ConfigError):
        waiting = cluster.under_way()
        if waiting:
            say(f"stopping    {len(waiting)} job{'s' * (len(waiting) > 1)}")
        for number in waiting:
            cluster.stop_job(number)
        deadline = time.monotonic() + _STOP_JOBS_S
        while cluster.under_way() and time.monotonic() < deadline:
            time.sleep(0.5)


def _record(now: Up) -> None:
    partial = folder() / "up.json.partial"
    partial.write_text(json.dumps(asdict(now), indent=2))
    os.replace(partial, folder() / "up.json")
