"""`pcl-ray up` and `down`: a Ray head and an MLflow server on this machine, without containers, that outlive
the command.

PCL_RAY_HOME/service/  up.json (what runs, under which numbers)  ray_token  ray.log  mlflow.log  lock

Both listen on the loopback address alone, unless told otherwise; Ray asks for a token in any case, since its
Jobs API runs whatever it is sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path

from pcl_ray import tracking
from pcl_ray.cluster import head_checks, processes, ray_api
from pcl_ray.cluster.head_checks import Ports as Ports
from pcl_ray.cluster.processes import Known
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.config import TrackingConfig
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import environment as ray_environment
from pcl_ray.runs.folder import home
from pcl_ray.support import redaction
from pcl_ray.tracking import server

LOOPBACK = "127.0.0.1"
_START_S = 180.0
_STOP_JOBS_S = 90.0
_STOP_WAIT_S = 60  # Ray kills a stopped job's driver after 3 s by default; a run then lacks its report
# two workers, the E-step actor and the driver: on a laptop they take turns rather than being refused
_FEWEST_CPUS = 4


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
        known = {name: Known.of(content[name]) if content.get(name) else None for name in ("ray", "mlflow")}
        ports = Ports(**{name: int(port) for name, port in content["ports"].items()})
        return Up(str(content["host"]), ports, str(content["mlflow_uri"]), **known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def up(wish: Wish, say: Callable[[str], None]) -> Up:
    """Starts what does not run yet, and waits until it answers. What runs already stays as it is; what was
    started here ends where the rest fails.

    Raises ConfigError for a port that is taken or a host that must not be opened, RunFailed where something
    does not come up.
    """
    wish = replace(wish, host=LOOPBACK if server.loopback(wish.host) else wish.host)
    with _alone():
        before = recorded()
        runs = (
            {
                name
                for name, known in (("ray", before.ray), ("mlflow", before.mlflow))
                if known and known.process()
            }
            if before
            else set()
        )
        if before and runs:
            _same(before, wish)
        head_checks.check_host(wish.host)
        head_checks.make_token(token_file())
        if before:
            _end_remains(before, runs)
        now = before if before and runs else Up(wish.host, wish.ports, "")
        starts_mlflow = "mlflow" not in runs and _wants_mlflow(now, "ray" in runs)
        head_checks.check_ports(now.host, now.ports, ray="ray" not in runs, mlflow=starts_mlflow)
        try:
            now = (
                _mlflow(now, say)
                if starts_mlflow
                else now
                if now.mlflow_uri
                else replace(now, mlflow_uri=redaction.public_uri(_given_uri()))
            )
            if "ray" not in runs:
                return _ray(now, wish, say)
            _wait_for("Ray", now.cluster, now.ray)
            return now
        except BaseException:
            _undo(runs)
            raise


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


def _end_remains(before: Up, runs: set[str]) -> None:
    """What outlived a server that was killed would hold its port."""
    for name, known in (("ray", before.ray), ("mlflow", before.mlflow)):
        if known and name not in runs:
            processes.end(known)


def _undo(ran_before: set[str]) -> None:
    """Ends what this call started, and forgets it."""
    now = recorded()
    if now is None:
        return
    for name, known in (("ray", now.ray), ("mlflow", now.mlflow)):
        if known and name not in ran_before:
            processes.end(known)
    if ran_before:
        _record(
            replace(
                now,
                ray=now.ray if "ray" in ran_before else None,
                mlflow=now.mlflow if "mlflow" in ran_before else None,
            )
        )
    else:
        (folder() / "up.json").unlink(missing_ok=True)


@contextmanager
def _alone() -> Iterator[None]:
    """One `up` or `down` at a time."""
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder() / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"PCL_RAY_HOME = {str(home())!r} cannot be written ({error.strerror}); set PCL_RAY_HOME to a"
            " folder of yours"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("another `pcl-ray up` or `down` is under way; wait for it") from None
        yield


def _same(before: Up, wish: Wish) -> None:
    if (wish.host, wish.ports) != (before.host, before.ports):
        raise ConfigError(
            f"a Ray head of ours runs at {before.host} already, with other ports or another host; `pcl-ray"
            " down` first"
        )


def _token_or_none() -> str:
    try:
        return ray_api.read_token(token_file())
    except (OSError, ValueError):
        return ""


def _given_uri() -> str:
    return tracking.tracking_uri(TrackingConfig(), home())


def _served(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _wants_mlflow(now: Up, ray_runs: bool) -> bool:
    """Whether a server is to be started here. Jobs of a Ray that runs record where it was told to, whatever
    this shell's MLFLOW_TRACKING_URI says.
    """
    if ray_runs:
        return now.mlflow is not None
    given = _given_uri()
    # the address that an earlier `up` has printed
    return not _served(given) or given.rstrip("/") == f"http://{now.host}:{now.ports.mlflow}"


def _mlflow(now: Up, say: Callable[[str], None]) -> Up:
    say("starting    MLflow")
    given = _given_uri()
    # a dead one of ours is started again, whatever the shell says now
    uri = f"sqlite:///{home()}/mlflow/mlflow.db" if _served(given) else given
    artifacts = home() / "mlflow" / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    command, environment = server.server_command(uri, artifacts, host=now.host, port=now.ports.mlflow)
    # Runs without the server use the same store, now or after `down`: an experiment of either must be open to
    # the other.
    command += ["--default-artifact-root", artifacts.as_uri()]
    log = folder() / "mlflow.log"
    known = processes.start(command, environment, artifacts.parent, log)
    address = f"http://{now.host}:{now.ports.mlflow}"
    now = _record(replace(now, mlflow_uri=address, mlflow=known))
    _wait_for("MLflow", f"{address}/health", known)
    return now


def _ray(now: Up, wish: Wish, say: Callable[[str], None]) -> Up:
    ports = now.ports
    say("starting    Ray")
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address",
        now.host,
    ]
    command += [
        "--port",
        str(ports.ray),
        "--dashboard-host",
        now.host,
        "--dashboard-port",
        str(ports.dashboard),
        "--metrics-export-port",
        str(ports.metrics),
    ]
    command += [
        "--num-cpus",
        str(wish.num_cpus if wish.num_cpus is not None else max(os.cpu_count() or 1, _FEWEST_CPUS)),
    ]
    command += ["--num-gpus", str(wish.num_gpus)] if wish.num_gpus is not None else []
    log = folder() / "ray.log"
    known = processes.start(command, _environment(now), folder(), log)
    now = _record(replace(now, ray=known))
    _wait_for("Ray", now.cluster, known)
    return now


def _environment(now: Up) -> dict[str, str]:
    """Of the head, and by it of every job's driver and every worker on it."""
    given = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    }
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        # the jobs have been stopped before; Ray would wait half a minute for their idle processes
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "3",
        "PCL_RAY_HOME": str(home()),
        # with the password that it may hold, which is recorded nowhere
        "MLFLOW_TRACKING_URI": now.mlflow_uri if now.mlflow else _given_uri(),
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        # a job's `python` is the one that has our packages
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return given | ours | (ray_environment.LOOPBACK_ONLY if now.host == LOOPBACK else {})


def _wait_for(what: str, whom: str | Cluster, known: Known | None) -> None:
    """Until this address answers, or the cluster has a node. Raises RunFailed where the process ends or that
    takes too long.
    """
    deadline = time.monotonic() + _START_S
    while known is not None and known.process() and time.monotonic() < deadline:
        try:
            if _answers(whom) if isinstance(whom, str) else whom.alive() and whom.nodes():
                return
        except RunFailed:
            pass
        except ConfigError:  # a cluster that does not take our token is another one
            break
        time.sleep(0.2)
    log = folder() / f"{what.lower()}.log"
    why = (
        f"did not answer within {_START_S:.0f} s"
        if known is not None and known.process()
        else "ended at once"
    )
    raise RunFailed(f"{what} {why}; the end of {log}:\n{processes.last_lines(log)}")


def _answers(address: str) -> bool:
    try:
        with ray_api.opened(address, 5.0) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


def _stop_jobs(cluster: Cluster, say: Callable[[str], None]) -> None:
    """So that runs end as stopped, with their checkpoints. One that cannot be told does not keep the others
    from it.
    """
    waiting = _under_way(cluster)
    if waiting:
        say(f"stopping    {len(waiting)} job{'s' * (len(waiting) > 1)}")
    for number in waiting:
        with suppress(RunFailed, ConfigError):
            cluster.stop_job(number)
    deadline = time.monotonic() + _STOP_JOBS_S
    while _under_way(cluster) and time.monotonic() < deadline:
        time.sleep(0.5)


def _under_way(cluster: Cluster) -> list[str]:
    try:
        return cluster.under_way()
    except (RunFailed, ConfigError):
        return []


def _record(now: Up) -> Up:
    partial = folder() / "up.json.partial"
    partial.write_text(json.dumps(asdict(now), indent=2))
    os.replace(partial, folder() / "up.json")
    return now
