"""Runs in one process that end with `evaluation.final`: where its figures are found, and what they leave
alone.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.config.final_figures import FINAL_FIGURES

TINY = (*DIGITS_RUN, "resources.workers=0", "train.epochs=2")
ALL = "evaluation.final=linear,few_labels,clusters"
NAMES = {figure.name for figure in FINAL_FIGURES}


def home() -> Path:
    return Path(os.environ["PCL_RAY_HOME"])


def train(name: str, *words: str) -> dict[str, float]:
    """The metrics of the result of a small run."""
    file = home() / f"{name}.json"
    home().mkdir(parents=True, exist_ok=True)
    assert cli.main(["train", "digits", *TINY, *words, "--name", name, "--result", str(file)]) == 0
    return json.loads(file.read_text())["metrics"]


def figures_csv(name: str) -> list[dict[str, str]]:
    with (home() / "runs" / name / "figures.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def learned(name: str) -> dict[str, Any]:
    newest = epoch_files.latest(home() / "runs" / name / "checkpoints")
    assert newest is not None
    return run_state.load(newest).learner["model"]


def test_the_figures_are_in_result_table_report_and_last_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = train("one", ALL)
    assert set(metrics) >= NAMES
    assert 0.2 < metrics["eval/few_1/linear_top1"] < metrics["eval/linear_top1"] <= 1.0
    assert metrics["eval/few_5/linear_top1_sd"] > 0
    assert -0.1 < metrics["eval/clusters/ami"] < metrics["eval/clusters/nmi"]
    assert metrics["perf/final_seconds"] <= metrics["perf/evaluation_seconds"]
    usual = metrics["perf/epoch_seconds"] - metrics["perf/final_seconds"]
    assert metrics["perf/e_step_share"] == pytest.approx(metrics["perf/e_step_seconds"] / usual)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"linear probe, held-out images {metrics['eval/linear_top1']:.4f}" in shown
    assert f"linear probe, 1 label a class {metrics['eval/few_1/linear_top1']:.4f} ± 0." in shown
    assert f"k-means, K = classes: AMI {metrics['eval/clusters/ami']:.4f}" in shown
    first, last = figures_csv("one")
    assert {name for name in NAMES if first[name]} == set()
    assert float(last["eval/linear_top1"]) == metrics["eval/linear_top1"]
    report = (home() / "runs" / "one" / "report.html").read_text(encoding="utf-8")
    assert "Clusters as classes" in report


def test_nothing_else_depends_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    metrics, plain = train("one", ALL), train("two")
    assert not NAMES & set(plain)
    assert {name: value for name, value in plain.items() if not name.startswith("perf/")} == {
        name: value for name, value in metrics.items() if not name.startswith("perf/") and name not in NAMES
    }
    first, second = learned("one"), learned("two")
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert "linear probe" not in capsys.readouterr().out.rpartition("run        two")[2]


def test_a_run_made_longer_is_evaluated_at_its_new_end() -> None:
    short = train("one", ALL)
    longer = home() / "longer.json"
    assert cli.main(["train", "--resume", "one", "train.epochs=3", "--result", str(longer)]) == 0
    metrics = json.loads(longer.read_text())["metrics"]
    assert metrics.keys() >= NAMES
    assert [bool(row["eval/linear_top1"]) for row in figures_csv("one")] == [False, True, True]
    second, third = figures_csv("one")[1:]
    assert float(second["eval/few_10/knn_top1"]) == short["eval/few_10/knn_top1"]
    assert third["eval/few_10/knn_top1"] != second["eval/few_10/knn_top1"]


@pytest.mark.slow
def test_a_run_that_goes_on_after_its_last_but_one_epoch_ends_with_the_same_figures() -> None:
    whole = train("whole", ALL, "train.keep_checkpoints=10")
    run = home() / "runs" / "whole"
    epoch_files.path_of(run / "checkpoints", 2).unlink()
    file = home() / "again.json"
    assert cli.main(["train", "--resume", "whole", "--result", str(file)]) == 0
    again = json.loads(file.read_text())["metrics"]
    names = {name for name in NAMES if name.startswith("eval/")}
    assert {name: again[name] for name in names} == {name: whole[name] for name in names}


@pytest.mark.slow
def test_a_run_of_nothing_but_warm_up_and_one_that_overlaps_have_them_too() -> None:
    assert train("warm", ALL, "e_step.warmup_epochs=2").keys() >= NAMES
    overlapping = train("overlap", "evaluation.final=clusters", "e_step.overlap=true", "train.epochs=3")
    assert overlapping["eval/clusters/ami"] > 0
    assert not any(name.startswith("eval/few_") for name in overlapping)


def test_without_labels_there_is_nothing_to_measure(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8))
    metrics = train("bare", ALL, "data.source=arrays", f"data.path={tmp_path / 'bare.npz'}")
    assert not NAMES & set(metrics)


def test_mlflow_gets_the_headlines() -> None:
    metrics = train("tracked", ALL, "tracking.enabled=true", "tracking.model=false", "tracking.pictures=0")
    client = MlflowClient(f"sqlite:///{home()}/mlflow/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    charted = {figure.name for figure in FINAL_FIGURES if figure.charted}
    assert {name: run.data.metrics[name] for name in charted} == {name: metrics[name] for name in charted}
    assert not (NAMES - charted) & run.data.metrics.keys()
    assert "k-means, K = classes: AMI" in run.data.tags["mlflow.note.content"]


def test_an_unknown_protocol_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", *TINY, "evaluation.final=linear,finetune", "--name", "x"]) == 2
    said = capsys.readouterr().err
    assert "evaluation.final" in said
    assert "few_labels" in said
    assert not (home() / "runs" / "x").exists()
