"""How a sweep's trials come into Ray Tune: how many at a time, after which waiting, new or restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from small_sweep import open_session, printed

from pcl_ray.errors import ConfigError
from pcl_ray.on_ray.reserving import admission
from pcl_ray.sweep import tune_run
from pcl_ray.sweep.interruption import Interrupter
from pcl_ray.sweep.progress import ProgressCallback
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.trials.trainable import RayHandles


def concurrency(session: SweepSession, *nodes: dict[str, float]) -> int:
    return tune_run.concurrency(session.request, session.context, nodes)


def test_as_many_trials_as_fit_unless_fewer_are_wanted(tmp_path: Path) -> None:
    with open_session(tmp_path, "resources.cpus_per_worker=2") as session:
        assert concurrency(session, {"CPU": 8.0}, {"CPU": 3.0}) == 5
    limited = ("sweep.concurrency=3", "resources.cpus_per_worker=2")
    with open_session(tmp_path, *limited, name="limited") as session:
        assert concurrency(session, {"CPU": 8.0}, {"CPU": 3.0}) == 3
        assert concurrency(session, {"CPU": 4.0}) == 2


def test_a_cluster_that_holds_not_one_trial_is_told_with_what_it_has(tmp_path: Path) -> None:
    with open_session(tmp_path, "resources.workers=2") as session, pytest.raises(ConfigError) as error:
        concurrency(session, {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0})
    (problem,) = error.value.problems
    assert problem.name == "resources.workers"
    assert "one trial takes 0 GPUs and 3.01 CPUs with its E-step actor" in problem.message
    assert problem.message.endswith("the cluster has 1 and 2")


def test_a_grid_lists_its_trials_a_searcher_suggests_them(tmp_path: Path) -> None:
    with open_session(tmp_path, "sweep.seeds=2") as session:
        schedule = tune_run.schedule_of(session.request, session.context, 3)
        assert schedule.listed is not None
        assert (len(schedule.listed), schedule.total, schedule.at_a_time) == (10, 10, 3)
        recipe = {"loss.temperature": 0.2, "e_step.alpha": 10.0}  # of the digits
        assert [point["values"] for point in schedule.listed].count(recipe) == 2
        assert [(point["values"], point["seed"]) for point in schedule.listed[:2]] == [
            (recipe, 0),
            (recipe, 1),
        ]
    with open_session(tmp_path, "sweep.search=optuna", "sweep.samples=5", name="suggested") as session:
        schedule = tune_run.schedule_of(session.request, session.context, 3)
        assert (schedule.listed, schedule.total) == (None, 6)


POPULATION = ("sweep.scheduler=pbt", "sweep.samples=4", "train.epochs=8")


def test_a_population_whose_members_have_workers_must_fit_all_at_once(tmp_path: Path) -> None:
    with open_session(tmp_path, *POPULATION, "resources.workers=1") as session:
        members = tune_run.schedule_of(session.request, session.context, 4).total
        with pytest.raises(ConfigError, match="trains all at once, and 1 fit the cluster"):
            tune_run.schedule_of(session.request, session.context, 1)
    with open_session(tmp_path, *POPULATION, name="turns") as session:  # in one process each they take turns
        assert tune_run.schedule_of(session.request, session.context, 1).total == members


def test_waiting_for_room_asks_for_all_of_one_trial_and_is_told_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Admission:
        def release(self) -> None:
            calls.append("released")

    def admit(run: str, bundles: Any, timeout_s: float, say: admission.Say) -> Admission:
        say("waiting for 3.01 CPUs")
        calls.extend([run, bundles, timeout_s, session.folder.read_state()["waits_for"]])
        say("")
        return Admission()

    monkeypatch.setattr(admission, "admit", admit)
    with open_session(tmp_path, "resources.workers=2", "resources.queue_timeout_s=7") as session:
        tune_run.wait_for_room(session)
        assert calls == [
            "small",
            [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}, {"CPU": 0.01}],
            7,
            "waiting for 3.01 CPUs",
            "released",
        ]
        assert session.folder.read_state()["waits_for"] == ""
        assert printed(session) == "waiting for 3.01 CPUs\nthere is room now\n"


def tuner_of(session: SweepSession, at_a_time: int, *, resumed: bool) -> tuple[Any, ProgressCallback]:
    """What Tune was told, and the callback that it was given."""
    schedule = tune_run.schedule_of(session.request, session.context, at_a_time)
    progress = ProgressCallback(session, schedule.total, Interrupter(None))
    handles: Any = RayHandles(data=None, warmups=None)
    tuner = tune_run.tuner_of(session, handles, schedule, progress, resumed=resumed)
    assert isinstance(tuner, tune.Tuner)
    return tuner._local_tuner, progress


def test_an_experiment_is_new_and_then_restored_with_another_callback_and_concurrency(tmp_path: Path) -> None:
    with open_session(tmp_path) as session:
        new, first = tuner_of(session, 2, resumed=True)  # nothing to restore: killed before Tune began
        assert new._tune_config.max_concurrent_trials == 2
        assert new._tune_config.num_samples == 5
        assert new._tune_config.reuse_actors
        assert new._run_config.callbacks == [first]
        assert (session.folder.path / "tune" / "experiment" / "tuner.pkl").is_file()
        restored, second = tuner_of(session, 3, resumed=True)
        assert restored._is_restored
        assert restored._run_config.callbacks == [second]
        assert restored._tune_config.max_concurrent_trials == 3


def test_members_of_a_population_are_all_under_way(tmp_path: Path) -> None:
    with open_session(tmp_path, *POPULATION) as session:
        for resumed in (False, True):
            population, _ = tuner_of(session, 1, resumed=resumed)
            assert population._tune_config.max_concurrent_trials is None
            assert population._tune_config.num_samples == 1
            assert population._run_config.checkpoint_config.num_to_keep == 4
