"""What the overview reads of the folders of runs and sweeps, and what it shows at which address."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from reported import digits_snapshot

from pcl_ray import config
from pcl_ray.runs.folder import RunFolder, SweepFolder, write_state_at
from pcl_ray.runs.overview import app, reading
from pcl_ray.snapshot import save_snapshot
from pcl_ray.support.paths import home


@pytest.fixture
def first() -> Path:
    """A finished run with a report and pictures."""
    with RunFolder.create("first", config.load("digits", {"train.epochs": 20})) as folder:
        path = folder.path
    progress = {"epoch": 20, "epochs": 20, "figure": "eval/knn_top1", "value": 0.9}
    write_state_at(
        path, state="finished", began_at=100.0, num_clusters=[10, 20], mlflow_run_id="ab", progress=progress
    )
    (path / "figures.csv").write_text(
        "epoch,step,eval/knn_top1,eval/head/knn_top1,train/loss\n0,1,,,2.5\n1,3,0.96,0.9,\n2,5,,,2.25\n"
    )
    (path / "report.html").write_text("<!doctype html>the report")
    save_snapshot(path / "exhibit.npz", *digits_snapshot())
    return path


def test_a_run_has_the_last_value_of_each_figure(first: Path) -> None:
    (entry,) = reading.runs()
    assert (entry.name, entry.state, entry.data, entry.epochs) == ("first", "finished", "digits", 20)
    assert entry.figures["eval/knn_top1"] == 0.96
    assert entry.figures["train/loss"] == 2.25
    assert entry.num_clusters == (10, 20)
    assert entry.has_report
    assert entry.has_pictures
    assert entry.mlflow_run_id == "ab"


def test_one_under_way_has_the_figure_of_its_progress_and_the_newest_comes_first(first: Path) -> None:
    pictures = config.load("folder", {"data.path": "/data/stamps/"})
    with RunFolder.create("young", pictures) as folder:
        write_state_at(
            folder.path, began_at=200.0, progress={"epoch": 3, "figure": "eval/knn_top1", "value": 0.5}
        )
    young, older = reading.runs()
    assert (young.name, older.name) == ("young", "first")
    assert (young.state, young.data, young.epochs) == ("running", "stamps", 3)
    assert young.figures == {"eval/knn_top1": 0.5}
    assert not young.has_report


def test_a_sweep_has_its_best_and_counts_its_trials(first: Path) -> None:
    with SweepFolder.create("tau", config.load("digits")) as folder:
        rows = [{"rank": 1, "mean": 0.97, "point": {}}, {"rank": 2, "mean": None, "point": {}}]
        content = {"objective": "eval/knn_top1", "knobs": [], "rows": rows}
        (folder.path / "leaderboard.json").write_text(json.dumps(content))
    write_state_at(first, sweep="tau")
    (sweep,) = reading.sweeps(reading.runs())
    assert (sweep.name, sweep.objective, sweep.best, sweep.trials) == ("tau", "eval/knn_top1", 0.97, 1)


@pytest.mark.parametrize("damage", ["config.yaml", "state.json", "figures.csv", "exhibit.npz"])
def test_a_damaged_file_costs_no_more_than_what_it_held(first: Path, damage: str) -> None:
    (first / damage).write_bytes(b"\x00[{")
    assert app.page_of("") is not None
    assert len(reading.runs()) == (0 if damage == "config.yaml" else 1)
    assert (app.page_of("runs/first/prototypes.png") is None) == (damage == "exhibit.npz")


def test_reports_and_pictures_have_addresses(first: Path) -> None:
    report, picture = app.page_of("runs/first/report.html"), app.page_of("runs/first/prototypes.png")
    assert report is not None
    assert report.content == b"<!doctype html>the report"
    assert picture is not None
    assert picture.kind == "image/png"
    assert picture.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "address",
    [
        "runs/first/state.json",
        "runs/first/config.yaml",
        "runs/../service/report.html",
        "runs/first/../../service/ray_token",
        "runs/nothing/report.html",
        "sweeps/first/report.html",
        "service/x/report.html",
        "runs/first",
        "runs//report.html",
        "runs/%2e%2e/report.html",
    ],
)
def test_nothing_else_has(first: Path, address: str) -> None:
    (home() / "service").mkdir()
    (home() / "service" / "report.html").write_text("a secret")
    (home() / "service" / "ray_token").write_text("a secret")
    assert app.page_of(address) is None


def test_the_server_of_the_pages_loads_nothing_heavy(loaded_by: Callable[..., list[str]]) -> None:
    assert loaded_by("pcl_ray.runs.overview.app", "torch", "ray", "mlflow", "matplotlib", "sklearn") == []
