"""`pcl-ray up` and `down`: a Ray head and an MLflow server here, no containers, outliving the command.

PCL_RAY_HOME/service/  up.json (what runs, under which numbers)  ray_token  ray.log  mlflow.log  lock

Both listen on the loopback address alone, unless another is given; Ray asks for a token in any case, since
its Jobs API runs whatever it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from pcl_ray import tracking
from pcl_ray.cluster import head_checks, head_processes
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LOOPBACK, LocalHead, Ports
from pcl_ray.support import processes, redaction
from pcl_ray.support.files import LockHeld, acquire_lock
from pcl_ray.support.paths import home
from pcl_ray.support.text import count
from pcl_ray.tracking import server

_STOP_JOBS_S = 90.0


@dataclass(frozen=True)
class HeadRequest:
    """What `pcl-ray up` is to start. CPUs and GPUs: that Ray gives away, None for this machine's."""

    host: str = LOOPBACK
    ports: Ports = Ports()
    num_cpus: int | None = None
    num_gpus: int | None = None


def up(request: HeadRequest, say: Callable[[str], None]) -> LocalHead:
    """Starts what does not run yet, and waits until it answers. What runs already stays as it is; what was
    started here ends where the rest fails.

    Raises ConfigError for a port in use or a host not to be opened, RunFailed if something does not start.
    """
    if server.loopback(request.host):
        request = replace(request, host=LOOPBACK)
    with _alone():
        before = local_head_record.read()
        running = _running(before)
        if before and running:
            _check_same(before, request)
        head_checks.check_host(request.host)
        head_checks.make_token(local_head_record.token_file())
        if before:
            _end_except(before, running)
        head = before if before and running else LocalHead(request.host, request.ports, mlflow_uri="")
        starts_mlflow = "mlflow" not in running and _needs_mlflow(head, "ray" in running)
        head_checks.check_ports(head.host, head.ports, ray="ray" not in running, mlflow=starts_mlflow)
        try:
            if starts_mlflow:
                say("starting    MLflow")
                head = head_processes.start_mlflow(head)
            elif not head.mlflow_uri:
                uri = redaction.public_uri(head_processes.configured_mlflow_uri())
                head = replace(head, mlflow_uri=uri)
            if "ray" not in running:
                say("starting    Ray")
                return head_processes.start_ray(head, request.num_cpus, request.num_gpus)
            head_processes.wait_for_ray(head)
            return head
        except BaseException:
            _undo(running)
            raise


def down(say: Callable[[str], None]) -> bool:
    """Stops the jobs in good order, then Ray and MLflow. False where nothing ran."""
    with _alone():
        head = local_head_record.read()
        if head is None:
            return False
        if head.ray and head.ray.process():
            _stop_jobs(head_processes.cluster_of(head), say)
        ended = [processes.end(process) for process in (head.ray, head.mlflow) if process]
        local_head_record.remove()
        return any(ended)


def _running(head: LocalHead | None) -> set[str]:
    """Which of "ray" and "mlflow" run."""
    started = {"ray": head.ray, "mlflow": head.mlflow} if head else {}
    return {name for name, process in started.items() if process and process.process()}


def _end_except(head: LocalHead, spared: set[str]) -> None:
    """Ends both but the spared ones, with what outlived a killed server: it would hold its port."""
    for name, process in (("ray", head.ray), ("mlflow", head.mlflow)):
        if process and name not in spared:
            processes.end(process)


def _undo(ran_before: set[str]) -> None:
    """Ends what this call started, and takes it out of the record."""
    head = local_head_record.read()
    if head is None:
        return
    _end_except(head, ran_before)
    if not ran_before:
        local_head_record.remove()
        return
    remaining = replace(
        head,
        ray=head.ray if "ray" in ran_before else None,
        mlflow=head.mlflow if "mlflow" in ran_before else None,
    )
    local_head_record.write(remaining)


@contextmanager
def _alone() -> Iterator[None]:
    """Lets one `up` or `down` run at a time. Raises ConfigError where another one does."""
    folder = local_head_record.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = acquire_lock(folder / "lock")
    except OSError as error:
        raise ConfigError(
            f"PCL_RAY_HOME = {str(home())!r} cannot be written ({error.strerror}); set PCL_RAY_HOME to a"
            " folder of yours"
        ) from None
    except LockHeld:
        raise ConfigError("another `pcl-ray up` or `down` is under way; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _check_same(before: LocalHead, request: HeadRequest) -> None:
    if (request.host, request.ports) != (before.host, before.ports):
        raise ConfigError(
            f"a Ray head of ours runs at {before.host} already, with other ports or another host; `pcl-ray"
            " down` first"
        )


def _needs_mlflow(head: LocalHead, ray_runs: bool) -> bool:
    """Whether a server is to be started here.

    Jobs of this Ray record in the store that it was started with, whatever MLFLOW_TRACKING_URI says here.
    """
    if ray_runs:
        return head.mlflow is not None
    uri = head_processes.configured_mlflow_uri()
    # the address that an earlier `up` has printed
    return not tracking.is_server(uri) or uri.rstrip("/") == f"http://{head.host}:{head.ports.mlflow}"


def _stop_jobs(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Stops the jobs, so that their runs end as stopped, with their checkpoints.

    A job that cannot be reached does not keep the others from it.
    """
    jobs = _under_way(cluster)
    if jobs:
        say(f"stopping    {count(len(jobs), 'job')}")
    for number in jobs:
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
