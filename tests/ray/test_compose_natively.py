"""What the containers of `docker/compose.yaml` run, without containers: its commands, environments,
healthchecks and entrypoints, from installed prefixes.

Only hosts, ports and paths differ. `PCL_RAY_TEST_PREFIX=/folder` keeps the two prefixes (8 GB, three minutes)
for the next time.
"""

from __future__ import annotations

import base64
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from composed import ROOT
from natively import Stack, answer, in_use
from small import DIGITS_RUN

pytestmark = pytest.mark.slow

INSTALL_S, JOB_S = 1200, 600  # guards against hanging, nothing is timed
SMALL = tuple(entry for entry in DIGITS_RUN if not entry.startswith("tracking."))
# prctl: what the children of this process leave behind becomes its own, so that nothing is overlooked
_SUBREAPER = 36


def postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL here: Debian's package is postgresql")
    return found[-1].parent


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two environments, made as the Dockerfiles make them: `ray` and `mlflow`. Our package is always new."""
    postgres_programs()  # before minutes are spent
    kept = os.environ.get("PCL_RAY_TEST_PREFIX")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("prefix")
    source = tmp_path_factory.mktemp("source")
    for name in (
        "pyproject.toml",
        "requirements.lock",
        "README.md",
        "LICENSE",
        "docker/dependencies.py",
        "docker/requirements-mlflow.txt",
    ):
        shutil.copy(ROOT / name, source)
    for name in ("pcl_ray", "tune_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("ray", "mlflow"):
        if not (folder / name / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True, timeout=INSTALL_S)
    wanted = subprocess.run(
        [sys.executable, "dependencies.py", "gpu"],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    (source / "wanted.txt").write_text(wanted)
    for name, words in (
        ("ray", ("--requirement", "wanted.txt", "--constraint", "requirements.lock")),
        ("ray", ("--no-deps", "--no-build-isolation", "--force-reinstall", ".")),
        ("mlflow", ("--requirement", "requirements-mlflow.txt", "--constraint", "requirements.lock")),
    ):
        pip = [
            str(folder / name / "bin" / "pip"),
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *words,
        ]
        subprocess.run(pip, cwd=source, check=True, timeout=INSTALL_S)
    return folder


@pytest.fixture
def stack(prefix: Path, tmp_path: Path) -> Iterator[Stack]:
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    stack = Stack(tmp_path, prefix)
    try:
        yield stack
    finally:
        stack.end()
        ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def database(stack: Stack) -> Iterator[None]:
    """PostgreSQL as its image sets it up: user and database mlflow, password in a file. It refuses root."""
    programs, who = (
        postgres_programs(),
        (["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []),
    )
    with tempfile.TemporaryDirectory(prefix="pcl_ray_pg_") as name:
        folder, said = Path(name), stack.services["postgres"]["environment"]
        password = folder / "password"
        shutil.copy(stack.folder / "docker" / "secrets" / "postgres_password.txt", password)
        if who:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
        initdb = [
            *who,
            str(programs / "initdb"),
            "-D",
            f"{folder}/data",
            "-U",
            said["POSTGRES_USER"],
            f"--pwfile={password}",
            said["POSTGRES_INITDB_ARGS"],
        ]
        subprocess.run(initdb, check=True, capture_output=True, timeout=120, cwd=folder)
        server = [
            *who,
            str(programs / "postgres"),
            "-D",
            f"{folder}/data",
            "-p",
            stack.port("5432"),
            "-k",
            str(folder),
            "-h",
            "127.0.0.1",
        ]
        stack.launch("postgres", server, dict(os.environ))
        stack.wait("postgres")
        asked = {
            **os.environ,
            "PGPASSWORD": password.read_text(),
            "PGHOST": "127.0.0.1",
            "PGPORT": stack.port("5432"),
            "PGUSER": said["POSTGRES_USER"],
        }
        subprocess.run([str(programs / "createdb"), said["POSTGRES_DB"]], env=asked, check=True, timeout=60)
        yield
        if "postgres" in stack.running:
            stack.end_one("postgres")


def submitted(stack: Stack, *words: str) -> str:
    """The output of a job that was waited for, and succeeded."""
    address = f"http://127.0.0.1:{stack.port('8265')}"
    command = [
        "ray",
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/train.py",
        *words,
    ]
    done = subprocess.run(
        command,
        env=stack.environment("ray-head"),
        cwd=stack.folder / "app",
        capture_output=True,
        text=True,
        timeout=JOB_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def assert_only_named_hosts(stack: Stack) -> None:
    """Jobs by the service's name, browsers of this machine; other names and foreign pages change nothing."""
    port = stack.port("5000")
    runs = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert [
        answer(runs, Host=f"{name}:{port}")
        for name in ("mlflow", "localhost", "127.0.0.1", "elsewhere.example")
    ] == [200, 200, 200, 403]
    assert answer(runs, Host=f"127.0.0.1:{int(port) + 1}") == 403


def assert_recorded(stack: Stack) -> str:
    """The run is in PostgreSQL, its artifacts went through the server into its volume. Gives the run's id."""
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{stack.port('5000')}")
    experiment = client.get_experiment_by_name("pcl_ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri is not None
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert {"config.yaml", "figures.csv", "report.html"} <= {
        entry.path for entry in client.list_artifacts(run.info.run_id)
    }
    assert (
        "num_clusters"
        in Path(
            client.download_artifacts(run.info.run_id, "config.yaml", str(stack.folder / "user"))
        ).read_text()
    )
    assert list((stack.folder / "artifacts").rglob(f"{run.info.run_id}/**/report.html"))
    said = {**os.environ, "PGPASSWORD": (stack.folder / "docker/secrets/postgres_password.txt").read_text()}
    query = [
        "psql",
        "-h",
        "127.0.0.1",
        "-p",
        stack.port("5432"),
        "-U",
        "mlflow",
        "-d",
        "mlflow",
        "-Atc",
        "select run_uuid from runs",
    ]
    assert subprocess.run(
        query, env=said, check=True, capture_output=True, text=True, timeout=60
    ).stdout.split() == [run.info.run_id]
    return run.info.run_id


def lose_and_restore_the_database(stack: Stack) -> None:
    """By the lines of docs/operating.md: backed up while the server runs, lost, restored."""
    backup = stack.folder / "mlflow.dump"
    said = {**os.environ, "PGPASSWORD": (stack.folder / "docker/secrets/postgres_password.txt").read_text()}
    said |= {"PGHOST": "127.0.0.1", "PGPORT": stack.port("5432"), "PGUSER": "mlflow"}

    def run(*command: str) -> None:
        subprocess.run(
            [str(postgres_programs() / command[0]), *command[1:]], env=said, check=True, timeout=120
        )

    text = (ROOT / "docs" / "operating.md").read_text()
    for line in (
        "pg_dump --format=custom --file=/backup/mlflow.dump mlflow",
        "pg_restore --clean --if-exists --dbname=mlflow /backup/mlflow.dump",
    ):
        assert f"\n{line}\n" in text
    run("pg_dump", "--format=custom", f"--file={backup}", "mlflow")
    stack.end_one("mlflow")
    run("dropdb", "mlflow")
    run("createdb", "mlflow")
    run("pg_restore", "--clean", "--if-exists", "--dbname=mlflow", str(backup))
    stack.start("mlflow")


def assert_asks_for_a_login(stack: Stack, run_id: str) -> None:
    """After a password was written: MLflow starts on the same database, and answers those who know it."""
    stack.end_one("mlflow")
    subprocess.run(
        [str(stack.folder / "docker" / "make_secrets.sh"), "--mlflow-login"], check=True, timeout=60
    )
    password = (stack.folder / "docker/secrets/mlflow_admin_password.txt").read_text()
    stack.start("mlflow")
    run = f"http://127.0.0.1:{stack.port('5000')}/api/2.0/mlflow/runs/get?run_id={run_id}"
    assert answer(run) == 401
    assert (
        answer(run, Authorization="Basic " + base64.b64encode(f"admin:{password}".encode()).decode()) == 200
    )
    entered = subprocess.run(
        ["entrypoint.sh", "env"],
        env={
            **stack.environment("ray-head"),
            "MLFLOW_PASSWORD_FILE": f"{stack.folder}/docker/secrets/mlflow_admin_password.txt",
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"MLFLOW_TRACKING_PASSWORD={password}" in entered.stdout.splitlines()


def test_nothing_is_installed_that_is_not_pinned(prefix: Path) -> None:
    pins = {
        line.partition(";")[0].strip().lower()
        for name in ("requirements.lock", "docker/requirements-mlflow.txt")
        for line in (ROOT / name).read_text().splitlines()
    }
    for name in ("ray", "mlflow"):
        listed = subprocess.run(
            [str(prefix / name / "bin" / "pip"), "freeze"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        installed = {line.strip().lower() for line in listed.splitlines() if not line.startswith("pcl_ray @")}
        assert len(installed) > 50
        assert installed - pins == set()
        subprocess.run([str(prefix / name / "bin" / "pip"), "check"], check=True, timeout=120)


def test_what_the_containers_run_trains_the_digits(stack: Stack, database: None) -> None:
    stack.start("mlflow")
    assert_only_named_hosts(stack)
    for service in ("ray-head", "ray-worker"):
        stack.start(service, "--node-ip-address=127.0.0.1", f"--temp-dir={stack.nodes}/{service}")
    dashboard = f"http://127.0.0.1:{stack.port('8265')}"
    assert [answer(f"{dashboard}/api/{name}") for name in ("version", "jobs/", "gcs_healthz")] == [
        401,
        401,
        200,
    ]
    # what Kubernetes asks of each node, without a token too
    assert [
        answer(f"http://127.0.0.1:{stack.port('52365', name)}/api/healthz")
        for name in ("ray-head", "ray-worker")
    ] == [200, 200]
    said = submitted(stack, "digits", "--name", "native", "resources.workers=2", *SMALL)
    assert "succeeded" in said
    run_id = assert_recorded(stack)
    assert (stack.folder / "pcl_ray" / "runs" / "native" / "report.html").exists()
    assert_nothing_secret_is_seen(stack)
    lose_and_restore_the_database(stack)
    assert assert_recorded(stack) == run_id
    assert_asks_for_a_login(stack, run_id)
    stack.end()
    assert stack.left() == []
    ports = [*stack.common.values(), *stack.own["ray-head"].values(), *stack.own["ray-worker"].values()]
    assert [port for port in ports if in_use(port)] == []


def assert_nothing_secret_is_seen(stack: Stack) -> None:
    """Neither among the arguments of processes nor in what the services wrote."""
    secrets = [
        path.read_text()
        for path in (stack.folder / "docker" / "secrets").glob("*.txt")
        if path.stat().st_size and path.name != "s3_credentials.txt"
    ]
    shown = "\0".join(word for process in stack.left() for word in process.cmdline()) + "".join(
        path.read_text(errors="replace") for path in stack.folder.glob("*.log")
    )
    assert len(secrets) == 4
    assert [secret for secret in secrets if secret in shown] == []
