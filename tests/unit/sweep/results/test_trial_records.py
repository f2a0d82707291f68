"""What the folders of a sweep's runs say of its trials."""

from __future__ import annotations

import pytest
from small_sweep import write_trial

from pcl_ray.report.sweep import leaderboard
from pcl_ray.runs.folder import RunFolder, read_state_at, write_state_at
from pcl_ray.sweep.results import trial_records
from pcl_ray.sweep.session import SweepSession

WEAK, STRONG = ({"loss.temperature": 0.1, "e_step.alpha": alpha} for alpha in (1, 10))


def summary(objective: float, **metrics: float) -> dict[str, object]:
    return {
        "objective": objective,
        "refused": "",
        "device_seconds": 90.0,
        "saved_seconds": 30.0,
        "metrics": {"eval/knn_top1": objective, **metrics},
    }


def test_a_trial_is_read_with_its_point_and_its_figures(session: SweepSession) -> None:
    name = write_trial(session, STRONG, seed=2, state="finished", epochs=4, trial=summary(0.5))
    (record,) = trial_records.read("small")
    assert (record.run_name, record.state, record.point, record.seed) == (name, "finished", STRONG, 2)
    assert (record.objective, record.epochs, record.metrics) == (0.5, 4, {"eval/knn_top1": 0.5})


def test_one_that_has_no_figures_yet_or_is_another_sweep_s(session: SweepSession) -> None:
    write_trial(session, WEAK, state="running")
    other = write_trial(session, STRONG, state="finished")
    write_state_at(RunFolder.path_of(other), sweep="another")
    (record,) = trial_records.read("small")
    assert (record.state, record.objective, record.metrics) == ("unfinished", None, {})


def test_only_those_that_need_no_more_training_have_ended(session: SweepSession) -> None:
    states = ["finished", "stopped early", "failed", "stopped"]
    names = [write_trial(session, WEAK, seed, state=state) for seed, state in enumerate(states)]
    assert sorted(trial_records.ended("small")) == sorted(names[:2])


def test_totals_count_states_and_device_time(session: SweepSession) -> None:
    for seed, state in enumerate(["finished", "finished", "stopped early", "failed"]):
        write_trial(session, WEAK, seed, state=state, trial=summary(0.5))
    totals = trial_records.totals(trial_records.read("small"), seconds=7.0)
    assert totals == {
        "sweep/device_minutes": 6.0,
        "sweep/saved_minutes": 2.0,
        "sweep/trials_on_shared_warmup": 4.0,
        "sweep/seconds": 7.0,
        "sweep/trials": 4.0,
        "sweep/finished": 2.0,
        "sweep/stopped_early": 1.0,
        "sweep/failed": 1.0,
    }


def test_the_means_of_a_configuration_are_of_what_all_its_seeds_have(session: SweepSession) -> None:
    write_trial(session, WEAK, 0, state="finished", trial=summary(0.4, other=1.0))
    write_trial(session, WEAK, 1, state="finished", trial=summary(0.6))
    (row,) = leaderboard.ranked(trial_records.read("small"), "max")
    assert trial_records.means(row) == {"eval/knn_top1": pytest.approx(0.5)}


def test_exploits_say_which_member_they_are_of(session: SweepSession) -> None:
    name = write_trial(session, WEAK, exploits=[{"from": 1, "new": {}}])
    write_state_at(RunFolder.path_of(name), member=3)
    write_trial(session, STRONG)
    assert trial_records.exploits("small") == [{"member": 3, "from": 1, "new": {}}]


def test_runs_whose_process_was_killed_are_closed_and_those_under_way_left_alone(
    session: SweepSession,
) -> None:
    killed = write_trial(session, WEAK, state="running")
    held = write_trial(session, STRONG, state="running")
    for name in (killed, held):
        write_state_at(RunFolder.path_of(name), recorded=False)
    with RunFolder.open(held):
        trial_records.close_mlflow_runs(session.context)
    assert read_state_at(RunFolder.path_of(killed))["state"] == "stopped"
    assert read_state_at(RunFolder.path_of(held))["state"] == "running"
