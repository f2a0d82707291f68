"""Trials of a sweep in one process: shared warm-ups bit by bit, ends of all kinds, population members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import DIGITS_RUN

from pcl_ray import config, plan
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.data import datasets
from pcl_ray.errors import RunFailed
from pcl_ray.runs.folder import RunFolder, read_state_at, write_state_at
from pcl_ray.support.paths import home
from pcl_ray.sweep import warm_ups
from pcl_ray.sweep.space import objective
from pcl_ray.sweep.space.settings import SweepConfig
from pcl_ray.sweep.trial_point import TrialPoint, run_name_of
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.sweep.trials.trial import Trial
from pcl_ray.sweep.warm_ups import Warmups
from pcl_ray.training.events import Post
from pcl_ray.training.local_e_step import LocalEStep
from pcl_ray.training.loop import epochs
from pcl_ray.training.training_task import TrainingTask

BASE = config.load(
    "digits",
    (*DIGITS_RUN, "train.epochs=5", "e_step.warmup_epochs=2", "resources.workers=0", "e_step.threads=1"),
)
SPLITS = datasets.load(BASE.data, cache_dir=Path("unused"))


def context(base: config.RunConfig = BASE, metric: str = "eval/knn_top1", **knobs: Any) -> SweepContext:
    return SweepContext(
        "s",
        base,
        SweepConfig(**knobs),
        objective.of(metric),
        len(SPLITS.train),
        SPLITS.num_holdout,
        "f",
        str(home()),
        None,
    )


def in_this_process(task: TrainingTask, post: Post) -> Iterator[int]:
    return epochs(
        task,
        SPLITS,
        device=torch.device("cpu"),
        e_step=LocalEStep(task.config, SPLITS),
        broadcast=lambda value: value,
        post=post,
    )


def warmups() -> Warmups:
    return Warmups(str(home() / "sweeps" / "s" / "warmups"))


def to_its_end(trial: Trial) -> list[dict[str, Any]]:
    results = []
    while not results or not (results[-1].get("done") or "failing" in results[-1]):
        results.append(trial.step())
        assert len(results) < 20
    return results


def state_of(name: str) -> run_state.RunState:
    newest = epoch_files.latest(RunFolder.path_of(name) / "checkpoints")
    assert newest is not None
    return run_state.load(newest)


def figures(state: run_state.RunState) -> list[dict[str, float]]:
    """Without what is measured by the clock."""
    return [
        {name: value for name, value in entry["metrics"].items() if not name.startswith("perf/")}
        for entry in state.history
    ]


def assert_same(one: run_state.RunState, two: run_state.RunState) -> None:
    assert figures(one) == figures(two)
    assert one.clusters is not None
    assert two.clusters is not None
    for a, b in zip(one.clusters.clusterings, two.clusters.clusterings, strict=True):
        assert torch.equal(a.prototypes, b.prototypes)
        assert torch.equal(a.assignments, b.assignments)
        assert torch.equal(a.concentration, b.concentration)
    assert_equal(one.learner, two.learner, "learner")
    assert_equal(one.random_states, two.random_states, "random states")


def assert_equal(one: Any, two: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for name in one:
            assert_equal(one[name], two[name], f"{where} {name}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where} {number}")
    else:
        assert one == two, where


@pytest.mark.parametrize(
    "extra", [{}, {"e_step.features": "bank"}, {"e_step.overlap": True, "e_step.switch_step": 1}]
)
def test_a_trial_on_a_shared_warmup_is_bit_by_bit_what_it_is_alone(extra: dict[str, Any]) -> None:
    base = config.with_overrides(BASE, extra)
    first, second = (
        TrialPoint({"e_step.alpha": alpha, "e_step.num_clusters": k}, 3)
        for alpha, k in ((10.0, "6,12"), (1.0, "9"))
    )
    shared = context(base)
    claims = warmups()
    to_its_end(Trial(first, shared, in_this_process, claims))
    results = to_its_end(Trial(second, shared, in_this_process, claims))
    assert [result["epoch"] for result in results] == [3, 4, 5]
    follower = read_state_at(RunFolder.path_of(run_name_of("s", second)))
    assert follower["began"] == 2
    assert follower["trial"]["saved_seconds"] > 0

    alone = SweepContext(**{**vars(shared), "sweep": "alone", "settings": SweepConfig(shared_warmup=False)})
    for point in (first, second):
        assert len(to_its_end(Trial(point, alone, in_this_process, claims))) == 5
        assert_same(state_of(run_name_of("s", point)), state_of(run_name_of("alone", point)))


def test_a_trial_waits_while_another_trains_its_warmup_and_takes_over_when_that_one_is_gone() -> None:
    claims = warmups()
    key = warm_ups.key_of(BASE)
    assert claims.claim(key, "other").kind == "train"
    trial = Trial(TrialPoint({"e_step.alpha": 1.0}, 0), context(), in_this_process, claims, wait_s=0)
    assert trial.step() == {"epoch": 0, "waiting": True}
    claims.release(key, "other")
    assert trial.step()["epoch"] == 1
    trial.close()
    assert claims.claim(key, "other").kind == "train"  # closed in the warm-up: it gave its claim back


def test_an_interrupted_trial_goes_on_and_ends_as_one_that_was_not() -> None:
    point = TrialPoint({"e_step.alpha": 2.0}, 0)
    whole = SweepContext(**{**vars(context()), "sweep": "whole"})
    to_its_end(Trial(point, whole, in_this_process, warmups()))
    trial = Trial(point, context(shared_warmup=False), in_this_process, warmups())
    for _ in range(3):
        trial.step()
    trial.close()
    assert read_state_at(RunFolder.path_of(trial.name))["state"] == "stopped"
    again = Trial(point, context(shared_warmup=False), in_this_process, warmups())
    assert [result["epoch"] for result in to_its_end(again)] == [4, 5]
    assert_same(state_of(run_name_of("s", point)), state_of(run_name_of("whole", point)))


def test_a_point_that_was_trained_already_gives_its_result_at_once() -> None:
    point = TrialPoint({"e_step.alpha": 2.0}, 0)
    last = to_its_end(Trial(point, context(), in_this_process, warmups()))[-1]
    again = Trial(point, context(), in_this_process, warmups()).step()
    assert again == {
        "epoch": 5,
        "of": 5,
        "done": True,
        "known": True,
        "early": False,
        "run": last["run"],
        "score": last["score"],
    }


def test_one_that_its_scheduler_stopped_stays_stopped() -> None:
    trial = Trial(TrialPoint({}, 0), context(), in_this_process, warmups())
    trial.step()
    write_state_at(RunFolder.path_of(trial.name), state="stopped early")
    trial.close()
    assert read_state_at(RunFolder.path_of(trial.name))["state"] == "stopped early"
    assert Trial(TrialPoint({}, 0), context(), in_this_process, warmups()).step()["early"]


def test_a_run_of_that_name_with_other_settings_is_not_taken_for_the_trial() -> None:
    to_its_end(Trial(TrialPoint({}, 0), context(), in_this_process, warmups()))
    other = config.with_overrides(BASE, {"optimizer.lr": 0.5})
    assert (
        "there already with other settings (optimizer.lr)"
        in Trial(TrialPoint({}, 0), context(other), in_this_process, warmups()).step()["failing"]
    )


def test_two_trials_of_one_point_do_not_train_it_twice() -> None:
    one, two = (Trial(TrialPoint({}, 0), context(), in_this_process, warmups(), wait_s=0) for _ in range(2))
    one.step()
    assert two.step() == {"epoch": 0, "waiting": True}
    to_its_end(one)
    assert two.step()["known"]


def test_a_failure_costs_the_trial_and_is_kept_with_its_reason() -> None:
    def failing(task: TrainingTask, post: Post) -> Iterator[int]:
        yield from ()
        raise RunFailed("the loss is nan in epoch 1")

    trial = Trial(TrialPoint({}, 0), context(), failing, warmups())
    assert trial.step() == {"epoch": 0, "failing": "the loss is nan in epoch 1", "run": trial.name}
    with pytest.raises(RunFailed, match="the loss is nan"):
        trial.step()
    state = read_state_at(RunFolder.path_of(trial.name))
    assert (state["state"], state["error"]) == ("failed", "the loss is nan in epoch 1")
    # asked for again, it is tried again
    assert to_its_end(Trial(TrialPoint({}, 0), context(), in_this_process, warmups()))[-1]["done"]


def test_a_bug_or_lack_of_memory_is_a_failure_too() -> None:
    def broken(task: TrainingTask, post: Post) -> Iterator[int]:
        raise MemoryError("no room")

    trial = Trial(TrialPoint({}, 0), context(), broken, warmups())
    assert trial.step()["failing"] == "MemoryError: no room"
    assert "MemoryError" in (RunFolder.path_of(trial.name) / "error.txt").read_text()


def test_a_collapsed_trial_has_the_worst_score_and_says_why() -> None:
    guarded = context(metric="eval/rankme", min_rank=60.0)
    result = to_its_end(Trial(TrialPoint({}, 0), guarded, in_this_process, warmups()))[-1]
    assert result["score"] == objective.WORST
    assert "below sweep.min_rank = 60" in result["refused"]
    assert result["objective"] > 1


def test_the_title_says_what_sets_the_trial_apart() -> None:
    values = {
        "e_step.num_clusters": "0.02,0.04",
        "loss.temperature": 0.1,
        "e_step.alpha": 10,
        "optimizer.lr": 0.05,
    }
    assert (
        Trial(TrialPoint(values, 4), context(), in_this_process, warmups()).title
        == "tau0.1-a10-K6+12-lr0.05-s4"
    )


@pytest.mark.parametrize(
    "extra", [{}, {"e_step.every_epochs": 2}, {"e_step.overlap": True}, {"e_step.features": "bank"}]
)
def test_a_member_goes_on_from_another_with_its_own_values(extra: dict[str, Any]) -> None:
    """Also where the plan has no E-step before the next epoch, or would let it overlap with that."""
    base = config.with_overrides(BASE, extra)
    strong = Trial(
        TrialPoint({"loss.temperature": 0.1, "e_step.num_clusters": "6,12"}, 0, member=0),
        context(base),
        in_this_process,
        warmups(),
    )
    weak = Trial(
        TrialPoint({"loss.temperature": 0.5, "e_step.num_clusters": "20"}, 1, member=1),
        context(base),
        in_this_process,
        warmups(),
    )
    for _ in range(3):
        strong.step()
        weak.step()
    donor = strong.checkpoint()
    assert donor is not None
    weak.close()
    values = {"loss.temperature": 0.12, "e_step.num_clusters": "9"}
    explored = Trial(TrialPoint(values, 1, member=1), context(base), in_this_process, warmups())
    exploit = {"from": 0, "file": donor.name, "old": dict(strong.point.values), "new": values}
    explored.take_over(donor, exploit)
    taken = state_of(explored.name)
    for name, value in run_state.load(donor).learner["model"].items():
        assert torch.equal(value, taken.learner["model"][name]), name
    assert taken.e_step.anew
    assert explored.step()["epoch"] == 4
    after = state_of(explored.name)
    assert after.clusters is not None
    assert [c.num_clusters for c in after.clusters.clusterings] == [9]
    assert after.history[-1]["metrics"]["train/lr"] == pytest.approx(
        plan.make(BASE, 300, 0).lr_at(after.history[-1]["step"])
    )
    state = read_state_at(RunFolder.path_of(explored.name))
    assert state["exploits"] == [exploit]
    assert state["point"] == values
    explored.take_over(donor, exploit)  # its process was lost and came back: nothing is done twice
    assert len(read_state_at(RunFolder.path_of(explored.name))["exploits"]) == 1
    explored.close()
    strong.close()


def test_a_trial_begins_with_trained_weights() -> None:
    to_its_end(Trial(TrialPoint({}, 0), context(), in_this_process, warmups()))
    source = next((home() / "runs").iterdir()).name
    base = config.with_overrides(BASE, {"encoder.init_from": source, "train.keep_checkpoints": 3})
    trial = Trial(TrialPoint({}, 1), context(base), in_this_process, warmups())
    assert trial.step()["epoch"] == 1
    first = RunFolder.path_of(trial.name) / "checkpoints" / "epoch_00000.pt"
    begun, ended = run_state.load(first), state_of(source)
    assert_equal(begun.learner["model"], ended.learner["model"], "model")
    trial.close()
