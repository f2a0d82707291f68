"""`pcl-ray ui`: a real MLflow server that comes up, is found, and leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import free_port

from pcl_ray import cli
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LocalHead, Ports
from pcl_ray.tracking import dashboard, server

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before any test imports mlflow

HANG = 120  # seconds; a guard against hanging, nothing is timed
UI = """
import sys
from pathlib import Path
from pcl_ray.tracking import server as tracking_server
home = Path(sys.argv[1])
sys.exit(tracking_server.ui(f"sqlite:///{home}/mlflow/mlflow.db", home, "pcl_ray", port=int(sys.argv[2])))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home"
    (folder / "mlflow").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a run of two clusterings, made once: each test takes a copy."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{path}")
    run = client.create_run(client.create_experiment("pcl_ray"))
    for m in range(2):
        client.log_metric(run.info.run_id, f"cluster/{m}/k", 10)
    return path


@pytest.fixture
def store(home: Path, template: Path) -> str:
    shutil.copy(template, home / "mlflow" / "mlflow.db")
    return f"sqlite:///{home}/mlflow/mlflow.db"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]


def test_it_serves_until_it_is_told_to_end_and_leaves_nothing(home: Path, store: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", UI, str(home), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    guard = threading.Timer(HANG, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(3 + dashboard.installed())]
        if shown[-1] != "Ctrl-C ends it\n":
            pytest.fail(f"{shown} {process.communicate()}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert b"<title>MLflow" in page.read()
        began = {member for child in children(process.pid) for member in [child, *children(child)]}
        assert len(began) >= 2, "the server, and the one that it started"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # impatience leaves nothing behind either
        _, wrong = process.communicate(timeout=HANG)
    finally:
        guard.cancel()
        process.kill()
    page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey="
    own = [line for line in shown if line.startswith(f"runs        http://127.0.0.1:{port}/pcl ")]
    assert len(own) == dashboard.installed()
    assert shown[len(own) :][:2] == [
        f"dashboard   {page}pcl&compareRunsMode=CHART\n",
        f"all trials  {page}pcl-all\n",
    ]
    assert wrong == ""
    assert process.returncode == 0
    assert not [pid for pid in began if Path(f"/proc/{pid}").exists()]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_means_the_end_is_one(ending: signal.Signals) -> None:
    before = signal.getsignal(ending)
    with server.ended_by_signals():
        os.kill(os.getpid(), ending)
        threading.Event().wait(HANG)
        pytest.fail("the signal was not heard")
    assert signal.getsignal(ending) == before


@pytest.mark.slow
def test_the_server_of_up_is_named_and_no_other_started(
    home: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (home / "service").mkdir()
    ports = Ports(mlflow=free_port())
    with server.serving(
        store, home / "mlflow/artifacts", host="127.0.0.1", port=ports.mlflow, home=home
    ) as running:
        local_head_record.write(LocalHead("127.0.0.1", ports, running.address, mlflow=running.started))
        assert cli.main(["ui"]) == 0
    printed = capsys.readouterr().out
    assert f"dashboard   {running.address}/#/experiments/1/runs?workflowType=machine_learning" in printed
    assert "Ctrl-C" not in printed
    assert (f"runs        {running.address}/pcl" in printed) == dashboard.installed()


def test_a_taken_port_is_a_mistake_where_it_was_chosen(home: Path, store: str, taken: int) -> None:
    with pytest.raises(
        ConfigError, match=f"port {taken} cannot be had at 127.0.0.1.*Address already in use.*--port"
    ):
        server.ui(store, home, "pcl_ray", port=taken)


def test_without_a_choice_the_next_free_port_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PORT", taken)
    assert taken < server.free_port("127.0.0.1", None) < taken + 50
    monkeypatch.setattr(server, "PORTS_TRIED", 1)
    with pytest.raises(ConfigError, match=f"none of the ports {taken} to {taken}"):
        server.free_port("127.0.0.1", None)


@pytest.mark.parametrize(
    ("host", "port"), [("no such host", 5000), ("127.0.0.1", 70000), ("203.0.113.7", 5000)]
)
def test_places_that_nothing_can_listen_at(home: Path, store: str, host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="5000|70000: a port is a number"):
        server.ui(store, home, "pcl_ray", host=host, port=port)


def test_a_database_of_another_version_is_told_how_to_upgrade(home: Path, store: str) -> None:
    with sqlite3.connect(home / "mlflow" / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '0c779009ac13'")
    with pytest.raises(ConfigError, match="written by another version of MLflow") as told:
        server.ui(store, home, "pcl_ray")
    assert f"-m mlflow db upgrade '{store}'" in str(told.value)


def test_a_file_that_is_no_database(home: Path) -> None:
    (home / "mlflow" / "mlflow.db").write_text(
        "not a database, but long enough to be looked at as one " * 100
    )
    with pytest.raises(ConfigError, match="MLflow cannot use sqlite:.*not a database"):
        server.ui(f"sqlite:///{home}/mlflow/mlflow.db", home, "pcl_ray")


def test_stores_that_have_a_dashboard_of_their_own(home: Path) -> None:
    with pytest.raises(ConfigError, match="dashboard of its own"):
        server.ui("databricks", home, "pcl_ray")


def test_a_server_that_ends_at_once_says_why(home: Path, taken: int) -> None:
    with (
        pytest.raises(RunFailed, match="ended at once, exit code"),
        server.serving("nonsense://", home / "artifacts", host="127.0.0.1", port=free_port()),
    ):
        pass


def test_a_server_elsewhere_is_only_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert server.ui(f"http://me:secret@127.0.0.1:{free_port()}", home, "pcl_ray") == 0
    printed = capsys.readouterr()
    assert "/#/experiments?workflowType=machine_learning" in printed.out
    assert "does not answer" in printed.err
    assert "secret" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("box.lan", False),
    ],
)
def test_only_this_machine_unless_another_host_is_asked_for(host: str, inside: bool) -> None:
    said = server.allowed_hosts(host, 5000)
    if inside:
        assert said == []
        return
    hosts, origins = said[1].split(","), said[3].split(",")
    assert {"localhost:5000", "127.0.0.1:5000", "[::1]:5000", f"{socket.gethostname()}:5000"} <= set(hosts)
    assert ("box.lan:5000" in hosts) == (host == "box.lan")
    assert origins == [f"http://{name}" for name in hosts]
    assert "*" not in said[1] + said[3]
    assert "0.0.0.0" not in said[1]


def test_other_hosts_are_warned_of_and_can_use_the_page(
    home: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page asks for runs by POST, which MLflow refuses under names that it was not given."""
    port, name = free_port(), "box.lan"
    monkeypatch.setattr(server.socket, "gethostname", lambda: name)
    answers: list[int] = []

    def ask(address: str) -> None:
        root = f"http://{urlsplit(address).netloc}"
        for host in (f"{name}:{port}", "evil.example.com"):
            headers = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
            asked = urllib.request.Request(
                f"{root}/ajax-api/2.0/mlflow/runs/search", b'{"experiment_ids": ["1"]}', headers
            )
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    answers.append(answer.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", ask)
    assert server.ui(store, home, "pcl_ray", host="0.0.0.0", port=port, open_browser=True) == 0
    assert answers == [200, 403]
    assert "can run code on this machine" in capsys.readouterr().err
