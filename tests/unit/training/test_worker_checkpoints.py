from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import SmallTraining, alone

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import EStepState
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.errors import RunFailed
from pcl_ray.model.bank import FeatureBank
from pcl_ray.training import worker_checkpoints
from pcl_ray.training.training_task import TrainingTask
from pcl_ray.training.worker_checkpoints import EpochRecord, Progress


def clusters() -> ClusterSet:
    return ClusterSet(2, (Clustering(torch.eye(6, 16), torch.arange(300) % 6, torch.ones(6)),))


def progress(epoch: int = 2, **options: Any) -> Progress:
    history = [EpochRecord(e, 4 * e + 3, {"train/loss": 1.0 + e}) for e in range(epoch)]
    return Progress(epoch, clusters(), history, EStepState(concluded=epoch, **options))


@pytest.fixture
def small() -> SmallTraining:
    return SmallTraining.of()


@pytest.fixture
def task(small: SmallTraining, tmp_path: Path) -> TrainingTask:
    return small.task(tmp_path / "runs/one")


def restored(small: SmallTraining, task: TrainingTask) -> tuple[Any, Progress]:
    learner = small.learner()
    for parameter in learner.pair.query.parameters():
        parameter.data.zero_()
    return learner, worker_checkpoints.restore(task, learner, small.splits, alone, small.post)


def test_a_fresh_run_begins_at_nothing(small: SmallTraining, task: TrainingTask) -> None:
    learner = small.learner()
    begun = worker_checkpoints.restore(task, learner, small.splits, alone, small.post)
    assert (begun.epoch, begun.clusters, begun.history) == (0, None, [])
    assert learner.bank is None


def test_what_is_saved_comes_back(small: SmallTraining, task: TrainingTask) -> None:
    learner, saved = small.learner(), progress()
    worker_checkpoints.save(task, learner, saved, alone, task.checkpoints)
    draws = torch.rand(3)
    again, back = restored(small, task)
    assert (back.epoch, back.history) == (2, saved.history)
    assert back.clusters is not None
    assert torch.equal(back.clusters.clusterings[0].assignments, clusters().clusterings[0].assignments)
    assert vars(back.e_step) == vars(saved.e_step)
    state, expected = again.state_dict()["model"], learner.state_dict()["model"]
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(torch.rand(3), draws)  # random numbers go on


def test_the_history_has_its_form_of_old_in_the_file(small: SmallTraining, task: TrainingTask) -> None:
    worker_checkpoints.save(task, small.learner(), progress(), alone, task.checkpoints)
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    assert run_state.load(path).history == [
        {"epoch": 0, "step": 3, "metrics": {"train/loss": 1.0}},
        {"epoch": 1, "step": 7, "metrics": {"train/loss": 2.0}},
    ]


def test_the_newest_is_taken_and_the_oldest_removed(tmp_path: Path) -> None:
    small = SmallTraining.of("train.keep_checkpoints=2")
    task = small.task(tmp_path)
    for epoch in (1, 2, 3):
        worker_checkpoints.save(task, small.learner(), progress(epoch), alone, task.checkpoints)
    assert restored(small, task)[1].epoch == 3
    assert len(list(task.checkpoints.glob("*.pt"))) == 2


def test_the_bank_comes_back_and_is_no_part_of_the_progress(small: SmallTraining, task: TrainingTask) -> None:
    learner = small.learner()
    rows = torch.randn(len(small.splits.train), 16)
    learner.bank = FeatureBank(0, rows.clone(), 0.5)
    worker_checkpoints.save(task, learner, progress(), alone, task.checkpoints)
    again, back = restored(small, task)
    assert torch.equal(again.bank.rows, rows)
    assert back.e_step.bank is None


def test_a_file_that_cannot_be_read_ends_the_run(small: SmallTraining, task: TrainingTask) -> None:
    worker_checkpoints.save(task, small.learner(), progress(), alone, task.checkpoints)
    path = epoch_files.latest(task.checkpoints)
    assert path is not None
    path.write_bytes(b"nothing of use")
    with pytest.raises(RunFailed, match=path.name):
        restored(small, task)


def test_a_worker_that_does_not_see_the_file_says_so(small: SmallTraining, task: TrainingTask) -> None:
    def rank_0_sees_it(value: Any, /) -> Any:
        return ("epoch_00007.pt", "")

    learner = small.learner()
    with pytest.raises(RunFailed, match=r"worker 0 does not see .*epoch_00007\.pt: PCL_RAY_HOME must lie on"):
        worker_checkpoints.restore(task, learner, small.splits, rank_0_sees_it, small.post)


def test_all_workers_learn_that_it_could_not_be_written(small: SmallTraining, task: TrainingTask) -> None:
    shared: list[Any] = []

    def noted(value: Any, /) -> Any:
        shared.append(value)
        return value

    task.checkpoints.parent.mkdir(parents=True)
    task.checkpoints.write_text("a file where the folder should be")
    with pytest.raises(RunFailed):
        worker_checkpoints.save(task, small.learner(), progress(), noted, task.checkpoints)
    (problem,) = shared
    assert problem


def test_a_storage_has_a_copy_that_another_machine_goes_on_from(tmp_path: Path) -> None:
    small = SmallTraining.of(f"resources.storage={tmp_path / 'shared'}")
    first, second = (small.task(tmp_path / machine / "one") for machine in ("a", "b"))
    worker_checkpoints.save(first, small.learner(), progress(), alone, first.checkpoints)
    assert restored(small, second)[1].epoch == 2


def test_a_copy_for_others_stays_out_of_the_storage(tmp_path: Path) -> None:
    small = SmallTraining.of(f"resources.storage={tmp_path / 'shared'}")
    task = small.task(tmp_path / "one")
    worker_checkpoints.save(task, small.learner(), progress(), alone, tmp_path / "warm-up")
    assert restored(small, task)[1].epoch == 0


def test_seconds_of_an_epochs_e_steps_add_up_and_other_figures_are_replaced() -> None:
    record = EpochRecord(3)
    record.add({"perf/e_step_seconds": 1.0, "train/loss": 5.0})
    record.add({"perf/e_step_seconds": 0.5, "perf/feature_seconds": 0.25, "train/loss": 4.0})
    record.add({"perf/feature_seconds": 0.25})
    assert record.metrics == {"perf/e_step_seconds": 1.5, "perf/feature_seconds": 0.5, "train/loss": 4.0}
