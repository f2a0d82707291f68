"""What a sweep ends with: files, the best recipe, what is shown and logged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from small_sweep import printed, write_trial

from pcl_ray import config
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.sweep.results.conclusion import conclude
from pcl_ray.sweep.session import SweepSession

WEAK, STRONG = ({"loss.temperature": 0.1, "e_step.alpha": alpha} for alpha in (1, 10))


@pytest.fixture
def whole(session: SweepSession, tmp_path: Path) -> DataSplits:
    return datasets.load(session.context.base.data, cache_dir=tmp_path)


def write_finished(session: SweepSession, values: dict[str, Any], objective: float) -> None:
    metrics = {"eval/knn_top1": objective}
    write_trial(
        session, values, state="finished", epochs=4, trial={"objective": objective, "metrics": metrics}
    )


def test_the_best_configuration_is_a_recipe_a_result_and_the_first_row(
    session: SweepSession, whole: DataSplits
) -> None:
    write_finished(session, WEAK, 0.4)
    write_finished(session, STRONG, 0.6)
    result = conclude(session, whole, seconds=5.0, unfinished="")
    folder = session.folder.path
    assert (result.state, result.trials, result.best) == ("finished", 2, STRONG)
    assert result.best_recipe == str(folder / "best.yaml")
    assert result.metrics["eval/knn_top1"] == 0.6
    assert result.metrics["sweep/finished"] == 2
    best = config.load(folder / "best.yaml")
    assert best.e_step.alpha == 10
    assert best.resources.workers == session.request.recipe.resources.workers  # not as trials ran it
    first, second = csv.DictReader((folder / "leaderboard.csv").open())
    assert (first["e_step.alpha"], second["e_step.alpha"]) == ("10", "1")
    text = printed(session)
    assert f"pcl-ray train {folder / 'best.yaml'} train.epochs=16" in text
    assert "0.0 minutes in 2 trials" in text


def test_files_figures_and_a_note_go_to_the_parent_run(session: SweepSession, whole: DataSplits) -> None:
    write_finished(session, STRONG, 0.6)
    conclude(session, whole, seconds=5.0, unfinished="")
    tracker: Any = session.tracker
    names = {"leaderboard.csv", "leaderboard.md", "leaderboard.json", "importances.json", "best.yaml"}
    names |= {"report.html"}
    assert names <= set(tracker.files)
    assert any(name.startswith("figures/") for name in tracker.files)
    assert tracker.tags["best.e_step.alpha"] == "10"
    assert "**small**: 1 trials, 1 finished, 0 failed" in tracker.tags["mlflow.note.content"]
    assert {"sweep/best": 0.6} in [metrics for metrics, _ in tracker.logged]


def test_the_best_is_set_against_the_recipe_s_own_values(session: SweepSession, whole: DataSplits) -> None:
    session.folder.write_state(recipe_point=session.request.recipe_point)
    assert session.request.recipe_point is not None
    write_finished(session, session.request.recipe_point, 0.2)
    write_finished(session, STRONG, 0.9)
    conclude(session, whole, seconds=5.0, unfinished="")
    assert "recipe      0.2000; the best is 0.7000 better" in printed(session)
    second = list(csv.DictReader((session.folder.path / "leaderboard.csv").open()))[1]
    assert second["note"] == "the recipe's own"
    page = (session.folder.path / "report.html").read_text()
    assert "The best is 0.7000 better" in page


def test_an_interrupted_sweep_has_its_leaderboard_and_says_how_to_go_on(
    session: SweepSession, whole: DataSplits
) -> None:
    write_finished(session, STRONG, 0.6)
    write_trial(session, WEAK, state="running")
    result = conclude(session, whole, seconds=5.0, unfinished="the budget is spent")
    assert (result.state, result.trials) == ("stopped", 2)
    assert "eval/test_knn_top1" not in result.metrics
    assert "unfinished  the budget is spent; go on with: pcl-ray sweep --resume small" in printed(session)


def test_without_a_configuration_that_finished_there_is_no_winner(
    session: SweepSession, whole: DataSplits
) -> None:
    write_trial(session, WEAK, state="failed", error="the loss is nan [in epoch 1]")
    result = conclude(session, whole, seconds=5.0, unfinished="")
    assert (result.best, result.best_recipe) == ({}, None)
    assert "no winner" in printed(session)
    assert "failed      the loss is nan [in epoch 1]" in printed(session)
    assert json.loads((session.folder.path / "importances.json").read_text()) == {}
    assert not (session.folder.path / "best.yaml").exists()


def test_eighty_columns_show_every_swept_knob(session: SweepSession, whole: DataSplits) -> None:
    session.console.width = 80
    write_finished(session, {"loss.temperature": 0.0549469, "e_step.alpha": 10}, 0.4)
    reason = "a reason that is much longer than what is left of a line"
    write_trial(session, {"loss.temperature": 0.0519395, "e_step.alpha": 1}, state="failed", error=reason)
    conclude(session, whole, seconds=5.0, unfinished="")
    text = printed(session)
    heading = next(line for line in text.splitlines() if line.startswith("rank"))
    assert heading.split()[:4] == ["rank", "eval/knn_top1", "τ", "α"]
    assert "0.0549469" in text
    assert "0.0519395" in text
    assert "importance  not said of fewer than ten trials" in text
