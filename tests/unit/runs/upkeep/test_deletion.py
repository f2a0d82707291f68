"""Runs and sweeps that are deleted, and those that are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stored_runs import made

from pcl_ray import cli
from pcl_ray.config import load
from pcl_ray.runs.folder import RunFolder, SweepFolder
from pcl_ray.runs.lease import Lease
from pcl_ray.support import storage
from pcl_ray.support.paths import home

CONFIG = load("digits", ["tracking.enabled=false"])


def test_a_run_is_deleted_when_that_is_confirmed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("mine")
    other = made("mine2")
    assert cli.main(["delete", "mine"]) == 2  # nobody can be asked here
    assert path.is_dir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert cli.main(["delete", "mine"]) == 2
    assert path.is_dir()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    capsys.readouterr()
    assert cli.main(["delete", "mine"]) == 0
    assert "deleted     run mine" in capsys.readouterr().out
    assert not path.exists()
    assert other.is_dir()
    assert not (home() / ".leaving").exists()
    assert cli.main(["delete", "mine", "--yes"]) == 2
    assert "neither a run nor a sweep 'mine'" in capsys.readouterr().err


def test_what_is_held_is_never_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create("mine", CONFIG) as folder:
        for force in ([], ["--force"]):
            assert cli.main(["delete", "mine", "--yes", *force]) == 2
            assert folder.path.is_dir()
    assert "is being trained by another process" in capsys.readouterr().err


def test_what_others_came_from_or_may_be_training_is_deleted_by_force_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made("origin")
    made("fork", forked_from="origin@1")
    made("elsewhere", state="running", machine="another")
    made("weights")
    made("begun", overrides=("encoder.init_from=weights",))
    made("originals")  # a name that begins alike
    for name, reason in (
        ("origin", "fork is made from it"),
        ("elsewhere", "elsewhere is under way, here or on another machine"),
        ("weights", "begun is made from it"),
    ):
        assert cli.main(["delete", name, "--yes"]) == 2
        assert f"{name} is not deleted: {reason}" in capsys.readouterr().err
        assert RunFolder.path_of(name).is_dir()
        assert cli.main(["delete", name, "--yes", "--force"]) == 0
        assert not RunFolder.path_of(name).exists()
    assert cli.main(["delete", "originals", "fork", "--yes"]) == 0
    assert sorted(path.name for path in RunFolder.root().iterdir()) == ["begun"]


def test_a_sweep_goes_with_its_trials_and_a_trial_not_alone(capsys: pytest.CaptureFixture[str]) -> None:
    made("many", SweepFolder)
    made("many", RunFolder)  # a run of the same name
    made("many.1a", sweep="many")
    made("many.2b", sweep="many")
    made("many.more")  # no trial
    assert cli.main(["delete", "many.1a", "--yes"]) == 2
    assert "many.1a is a trial of sweep many" in capsys.readouterr().err
    assert cli.main(["delete", "many", "--sweep", "--yes"]) == 0
    assert "sweep many and its 2 trials" in capsys.readouterr().out
    assert not SweepFolder.path_of("many").exists()
    assert sorted(path.name for path in RunFolder.root().iterdir()) == ["many", "many.more"]


def test_its_copy_in_a_storage_goes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path / "shared")
    overrides = (f"resources.storage={uri}",)
    for name in ("mine", "kept2", "held"):
        shutil.copytree(made(name, overrides=overrides), tmp_path / "shared" / "runs" / name)
    assert cli.main(["delete", "mine", "--yes"]) == 0
    assert f"and its copy in {uri}" in capsys.readouterr().out
    assert storage.of_run(uri, "mine").list_tree() == {}
    assert cli.main(["delete", "kept2", "--keep-storage", "--yes"]) == 0
    assert "config.yaml" in storage.of_run(uri, "kept2").list_tree()
    other = Lease(uri, "held")
    other.acquire()
    storage.of_run(uri, "held").write(
        "owner.json", b'{"host": "far", "pid": 3, "machine": "far", "token": "t"}'
    )
    assert cli.main(["delete", "held", "--yes"]) == 2
    assert "is being trained by process 3 on far" in capsys.readouterr().err
    assert RunFolder.path_of("held").is_dir()


def test_a_storage_that_does_not_answer_keeps_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("mine", overrides=(f"resources.storage={tmp_path / 'file' / 'x'}",))
    (tmp_path / "file").write_text("no folder")
    assert cli.main(["delete", "mine", "--yes"]) == 2
    assert "--keep-storage leaves that copy alone" in capsys.readouterr().err
    assert path.is_dir()


def test_what_mlflow_has_stays_unless_it_is_to_go(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("pcl_ray", artifact_location=(tmp_path / "artifacts").as_uri())
    for name, option, stage in (("one", [], "active"), ("two", ["--mlflow"], "deleted")):
        run = client.create_run(experiment, run_name=name).info.run_id
        made(name, mlflow_run_id=run)
        assert cli.main(["delete", name, "--yes", *option]) == 0
        assert client.get_run(run).info.lifecycle_stage == stage
    assert "MLflow      1 run stays there" in capsys.readouterr().out
