"""The dashboard's saved views: written or left alone. Whether it reads them is tested in tests/browser."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pcl_ray.tracking import saved_views as views
from pcl_ray.tracking import view_charts as charts
from pcl_ray.tracking.view_charts import Sweep, View

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before any test imports mlflow

KNOWN = "3.17.2"
TAG = "mlflow.sharedViewState."
SWEEP = Sweep(
    "all_three",
    "eval/knn_top1",
    "max",
    {"loss.temperature": True, "e_step.alpha": True, "e_step.num_clusters": False},
    last_step=320,
)


@pytest.fixture
def client(tmp_path: Path, empty_store: Path) -> Any:
    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def experiment(client: Any) -> str:
    return client.create_experiment("pcl_ray")


def tags(client: Any, experiment: str) -> dict[str, str]:
    return {
        name: value for name, value in client.get_experiment(experiment).tags.items() if name.startswith(TAG)
    }


def test_the_views_are_written_once(client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views.ensure(client, experiment, KNOWN, clusterings=2, sweep=SWEEP)
    first = tags(client, experiment)
    assert set(first) == {TAG + "pcl", TAG + "pcl-all", TAG + "sweep-all_three"}
    assert {json.loads(value)["name"] for value in first.values()} == {
        "PCL runs",
        "PCL runs and trials",
        "Sweep all_three",
    }
    assert views.shown(first)

    def refuse(*_: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(client, "set_experiment_tag", refuse)
    views.ensure(client, experiment, KNOWN, clusterings=2, sweep=SWEEP)
    # a run with fewer clusterings takes no charts away
    views.ensure(client, experiment, KNOWN, clusterings=1)
    views.ensure(client, experiment, KNOWN, clusterings=0)
    assert tags(client, experiment) == first


def test_more_clusterings_get_their_charts(client: Any, experiment: str) -> None:
    views.ensure(client, experiment, KNOWN, clusterings=1)
    views.ensure(client, experiment, KNOWN, clusterings=3)
    assert views.decode("pcl", tags(client, experiment)[TAG + "pcl"]) == charts.runs_view(3)


def test_an_older_view_of_ours_is_renewed_and_a_broken_one_too(client: Any, experiment: str) -> None:
    client.set_experiment_tag(
        experiment,
        TAG + "pcl",
        views.encode(View("pcl", "PCL runs", {"searchFilter": "old"}), {"clusterings": 1}),
    )
    client.set_experiment_tag(
        experiment,
        TAG + "pcl-all",
        json.dumps({"name": "x", "createdAt": 1, "state": "deflate;???", "pcl_ray": {"clusterings": 1}}),
    )
    views.ensure(client, experiment, KNOWN, clusterings=1)
    assert views.decode("pcl", tags(client, experiment)[TAG + "pcl"]) == charts.runs_view(1)
    assert views.decode("pcl-all", tags(client, experiment)[TAG + "pcl-all"]) == charts.runs_view(
        1, trials=True
    )


def test_what_users_saved_or_changed_stays(client: Any, experiment: str) -> None:
    ours = json.loads(views.encode(charts.runs_view(1), {"clusterings": 1}))
    # what the dashboard writes back
    changed_there = json.dumps({name: ours[name] for name in ("name", "createdAt", "updatedAt", "state")})
    client.set_experiment_tag(
        experiment, TAG + "mine", '{"name": "mine", "createdAt": 1, "updatedAt": 1, "state": "{}"}'
    )
    client.set_experiment_tag(experiment, TAG + "pcl", changed_there)
    client.set_experiment_tag(experiment, TAG + "pcl-all", "no view at all")
    before = tags(client, experiment)
    views.ensure(client, experiment, KNOWN, clusterings=5)
    assert tags(client, experiment) == before


@pytest.mark.parametrize("version", ["3.16.9", "3.18.0", "3.170.1", "4.17.2", "", "dev"])
def test_other_versions_get_nothing(client: Any, experiment: str, version: str) -> None:
    views.ensure(client, experiment, version, clusterings=2, sweep=SWEEP)
    assert tags(client, experiment) == {}


def test_the_views_of_many_sweeps_leave_room_for_others(
    client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_experiment_tag(
        experiment,
        TAG + "sweep-by_hand",
        '{"name": "by hand", "createdAt": 1, "updatedAt": 1, "state": "{}"}',
    )
    now = iter(range(1, 1000))
    monkeypatch.setattr(views.time, "time", lambda: next(now))
    for number in range(24):
        views.ensure(
            client, experiment, KNOWN, clusterings=1, sweep=Sweep(f"number{number}", "eval/rankme", "max")
        )
    kept = {name.removeprefix(TAG) for name in tags(client, experiment)}
    assert kept == {"pcl", "pcl-all", "sweep-by_hand"} | {f"sweep-number{number}" for number in range(4, 24)}


def test_a_view_survives_its_way_through_a_tag() -> None:
    view = charts.sweep_view(SWEEP, 3)
    assert views.decode(view.key, views.encode(view, {})) == view
    # as older dashboards wrote it
    assert views.decode("k", '{"name": "n", "createdAt": 1, "state": "{\\"a\\": 1}"}') == View(
        "k", "n", {"a": 1}
    )
    for wrong in (
        "",
        "[]",
        "null",
        '{"name": "n"}',
        '{"name": "n", "state": 3}',
        '{"name": "n", "state": "deflate;abcd"}',
    ):
        with pytest.raises(ValueError):
            views.decode("k", wrong)


def test_views_stay_far_below_what_a_tag_takes() -> None:
    many = Sweep("a" * 60, "cluster/0/ami", "max", {f"section.knob_number_{n}": True for n in range(12)})
    assert len(views.encode(charts.runs_view(20), {})) < views.LONGEST / 2
    assert len(views.encode(charts.sweep_view(many, 20), {})) < views.LONGEST / 2


def test_links() -> None:
    start = "http://here:5000/#/experiments/7/runs"
    assert views.link("http://here:5000/", "7") == f"{start}?workflowType=machine_learning"
    assert (
        views.link("http://here:5000", "7", view="a b")
        == f"{start}?workflowType=machine_learning&viewStateShareKey=a%20b"
    )
    assert (
        views.link("http://here:5000", "7", view="pcl", charts=True)
        == f"{start}?workflowType=machine_learning&viewStateShareKey=pcl&compareRunsMode=CHART"
    )
    assert views.link("http://here:5000", "7", run_id="r") == f"{start}/r?workflowType=machine_learning"
    assert (
        views.link("http://here:5000", "7", run_id="r", charts=True)
        == f"{start}/r/model-metrics?workflowType=machine_learning"
    )


def test_the_version_is_the_servers_or_unknown() -> None:
    from importlib import metadata

    assert views.version_at("sqlite:////somewhere/mlflow.db") == metadata.version("mlflow")
    assert views.version_at("http://127.0.0.1:9", timeout_s=1) == ""
    assert views.version_at("http://user:secret@127.0.0.1:9/below", timeout_s=1) == ""
