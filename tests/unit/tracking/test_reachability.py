"""With a real MLflow server, with servers that are none, and with database files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from answering import answering
from processes import free_port

from pcl_ray.tracking import reachability
from pcl_ray.tracking.reachability import reachable


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


def test_a_server_that_answers(server: tuple[int, Path]) -> None:
    port, _ = server
    assert reachable(f"http://127.0.0.1:{port}/")[0] == "ok"
    answer = reachable(f"http://me:secret@127.0.0.1:{port}")
    assert answer[0] == "ok"
    assert "secret" not in repr(answer)


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


def test_a_server_that_never_answers() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        level, said, _ = reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
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
    with answering(status, body) as (port, _):
        level, found, help_with_it = reachable(f"http://127.0.0.1:{port}")
    assert level == "failed"
    assert said in found
    assert advice in help_with_it


def test_credentials_are_sent_as_mlflow_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, "{}") as (port, authorizations):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
        assert reachable(f"http://127.0.0.1:{port}")[0] == "ok"
        assert reachable(f"http://user:p%40ss@127.0.0.1:{port}")[0] == "ok"
    assert authorizations[-2:] == ["Bearer abc", "Basic dXNlcjpwQHNz"]


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


def test_a_database_whose_writer_was_killed(empty_store: Path, tmp_path: Path) -> None:
    """Half a write is in the file, and what was there before beside it."""
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_store, file)
    write = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
for number in range(300):
    database.execute("INSERT INTO experiment_tags VALUES (?, ?, 0)", (f"key {number}", "value" * 200))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", write, str(file)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert Path(f"{file}-journal").stat().st_size
    assert reachable(f"sqlite:///{file}") == ("ok", f"{file}, 0 runs", "")
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT COUNT(*) FROM experiment_tags").fetchone() == (0,)
