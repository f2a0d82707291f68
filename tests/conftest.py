"""Shared by all tests: reproducible property tests, and nothing written outside pytest's own folders."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from processes import free_port

import pcl_ray

# Before torch is imported, for all processes of tests: threads that wait on busy cores cost a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every machine, and no example fails for being slow: tests assert no times.
settings.register_profile("pcl_ray", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("pcl_ray")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a run writes goes under PCL_RAY_HOME: never the developer's own."""
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "pcl_ray_home"))


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter with this pcl_ray: for tests of imports and resource limits."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        root = str(Path(pcl_ray.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )

    return run


@pytest.fixture
def loaded_by(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[str]]:
    """loaded_by(modules, *names): which of the names a fresh interpreter has loaded with these modules."""

    def loaded(modules: str, *names: str) -> list[str]:
        done = run_python(f"import sys, {modules}; print(*(name for name in {names} if name in sys.modules))")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return loaded


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite file with MLflow's tables, made once: each test takes a copy."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an S3 server of this machine."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture
def bucket(s3_server: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of an empty bucket on a real S3 server of this machine."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{s3_server}/{name}", method="PUT"), timeout=20
    ).close()
    return f"s3://{name}/results/of%20all?endpoint_override=127.0.0.1:{s3_server}&scheme=http"


@pytest.fixture(params=["path", "file", "s3"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty storage of each kind."""
    match request.param:
        case "path":
            return str(tmp_path / "shared")
        case "file":
            return f"file://{tmp_path}/shared"
    return request.getfixturevalue("bucket")
