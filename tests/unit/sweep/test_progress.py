"""What the sweep's process sees and says of its trials while Tune runs them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_sweep import open_session, printed, write_trial

from pcl_ray.runs.folder import RunFolder, read_state_at
from pcl_ray.sweep.progress import ProgressCallback
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.trial_point import POINT


class FakeInterrupter:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.repeated = 0

    def fail(self, reason: str) -> None:
        self.reasons.append(reason)

    def repeat(self) -> None:
        self.repeated += 1


class FakeTrial:
    """A trial as Tune hands it to its callbacks."""

    def __init__(self, number: int, alpha: int = 1):
        self.trial_id = f"abc_{number:05d}"
        self.values = {"loss.temperature": 0.1, "e_step.alpha": alpha}
        self.config = {POINT: {"values": self.values, "seed": 0, "member": None}}
        self.max_failures = 7
        self.run_metadata = type("Metadata", (), {"num_failures": 5})()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SweepSession]:
    with open_session(tmp_path, "sweep.failures=2", "sweep.process_failures=3") as session:
        yield session


def callback(session: SweepSession, **options: Any) -> tuple[ProgressCallback, FakeInterrupter]:
    interrupter: Any = FakeInterrupter()
    return ProgressCallback(session, 4, interrupter, **options), interrupter


def logged(session: SweepSession) -> list[tuple[dict[str, float], int]]:
    tracker: Any = session.tracker
    return tracker.logged


def test_a_finished_trial_is_printed_counted_and_logged(session: SweepSession) -> None:
    ended = threading.Event()
    progress, _ = callback(session, first_end=ended.set, ended_before=["small.before"])
    trial = FakeTrial(0)
    run = write_trial(session, trial.values, trial={"objective": 0.5})
    progress.on_trial_result(1, [], trial, {"epoch": 4, "of": 4, "run": run, "score": 0.5})
    progress.on_trial_complete(1, [], trial)
    title = read_state_at(RunFolder.path_of(run))["title"]
    assert printed(session) == f"trial 2/4  {title}  finished, 4 epochs  eval/knn_top1 0.5000\n"
    assert logged(session) == [({"sweep/ended": 2.0, "sweep/failed": 0.0, "sweep/best_score": 0.5}, 2)]
    assert ended.wait(30)


def test_the_live_table_has_the_best_so_far_and_the_recipe(session: SweepSession) -> None:
    def shown() -> str:
        with session.console.capture() as captured:
            session.console.print(progress._table())
        return captured.get()

    progress, _ = callback(session)
    assert "recipe      its own values are not measured yet" in shown()
    own = session.request.recipe_point
    assert own == {"loss.temperature": 0.2, "e_step.alpha": 10.0}
    recipe, other = FakeTrial(0), FakeTrial(1)
    recipe.config = {POINT: {"values": own, "seed": 0, "member": None}}
    for trial, values, objective in ((recipe, own, 0.7), (other, other.values, 0.8)):
        run = write_trial(session, values, trial={"objective": objective})
        result = {"epoch": 4, "of": 4, "run": run, "score": objective, "objective": objective}
        progress.on_trial_result(1, [], trial, result)
        progress.on_trial_complete(1, [], trial)
    text = shown()
    assert "best so far " in text
    assert " 0.8000; 2 of 4 trials ended" in text
    assert "recipe      its own values reach 0.7000" in text
    assert printed(session).splitlines()[0].endswith("eval/knn_top1 0.7000  (the recipe's own)")
    assert printed(session).splitlines()[1].endswith("eval/knn_top1 0.8000")


def test_one_that_tune_stopped_is_marked_as_stopped_early(session: SweepSession) -> None:
    progress, _ = callback(session)
    trial = FakeTrial(0)
    run = write_trial(session, trial.values)
    progress.on_trial_result(1, [], trial, {"epoch": 2, "of": 4, "run": run})
    progress.on_trial_complete(1, [], trial)
    assert read_state_at(RunFolder.path_of(run))["state"] == "stopped early"
    assert "stopped early, 2 epochs" in printed(session)


def test_failures_one_after_the_other_end_the_sweep_with_the_most_frequent_reason(
    session: SweepSession,
) -> None:
    progress, interrupter = callback(session)
    for number, reason in enumerate(["loss nan in epoch 1", "loss nan in epoch 2", "no room"]):
        trial = FakeTrial(number)
        progress.on_trial_result(1, [], trial, {"epoch": 0, "failing": reason, "run": "small.x"})
        assert trial.max_failures == 0  # once more would be the same
        progress.on_trial_error(1, [], trial)
    (told,) = interrupter.reasons  # once
    assert told == "2 trials failed one after the other. 2 of them: loss nan in epoch 1"


def test_a_success_between_failures_begins_the_count_anew(session: SweepSession) -> None:
    progress, interrupter = callback(session)
    for number in range(4):
        trial = FakeTrial(number)
        if number % 2:
            progress.on_trial_result(1, [], trial, {"epoch": 4, "of": 4})
            progress.on_trial_complete(1, [], trial)
        else:
            progress.on_trial_error(1, [], trial)
    assert interrupter.reasons == []


def test_a_lost_process_fails_the_run_that_tune_s_trial_stands_for(session: SweepSession) -> None:
    progress, _ = callback(session)
    trial = FakeTrial(0, alpha=10)
    run = write_trial(session, trial.values)
    progress.on_trial_error(1, [], trial)
    state = read_state_at(RunFolder.path_of(run))
    assert (state["state"], state["error"]) == ("failed", "its process was lost 4 times")


def test_each_turn_of_the_loop_repeats_the_interruption_and_a_trial_begins_with_this_session_s_limits(
    session: SweepSession,
) -> None:
    progress, interrupter = callback(session)
    trial = FakeTrial(0)
    progress.on_step_begin(1, [trial])
    assert (trial.max_failures, trial.run_metadata.num_failures) == (3, 0)
    trial.run_metadata.num_failures = 1
    progress.on_step_begin(2, [trial])
    assert trial.run_metadata.num_failures == 1
    assert interrupter.repeated == 2


def test_it_is_pickled_without_what_only_this_process_has(session: SweepSession) -> None:
    progress, _ = callback(session)
    assert vars(pickle.loads(pickle.dumps(progress))) == {}


def test_what_status_shows_of_the_sweep_is_written_into_its_folder(session: SweepSession) -> None:
    progress, _ = callback(session, ended_before=["small.before"])
    one, two = FakeTrial(0), FakeTrial(1, alpha=10)
    for trial, score in ((one, 0.5), (two, 0.75)):
        result = {"epoch": 4, "of": 4, "run": write_trial(session, trial.values), "score": score}
        progress.on_trial_result(1, [], trial, result | {"objective": score})
        progress.on_trial_complete(1, [], trial)
    third = FakeTrial(2, alpha=3)
    progress.on_trial_result(1, [], third, {"epoch": 2, "of": 4, "run": write_trial(session, third.values)})
    progress.on_trial_error(1, [], third)
    state = session.folder.read_state()
    assert state["phase"] == "training"
    assert {name: state["progress"][name] for name in ("trials", "ended", "running", "figure", "value")} == {
        "trials": 4,
        "ended": 4,
        "running": 0,
        "figure": "eval/knn_top1",
        "value": 0.75,
    }
    assert state["progress"]["left_s"] == 0.0
