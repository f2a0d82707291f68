"""The back-up of the embedded MLflow store, by the lines that docs/operating.md has for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.support.paths import home
from pcl_ray.tracking import server

ROOT = Path(__file__).parents[2]
SMALL = tuple(word for word in DIGITS_RUN if not word.startswith("tracking."))


def lines_of_the_manual(backup: Path) -> str:
    """The block of commands for sqlite, with the folder of the back-up put in."""
    text = (ROOT / "docs" / "operating.md").read_text()
    block = re.search(r"sqlite, while runs write to it:\n\n```\n(.*?)```", text, re.DOTALL)
    assert block
    return block[1].replace("/backup", str(backup)).replace("python ", f"{sys.executable} ")


@pytest.mark.slow
def test_a_lost_store_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    backup, store = tmp_path / "backup", home() / "mlflow"
    backup.mkdir()
    words = ["train", "digits", "resources.workers=0", *SMALL, "tracking.pictures=0", "tracking.model=false"]
    uri, port = f"sqlite:///{store}/mlflow.db", free_port()
    with server.serving(uri, store / "artifacts", host="127.0.0.1", port=port) as mlflow_server:
        assert cli.main([*words, f"tracking.uri={mlflow_server.address}", "--name", "before"]) == 0
        subprocess.run(
            ["sh", "-ec", lines_of_the_manual(backup)],
            check=True,
            timeout=60,
            env={**os.environ, "PCL_RAY_HOME": str(home())},
        )
        assert cli.main([*words, f"tracking.uri={mlflow_server.address}", "--name", "after"]) == 0
    shutil.rmtree(store)
    store.mkdir()
    for name in ("mlflow.db", "artifacts"):
        shutil.move(backup / name, store / name)
    with server.serving(uri, store / "artifacts", host="127.0.0.1", port=port) as mlflow_server:
        client = MlflowClient(mlflow_server.address)
        experiment = client.get_experiment_by_name("pcl_ray")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.data.tags["pcl_ray.run_name"] == "before"
        assert run.info.status == "FINISHED"
        assert (
            "num_clusters"
            in Path(client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))).read_text()
        )
        assert cli.main(["train", "--resume", "before", "train.epochs=6"]) == 0  # and it is written to
        assert client.get_run(run.info.run_id).data.metrics["epoch"] == 5
