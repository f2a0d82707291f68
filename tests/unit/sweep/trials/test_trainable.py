"""The process that Ray Tune starts for trials, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from small_sweep import open_session

from pcl_ray.data import datasets
from pcl_ray.errors import RunFailed
from pcl_ray.runs.folder import RunFolder, read_state_at
from pcl_ray.support.paths import home
from pcl_ray.sweep.trial_point import POINT, point_of, run_name_of
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.sweep.trials.trainable import RayHandles, TrialProcess

Start = Callable[[dict[str, Any]], TrialProcess]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[SweepContext]:
    with open_session(tmp_path, "sweep.shared_warmup=false", "e_step.threads=1") as session:
        splits = datasets.load(session.context.base.data, cache_dir=tmp_path)
        yield replace(session.context, num_holdout=splits.num_holdout, home=str(home()))


@pytest.fixture
def start(context: SweepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a process for a trial, as `tune.with_parameters` would."""
    splits = datasets.load(context.base.data, cache_dir=tmp_path)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    handles: Any = RayHandles(SimpleNamespace(splits=splits), warmups=None)  # type: ignore[arg-type]
    begun: list[TrialProcess] = []

    class Direct(TrialProcess):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, context, handles)

    def start(config: dict[str, Any]) -> TrialProcess:
        begun.append(Direct(config))
        return begun[-1]

    yield start
    for process in begun:
        process.cleanup()


def listed(alpha: int, member: int | None = None) -> dict[str, Any]:
    values = {"loss.temperature": 0.1, "e_step.alpha": alpha}
    return {POINT: {"values": values, "seed": 0, "member": member}}


def state_of(context: SweepContext, config: dict[str, Any]) -> dict[str, Any]:
    return read_state_at(RunFolder.path_of(run_name_of(context.sweep, point_of(config, 0))))


def test_a_process_takes_one_trial_after_the_other(start: Start, context: SweepContext) -> None:
    process = start(listed(1))
    assert process.step()["epoch"] == 1
    assert process.reset_config(listed(10))
    assert state_of(context, listed(1))["state"] == "stopped"
    assert process.step()["epoch"] == 1
    assert state_of(context, listed(10))["point"]["e_step.alpha"] == 10


def test_values_that_no_run_can_have_are_reported_and_then_final(start: Start) -> None:
    process = start({"e_step.alpha": -3})
    result = process.step()
    assert result["epoch"] == 0
    assert "e_step.alpha" in result["failing"]
    with pytest.raises(RunFailed, match=r"e_step\.alpha"):
        process.step()


def test_a_member_takes_over_from_another_one_s_checkpoint_not_from_its_own(
    start: Start, context: SweepContext, tmp_path: Path
) -> None:
    strong = start(listed(10, member=0))
    strong.step()
    saved = tmp_path / "saved"
    saved.mkdir()
    strong.save_checkpoint(str(saved))
    assert json.loads((saved / "trial.json").read_text()) == {
        "member": 0,
        "values": {"loss.temperature": 0.1, "e_step.alpha": 10},
        "file": "epoch_00001.pt",
    }
    strong.load_checkpoint(str(saved))
    assert "exploits" not in state_of(context, listed(10, member=0))
    weak = start(listed(1, member=1))
    weak.load_checkpoint(str(saved))
    (exploit,) = state_of(context, listed(1, member=1))["exploits"]
    assert (exploit["from"], exploit["file"]) == (0, "epoch_00001.pt")
    assert exploit["new"]["e_step.alpha"] == 1
    assert weak.step()["epoch"] == 2


def test_outside_of_populations_a_checkpoint_of_tune_s_has_no_file(start: Start, tmp_path: Path) -> None:
    process = start(listed(1))
    process.step()
    process.save_checkpoint(str(tmp_path))
    assert not list(tmp_path.glob("*.pt"))
    process.load_checkpoint(str(tmp_path))
    assert process.step()["epoch"] == 2
