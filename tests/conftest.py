"""Shared by all tests: reproducible property tests, and nothing written outside pytest's temporary
folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import pcl_ray

# Before torch is imported, and for every process that tests start: threads that wait for each other on busy
# cores cost a hundredfold.
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
    """Runs a script in a fresh interpreter that sees this pcl_ray; for what one process cannot show (imports,
    resource limits).
    """

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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite file with MLflow's tables, made once: each test takes a copy."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
