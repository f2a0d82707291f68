"""`pcl-ray ui`: MLflow's dashboard on what the runs wrote, and the address where to look first.

For a server elsewhere that is all. For a database one is started beside this process, in a process group of
its own, and ended with it.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_ray.config import figures
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.support import processes, redaction, telemetry
from pcl_ray.support.processes import StartedProcess
from pcl_ray.tracking import dashboard, saved_views
from pcl_ray.tracking.address import is_server
from pcl_ray.tracking.client import open_client, set_defaults

FIRST_PORT = 5000
PORTS_TRIED = 50
_START_S = 180.0  # it imports for ten seconds on a free machine, and may have tables to make
_END_S = 10.0
_RUNS_READ = 200
_VARIABLES = telemetry.OFF | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"  # another process, for what no run of ours needs
}


def ui(
    uri: str,
    home: Path,
    experiment: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
) -> int:
    """Shows the dashboard of this store until Ctrl-C or SIGTERM; for a server elsewhere it prints the address
    and comes back. Gives the exit code.

    Raises ConfigError for a port, a host or a database that cannot be used, RunFailed where the server does
    not come up or ends by itself.
    """
    if is_server(uri):
        _show(redaction.public_uri(uri), *_prepare(uri, experiment), open_browser)
        return 0
    if uri.partition("+")[0].partition(":")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        raise ConfigError(
            f"pcl-ray ui shows what lies in a database or on an MLflow server; {redaction.public_uri(uri)}"
            " has a dashboard of its own"
        )
    port = free_port(host, port)
    if not loopback(host):
        print(
            f"warning: whoever reaches {host}:{port} reads all runs, and who writes to MLflow can run code"
            " on this machine. Safer: leave --host out, and on the other machine  ssh -N -L"
            f" {port}:127.0.0.1:{port} {socket.gethostname()}",
            file=sys.stderr,
        )
    experiment_id, views = _prepare(uri, experiment)
    artifacts = home.absolute() / "mlflow" / "artifacts"
    with ended_by_signals(), serving(uri, artifacts, host=host, port=port, home=home) as server:
        _show(server.address, experiment_id, views, open_browser)
        print("Ctrl-C ends it", flush=True)
        code = server.process.wait()
        raise RunFailed(f"the MLflow server ended by itself, exit code {code}\n{server.last_lines()}")
    return 0


@dataclass(frozen=True)
class Server:
    """An MLflow server that this process has started."""

    address: str
    process: subprocess.Popen[bytes]
    started: StartedProcess  # the same process, also for others than its parent
    log: Path

    def last_lines(self) -> str:
        return redaction.scrubbed(processes.last_lines(self.log))

    def end(self) -> None:
        """Ends the server and everything that it started: politely, and after a while by force."""
        processes.end(self.started, _END_S)
        self.process.wait()


def start(
    uri: str,
    artifacts: Path,
    *,
    host: str,
    port: int,
    log: Path,
    home: Path | None = None,
    direct_artifacts: bool = False,
) -> Server:
    """Starts an MLflow server on this store, in a session of its own, and does not wait until it answers.

    log: what it prints. home: whose runs its first page shows; None: PCL_RAY_HOME's. direct_artifacts: runs
    that use the store without this server can read and write the artifacts of experiments that are made
    through it, because those name the folder itself.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", host, "--port", str(port), "--artifacts-destination", artifacts.as_uri()]
    command += ["--app-name", dashboard.APP_NAME] if dashboard.installed() else []
    command += allowed_hosts(host, port)
    if direct_artifacts:
        command += ["--default-artifact-root", artifacts.as_uri()]
    # the store's address goes by the environment: a password in it must not be seen among the processes
    variables = redaction.without_credentials(dict(os.environ)) | _VARIABLES
    variables["MLFLOW_BACKEND_STORE_URI"] = uri
    if home is not None:
        variables["PCL_RAY_HOME"] = str(home)
    process = processes.start_child(command, variables, artifacts.parent, log)
    return Server(f"http://{reached_at(host)}:{port}", process, StartedProcess.of_child(process), log)


@contextmanager
def serving(
    uri: str,
    artifacts: Path,
    *,
    host: str,
    port: int,
    home: Path | None = None,
    start_timeout_s: float = _START_S,
) -> Iterator[Server]:
    """An MLflow server on this store, once it answers; it ends with the block.

    Raises RunFailed if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="pcl_ray_mlflow_") as folder:
        server = start(uri, artifacts, host=host, port=port, log=Path(folder, "mlflow.log"), home=home)
        try:
            wait_for(server, start_timeout_s)
            yield server
        finally:
            server.end()


def wait_for(server: Server, timeout_s: float) -> None:
    """Returns when the server answers. Raises RunFailed where it ends before, or takes too long."""
    deadline = time.monotonic() + timeout_s
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    if (code := server.process.poll()) is None:
        reason = f"did not answer within {timeout_s:.0f} s"
    else:
        reason = f"ended at once, exit code {code}"
    raise RunFailed(f"the MLflow server at {server.address} {reason}\n{server.last_lines()}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ends the block without an error at Ctrl-C, SIGTERM or a closed terminal. The server is in another group
    and gets none of these signals by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 1:  # a second one must not leave the server half ended
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    earlier_handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, end)
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, if it is free; else the first free one. Raises ConfigError."""
    if wanted is not None and not 0 <= wanted <= 65535:
        raise ConfigError(f"--port {wanted}: a port is a number from 0 (any free one) to 65535")
    reason = ""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if wanted is None else [wanted]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as probe:
                # as servers do: what has just ended is no hindrance
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return probe.getsockname()[1]
        except socket.gaierror as error:
            raise ConfigError(f"no server can listen at {host}:{port}: {error}") from None
        except OSError as error:
            reason = error.strerror or str(error)
    if wanted is None:
        raise ConfigError(
            f"none of the ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} is free at {host} ({reason});"
            " choose one by --port"
        )
    raise ConfigError(
        f"port {wanted} cannot be had at {host} ({reason}); choose another --port, or leave it out"
    )


def loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at this host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def reached_at(host: str) -> str:
    """The name by which this machine's browser reaches a server that listens at this host."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def allowed_hosts(host: str, port: int) -> list[str]:
    """The options by which a server that other machines reach learns its names, each with the port: by itself
    MLflow answers this machine only, and its page may change things only under names that the server knows.
    """
    if loopback(host):
        return []
    names = {host, socket.gethostname(), socket.getfqdn()} - {"0.0.0.0", "::"}
    with suppress(OSError):
        names |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    hosts = [f"{reached_at(name)}:{port}" for name in sorted({*names, "localhost", "127.0.0.1", "::1"})]
    origins = [f"http://{host}" for host in hosts]
    return ["--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]


def _prepare(uri: str, experiment: str) -> tuple[str | None, bool]:
    """Writes our saved views where the experiment has none. Gives back the experiment's number, None where
    there is no such experiment, and whether it has the views.

    A server that does not answer changes only the address that is shown. Raises ConfigError for a database
    that MLflow here cannot use.
    """
    set_defaults(retries=1)
    from mlflow.exceptions import MlflowException

    try:
        client = open_client(uri, retries=1)
        entry = client.get_experiment_by_name(experiment)
        if entry is None or entry.lifecycle_stage != "active":
            return None, False
        number = entry.experiment_id
        with suppress(MlflowException):
            saved_views.ensure(
                client, number, saved_views.version_at(uri), clusterings=_clusterings(client, number)
            )
        return number, saved_views.shown(client.get_experiment(number).tags)
    except Exception as error:
        if is_server(uri):
            print(
                f"warning: {redaction.public_uri(uri)} does not answer ({redaction.error_line(error, uri)})",
                file=sys.stderr,
            )
            return None, False
        raise ConfigError(_unusable(uri, error)) from None


def _clusterings(client: Any, experiment_id: str) -> int:
    runs = client.search_runs([experiment_id], max_results=_RUNS_READ)
    return max((len(figures.clusterings_in(run.data.metrics)) for run in runs), default=0)


def _unusable(uri: str, error: Exception) -> str:
    """Why a database cannot be shown, and what to do about it."""
    public = redaction.public_uri(uri)
    if "database schema" not in str(error):
        return f"MLflow cannot use {public}: {redaction.error_line(error, uri)}"
    command = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(public)}"
    return (
        f"{public} was written by another version of MLflow. If it was an older one: end all runs, copy the"
        f" database, then\n  {command}\nIf it was a newer one: install that version"
    )


def _show(address: str, experiment_id: str | None, views: bool, open_browser: bool) -> None:
    first = f"{address.rstrip('/')}/#/experiments?workflowType=machine_learning"
    if experiment_id is not None:
        first = saved_views.link(
            address, experiment_id, view=saved_views.RUNS if views else None, charts=True
        )
    own = f"{address.rstrip('/')}{dashboard.PATH}" if dashboard.served(address) else None
    if own is not None:
        print(f"runs        {own}   (begin here: it also tells the browser how to open MLflow's pages)")
    print(f"dashboard   {first}")
    if views and experiment_id is not None:
        print(f"all trials  {saved_views.link(address, experiment_id, view=saved_views.ALL_RUNS)}")
    sys.stdout.flush()
    first = own or first
    if open_browser:
        with suppress(webbrowser.Error):
            webbrowser.open(first)
