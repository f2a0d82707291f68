"""Runs for lists, from stores that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.tracking import run_list


def test_a_sweep_is_told_by_its_trials(empty_store: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("pcl_ray", artifact_location=(tmp_path / "artifacts").as_uri())

    def run(name: str, **tags: str) -> str:
        made = client.create_run(experiment, run_name=name, tags={"pcl_ray.run_name": name, **tags})
        client.log_param(made.info.run_id, "train.epochs", 20)
        return made.info.run_id

    one = run("many", **{"pcl_ray.trials": "8", "objective.name": "eval/knn_top1"})
    run("many.1a2b", **{"mlflow.parentRunId": one})
    earlier = run("earlier", **{"objective.name": "train/loss"})  # of a version without that tag
    for name, value in (("sweep/trials", 4.0), ("sweep/finished", 3.0), ("sweep/stopped_early", 1.0)):
        client.log_metric(earlier, name, value, step=4)
    client.log_metric(earlier, "sweep/best_score", -2.5, step=4)
    client.set_terminated(earlier, "FINISHED")
    client.log_metric(one, "sweep/ended", 3.0, step=3)
    client.log_metric(one, "sweep/best_score", 0.75, step=3)
    rows = {row.name: row for row in run_list.recorded(uri, "pcl_ray", trials=True)}
    many, trial, finished = rows["many"], rows["many.1a2b"], rows["earlier"]
    assert (many.kind, many.trials_ended, many.trials, many.epochs) == ("sweep", 3, 8, 0)
    assert (many.figure, many.value) == ("eval/knn_top1", 0.75)
    assert (trial.kind, trial.epochs, trial.trials) == ("trial", 20, 0)
    assert (finished.kind, finished.trials_ended, finished.trials) == ("sweep", 4, 4)
    assert finished.value is None  # less is better: the score is no value
    client.log_metric(earlier, "sweep/best", 2.5, step=4)
    client.set_tag(one, "pcl_ray.phase", "recording")
    rows = {row.name: row for row in run_list.recorded(uri, "pcl_ray")}
    assert rows["earlier"].value == 2.5
    assert (rows["many"].state, rows["many"].phase) == ("running", "recording")
    client.set_terminated(one, "FINISHED")
    assert run_list.recorded(uri, "pcl_ray", limit=2)[1].phase == ""


@pytest.mark.parametrize("kind", ["folder", "text"])
def test_a_file_that_is_no_database_is_said_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("no database")
    with pytest.raises(RunFailed, match=r"MLflow's store cannot be read: .*mlflow\.db"):
        run_list.recorded(f"sqlite:///{path}", "pcl_ray")
