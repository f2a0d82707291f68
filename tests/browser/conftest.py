"""A real MLflow server with real runs: two single ones and a sweep of four trials, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import browsing
from processes import free_port
from small import DIGITS_RUN

from pcl_ray.tracking import server
from pcl_ray.tracking.saved_views import Sweep

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before any test imports mlflow

SMALL = [word for word in DIGITS_RUN if word != "tracking.enabled=false"] + [
    "resources.workers=0",
    "tracking.model=false",
]
SPACE = """base: digits
space:
  loss.temperature: {type: choice, values: [0.1, 0.3]}
  e_step.alpha: {type: choice, values: [1, 10]}
"""
STEPS = 16  # of a run: 4 epochs of 4
SWEEP = Sweep(
    "tau_alpha", "eval/knn_top1", "max", {"loss.temperature": True, "e_step.alpha": True}, STEPS - 1
)


@dataclass(frozen=True)
class Dashboard:
    """A server, the experiment on it, its single runs and its sweep."""

    uri: str
    experiment_id: str
    run_ids: list[str]
    sweep: Sweep
    home: Path


@pytest.fixture(scope="session")
def chromium() -> str:
    return browsing.chromium()


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("dashboard")
    home = folder / "home"
    store = f"sqlite:///{folder}/mlflow.db"
    with server.serving(
        store, folder / "artifacts", host="127.0.0.1", port=free_port(), home=home
    ) as mlflow_server:
        uri = mlflow_server.address
        for number, temperature in enumerate((0.2, 0.1)):
            pcl_ray(
                home,
                uri,
                "train",
                "digits",
                *SMALL,
                "evaluation.final=[linear,few_labels,clusters]",
                f"loss.temperature={temperature}",
                "--name",
                f"digits-{number}",
            )
        space = folder / "tau_alpha.yaml"
        space.write_text(SPACE)
        pcl_ray(home, uri, "sweep", str(space), *SMALL, "--search", "grid", "--name", SWEEP.name)
        from mlflow import MlflowClient

        experiment = MlflowClient(uri).get_experiment_by_name("pcl_ray")
        assert experiment is not None
        ids = [
            json.loads((home / f"runs/digits-{number}/state.json").read_text())["mlflow_run_id"]
            for number in range(2)
        ]
        yield Dashboard(uri, experiment.experiment_id, ids, SWEEP, home)


def pcl_ray(home: Path, uri: str, *words: str) -> None:
    environment = {
        **os.environ,
        "PCL_RAY_HOME": str(home),
        "MLFLOW_TRACKING_URI": uri,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pcl_ray.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
