"""What `pcl-ray doctor` says of a machine: with a real MLflow server, with servers that are none, and with
machines that lack something.
"""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from processes import free_port

from pcl_ray.cluster import machine_check
from pcl_ray.cluster import machine_questions as questions
from pcl_ray.cluster.machine_check import Check
from pcl_ray.clustering.faiss_state import faiss_state
from pcl_ray.tracking import reachability
from pcl_ray.tracking.reachability import reachable

Space = namedtuple("Space", "total used free")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and database of a real server that takes requests for 127.0.0.1 and for no other name."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    database = folder / "mlflow.db"
    place = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--allowed-hosts",
        f"127.0.0.1:{port}",
    ]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *place, *stores],
        stdout=log,
        stderr=log,
        env=quiet,
        cwd=folder,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield port, database
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-2000:])


@contextmanager
def answering(status: int, body: str = "") -> Iterator[int]:
    """A server that says the same to everyone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as here:
        thread = threading.Thread(target=here.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield here.server_address[1]
        finally:
            here.shutdown()
            thread.join()


heard: list[str] = []


# --- tracking
# ------------------------------------------------------------------------------------------


def test_a_server_that_answers(server: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    port, _ = server
    assert reachable(f"http://127.0.0.1:{port}/")[0] == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    found = questions.tracking_store()
    assert found.ok == "ok"
    assert "secret" not in repr(found)


def test_a_server_that_does_not_take_this_name(server: tuple[int, Path]) -> None:
    port, _ = server
    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}/health", headers={"Host": f"localhost:{port}"}),
        timeout=10,
    ).close()  # tells nothing
    level, said, advice = reachable(f"http://localhost:{port}")
    assert level == "failed"
    assert "403" in said
    assert f"--allowed-hosts localhost:{port}" in advice


def test_nothing_at_the_port() -> None:
    level, said, advice = reachable(f"http://127.0.0.1:{free_port()}")
    assert (level, "nothing answers" in said, "mlflow server" in advice) == ("failed", True, True)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "_TIMEOUT_S", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        level, said, _ = reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (level, "does not answer within 0.5 s" in said) == ("failed", True)


@pytest.mark.parametrize(
    ("status", "body", "said", "advice"),
    [
        (401, "who?", "wants credentials", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "does not let this user in", "other credentials"),
        (404, "<h1>Not here</h1>", "no MLflow server", "port"),
        (200, "<html>welcome</html>", "no MLflow server", "port"),
        (503, "<b>no database</b>", "503 (no database)", "log"),
    ],
)
def test_what_servers_answer(status: int, body: str, said: str, advice: str) -> None:
    with answering(status, body) as port:
        level, found, help_with_it = reachable(f"http://127.0.0.1:{port}")
    assert level == "failed"
    assert said in found
    assert advice in help_with_it


def test_credentials_are_sent_as_mlflow_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, "{}") as port:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
        assert reachable(f"http://127.0.0.1:{port}")[0] == "ok"
        assert reachable(f"http://user:p%40ss@127.0.0.1:{port}")[0] == "ok"
    assert heard[-2:] == ["Bearer abc", "Basic dXNlcjpwQHNz"]


def test_a_database_behind_a_port() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as there:
        assert (
            reachable(f"postgresql+psycopg2://me:secret@127.0.0.1:{there.getsockname()[1]}/mlflow")[0] == "ok"
        )
    level, said, _ = reachable(f"postgresql://me:secret@127.0.0.1:{free_port()}/mlflow")
    assert (level, "secret" in said) == ("failed", False)
    assert reachable("databricks://profile")[0] == "ok"


def test_an_sqlite_file(server: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    assert reachable(f"sqlite:///{tmp_path}/not/yet/mlflow.db") == (
        "ok",
        f"{tmp_path}/not/yet/mlflow.db is made by the first run",
        "",
    )
    shutil.copy(server[1], file)
    assert reachable(uri) == ("ok", f"{file}, 0 runs", "")
    monkeypatch.setattr(reachability, "network_file_system", lambda path: "nfs4")
    level, said, advice = reachable(uri)
    assert (level, "nfs4" in said, "mlflow server" in advice) == ("warning", True, True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert reachable(uri)[1].endswith("cannot be written")


@pytest.mark.parametrize(
    ("schema", "told"), [("ffffffffffff", "newer MLflow"), ("451aebb31d03", "older MLflow")]
)
def test_an_sqlite_file_of_another_mlflow(
    server: tuple[int, Path], tmp_path: Path, schema: str, told: str
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(server[1], file)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (schema,))
    level, said, advice = reachable(f"sqlite:///{file}")
    assert (level, told in said, "upgrade" in advice) == ("failed", True, True)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("no database at all, but text of some length" * 20)
    assert "cannot be read as a database" in reachable(f"sqlite:///{tmp_path}/a.db")[1]
    with closing(sqlite3.connect(tmp_path / "b.db")) as database, database:
        database.execute("CREATE TABLE mine (x)")
    assert "no database of MLflow" in reachable(f"sqlite:///{tmp_path}/b.db")[1]
    (tmp_path / "c.db").touch()
    assert reachable(f"sqlite:///{tmp_path}/c.db")[0] == "ok"
    assert "is a folder" in reachable(f"sqlite:///{tmp_path}")[1]


def test_a_tracking_uri_that_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    found = questions.tracking_store()
    assert (found.ok, "sqlite:////" in found.said) == ("failed", True)


# --- packages
# ------------------------------------------------------------------------------------------


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert questions.packages().ok == "ok"
    real = questions.version

    def with_versions(**changed: str | None) -> Check:
        names = {name.replace("_", "-"): value for name, value in changed.items()}
        monkeypatch.setattr(questions, "version", lambda name: names[name] if name in names else real(name))
        return questions.packages()

    assert "mlflow 2.9.0 is not >=3.17" in with_versions(mlflow="2.9.0").said
    assert "optuna is missing" in with_versions(optuna=None).said
    assert "overwrite" in with_versions(faiss_cpu="1.12.0").said
    mixed = with_versions(torch="2.14.1", torchvision="0.28.0")
    assert (mixed.ok, "made for torch 2.13" in mixed.said) == ("failed", True)


@pytest.mark.parametrize(
    ("torch", "torchvision", "good"),
    [("2.11.0", "0.26.1", True), ("2.14.1+cu130", "0.29.1+cu130", True), ("2.14.1", "0.30.0", False)],
)
def test_torch_and_torchvision_go_together(torch: str, torchvision: str, good: bool) -> None:
    assert (questions.torch_pair(torch, torchvision) == "") is good


def test_faiss_is_here() -> None:
    assert faiss_state().startswith("faiss 1.")
    assert questions.faiss().ok == "ok"


# --- Ray
# ------------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_no_cluster_named(no_ray: pytest.MonkeyPatch) -> None:
    assert "a Ray of its own" in questions.ray_cluster().said
    assert questions.ray_token() == Check(
        "Ray's token", "ok", "a Ray of our own gets a token in memory, new for each run"
    )


def test_a_cluster_that_is_not_there(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert "nothing answers there" in questions.ray_cluster().said
    no_ray.setenv("RAY_ADDRESS", "127.0.0.1:many")
    assert questions.ray_cluster().ok == "failed"


def test_something_that_is_no_cluster(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setattr(questions, "_RAY_S", 2.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        found = questions.ray_cluster()
    assert (found.ok, "does not answer as a Ray cluster" in found.said) == ("failed", True)


def test_tokens(no_ray: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("top-secret")
    token.chmod(0o600)
    no_ray.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "differs" in questions.ray_token().said
    no_ray.setenv("RAY_AUTH_MODE", "token")
    assert questions.ray_token().ok == "failed"
    no_ray.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert questions.ray_token() == Check("Ray's token", "ok", f"the cluster is given {token}")
    token.chmod(0o644)
    assert (questions.ray_token().ok, "chmod 600" in questions.ray_token().advice) == ("warning", True)
    no_ray.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert "does not start" in questions.ray_token().said
    no_ray.setenv("RAY_AUTH_TOKEN", "top-secret")
    found = questions.ray_token()
    assert (found.ok, "top-secret" in repr(found)) == ("ok", False)
    no_ray.setenv("RAY_AUTH_MODE", "disabled")
    assert (questions.ray_token().ok, "run code" in questions.ray_token().said) == ("warning", True)


def test_a_token_file_of_our_own_ray(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setenv("RAY_AUTH_MODE", "token")
    assert "which it makes" in questions.ray_token().said


# --- the machine
# ------------------------------------------------------------------------------------------


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(questions, "gpus_here", lambda: 0)
    assert questions.gpus().ok == "ok"
    monkeypatch.setattr(questions, "gpus_here", lambda: 2)
    found = questions.gpus()
    assert (found.ok, "2 device files" in found.said, "driver" in found.advice) == ("failed", True, True)


def test_gpus_are_named_with_memory_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = namedtuple("card", "name total_memory major")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: [card("H", 80e9, 9), card("V", 16e9, 7)][number]
    )
    monkeypatch.setattr(questions, "gpus_here", lambda: 2)
    assert questions.gpus() == Check("GPUs", "ok", "H (80 GB, bf16), V (16 GB, no bf16: fp32)")
    monkeypatch.setattr(questions, "gpus_here", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert questions.gpus().ok == "warning"


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(64e6, 0, 64e6))
    found = questions.shared_memory()
    assert (found.ok, "--shm-size" in found.advice) == ("warning", True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(4e9, 0, 4e9))
    assert questions.shared_memory().ok == "ok"


@pytest.mark.parametrize(("free", "level"), [(0.1e9, "failed"), (2e9, "warning"), (50e9, "ok")])
def test_space_under_home(monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(100e9, 0, free))
    assert questions.home_folder().ok == level


def test_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "a_file"))
    assert (questions.home_folder().ok, "cannot be written" in questions.home_folder().said) == (
        "failed",
        True,
    )


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_machine_memory", lambda: (64_000_000_000, 32_000_000_000))
    monkeypatch.setattr(questions, "_limit", lambda *files: 2_000_000_000)
    found = questions.memory()
    assert (found.ok, "2.0 GB, the container's limit of 64.0 GB" in found.said) == ("warning", True)
    # what cgroup v1 says where there is none
    monkeypatch.setattr(questions, "_limit", lambda *files: 1 << 62)
    assert questions.memory().said == "64.0 GB, 32.0 GB of the machine's free"
    monkeypatch.setattr(questions.machine, "cores", lambda: 8)
    monkeypatch.setattr(questions, "_cpu_quota", lambda: 1.5)
    assert (questions.cores().ok, "1.5" in questions.cores().said) == ("warning", True)
    monkeypatch.setattr(questions, "_cpu_quota", lambda: None)
    assert questions.cores().ok == "ok"


# --- all of it
# ------------------------------------------------------------------------------------------


def test_everything_is_asked(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = machine_check.check()
    assert [one.name for one in found] == [
        *(
            "packages",
            "Ray",
            "Ray's token",
            "GPUs",
            "faiss",
            "shared memory",
            "memory",
            "cores",
            "PCL_RAY_HOME",
            "tracking",
        )
    ]
    text = machine_check.as_text(found)
    assert all(one.name in text for one in found)
    assert (
        max(
            map(len, machine_check.as_text([Check("a", "failed", "word " * 60, "advice " * 40)]).splitlines())
        )
        <= 100
    )


def test_what_raises_or_hangs_is_said_and_the_others_are_asked(no_ray: pytest.MonkeyPatch) -> None:
    def raises() -> Check:
        raise KeyError("MemTotal")

    done = threading.Event()
    hangs: Callable[[], Check] = lambda: Check("faiss", "ok", str(done.wait(60)))  # noqa: E731
    no_ray.setattr(questions, "memory", raises)
    no_ray.setattr(questions, "faiss", hangs)
    no_ray.setattr(machine_check, "_LIMIT_S", 0.5)
    found = {one.name: one for one in machine_check.check()}
    done.set()
    assert "KeyError: 'MemTotal'" in found["memory"].said
    assert found["faiss"].said == "gave no answer in time"
    assert found["cores"].ok in ("ok", "warning")
    assert "failed" in machine_check.as_text(list(found.values())).splitlines()[-1]
