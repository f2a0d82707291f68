"""A sweep from its request to its result, with other hands than Ray Tune's to train its trials."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small import DIGITS_RUN
from small_sweep import SPACE, write_trial

from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, DataError, RunFailed, Stopped
from pcl_ray.runs.folder import SweepFolder
from pcl_ray.sweep import driver, tune_run
from pcl_ray.sweep import request as requests
from pcl_ray.sweep.interruption import Interruption
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.session import SweepSession

VALUES = {"loss.temperature": 0.1, "e_step.alpha": 1}
Tuned = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """Puts in Tune's place what leaves one trial of this state; gives back what it was called with."""

    def put(
        state: str = "finished", interruption: Interruption | None = None, **beside: float
    ) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def run(session: SweepSession, splits: DataSplits, *, resumed: bool) -> Interruption | None:
            calls.append({"session": session, "splits": splits, "resumed": resumed})
            if not resumed:
                trial = {"objective": 0.5, "metrics": {"eval/knn_top1": 0.5, **beside}}
                write_trial(session, VALUES, state=state, epochs=4, trial=trial)
            return interruption

        monkeypatch.setattr(tune_run, "run", run)
        return calls

    return put


def small_request(tmp_path: Path, **settings: Any) -> SweepRequest:
    (tmp_path / "small.yaml").write_text(SPACE)
    options = {f"sweep.{name}": value for name, value in settings.items()}
    return requests.check(str(tmp_path / "small.yaml"), [*DIGITS_RUN], options)


def state_of(name: str) -> Any:
    return json.loads((SweepFolder.path_of(name) / "state.json").read_text())["state"]


def test_a_sweep_is_trained_concluded_and_written(tmp_path: Path, tuned: Tuned) -> None:
    (calls, file) = tuned(), tmp_path / "result.json"
    result = driver.start(small_request(tmp_path), name="swept", result_file=file)
    assert (result.state, result.best, result.trials) == ("finished", VALUES, 1)
    assert json.loads(file.read_text())["sweep_name"] == "swept"
    assert state_of("swept") == "finished"
    (call,) = calls
    context = call["session"].context
    assert not call["resumed"]
    assert (context.num_images, context.objective.metric) == (300, "eval/knn_top1")
    assert (context.base.tracking.model, context.base.tracking.report) == (False, False)
    # labels of the test split are hidden from trials
    whole = call["session"].request.plan.num_holdout
    assert 0 < call["splits"].num_holdout <= whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_its_results_are_written(number: int, tmp_path: Path, tuned: Tuned) -> None:
    tuned(interruption=Interruption("stopped", number))
    with pytest.raises(Stopped, match="pcl-ray sweep --resume swept") as stopped:
        driver.start(small_request(tmp_path), name="swept")
    assert stopped.value.exit_code == 128 + number
    assert state_of("swept") == "stopped"
    assert (SweepFolder.path_of("swept") / "leaderboard.csv").is_file()


def test_a_spent_budget_stops_it_without_a_failure(tmp_path: Path, tuned: Tuned) -> None:
    tuned(interruption=Interruption("the budget is spent"))
    assert driver.start(small_request(tmp_path), name="swept").state == "stopped"
    assert state_of("swept") == "stopped"


def test_too_many_failures_fail_it_with_their_cause(tmp_path: Path, tuned: Tuned) -> None:
    tuned("failed", Interruption("failures: 4 trials failed one after the other"))
    with pytest.raises(RunFailed, match=r"^4 trials failed one after the other\n.*--resume swept"):
        driver.start(small_request(tmp_path), name="swept")
    assert state_of("swept") == "failed"


def test_a_sweep_whose_trials_all_failed_has_failed(tmp_path: Path, tuned: Tuned) -> None:
    tuned("failed")
    with pytest.raises(RunFailed, match="all trials failed"):
        driver.start(small_request(tmp_path), name="swept")


def test_an_error_of_tune_s_leaves_a_failed_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise RunFailed("Ray Tune failed: no disk")

    monkeypatch.setattr(tune_run, "run", run)
    with pytest.raises(RunFailed, match="no disk"):
        driver.start(small_request(tmp_path), name="swept")
    assert state_of("swept") == "failed"


@pytest.mark.parametrize(("beside", "warned"), [({}, True), ({"eval/head/knn_top1": 0.4}, False)])
def test_trials_of_an_earlier_version_are_said_to_be_of_the_head(
    beside: dict[str, float], warned: bool, tmp_path: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(**beside)
    driver.start(small_request(tmp_path), name="swept")
    assert "that of the head's output" not in capsys.readouterr().out
    driver.resume("swept", [], {"sweep.concurrency": 3})
    assert ("that of the head's output" in capsys.readouterr().out) is warned


def test_what_goes_on_is_the_stored_request_with_another_budget(tmp_path: Path, tuned: Tuned) -> None:
    calls = tuned()
    driver.start(small_request(tmp_path, seeds=2, budget_s=60), name="swept")
    (tmp_path / "small.yaml").unlink()
    driver.resume("swept", ["sweep.failures=9"], {"sweep.concurrency": 3})
    first, second = (call["session"].request for call in calls)
    assert calls[1]["resumed"]
    assert (second.settings.seeds, second.settings.failures, second.settings.concurrency) == (2, 9, 3)
    assert second.settings.budget_s is None  # it was for that session
    assert (second.space.name, second.space.base) == (first.space.name, first.space.base)
    assert second.base == first.base


def test_what_would_change_the_trials_cannot_change(tmp_path: Path, tuned: Tuned) -> None:
    tuned()
    driver.start(small_request(tmp_path), name="swept")
    with pytest.raises(ConfigError, match=r"sweep\.seeds cannot change when a sweep goes on"):
        driver.resume("swept", [], {"sweep.seeds": 3})
    with pytest.raises(ConfigError, match=r"train\.epochs cannot change"):
        driver.resume("swept", ["train.epochs=9"], {})


def test_other_images_are_not_gone_on_with(tmp_path: Path, tuned: Tuned) -> None:
    tuned()
    driver.start(small_request(tmp_path), name="swept")
    with SweepFolder.open("swept") as folder:
        folder.write_state(fingerprint="of other images")
    with pytest.raises(DataError, match="the images of sweep 'swept' have changed"):
        driver.resume("swept", [], {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "was killed before it had begun"),
        ("- a list", "is not as pcl-ray wrote it"),
        (
            yaml.safe_dump({"name": "s", "space": "../x.py", "recipe": "r", "words": [], "settings": {}}),
            "is not as",
        ),
    ],
)
def test_a_stored_request_that_is_none_is_refused(
    content: str | None, reason: str, tmp_path: Path, tuned: Tuned
) -> None:
    tuned()
    driver.start(small_request(tmp_path), name="swept")
    file = SweepFolder.path_of("swept") / "sweep.yaml"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        driver.resume("swept", [], {})


def test_runs_of_an_earlier_sweep_of_that_name_are_in_the_way(tmp_path: Path, tuned: Tuned) -> None:
    tuned()
    driver.start(small_request(tmp_path), name="swept")
    folder = SweepFolder.path_of("swept")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ConfigError, match="1 runs of an earlier sweep 'swept'"):
        driver.start(small_request(tmp_path), name="swept")
