"""When clusters come into force and which epoch gets which figures, with answers made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_training import SmallTraining

from pcl_ray.checkpoints.run_state import EStepState
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.training.e_step_actor import EStepAnswer
from pcl_ray.training.e_step_schedule import EStepSchedule
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.worker_checkpoints import EpochRecord, Progress


def clusters(epoch: int) -> ClusterSet:
    return ClusterSet(epoch, (Clustering(torch.eye(6, 16), torch.arange(300) % 6, torch.ones(6)),))


class MadeUp:
    """An EStep whose answers are given; those under way are there after so many looks."""

    def __init__(self, *answers: EStepAnswer, after: int = 0):
        self.answers = list(answers)
        self.after = after
        self.begun: list[tuple[str, EStepRequest, set[str], ClusterSet | None]] = []
        self.shards: dict[str, FeatureShard] = {}

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> MadeUp:
        self.begun.append((key, request, set(shards), previous))
        self.shards = shards
        return self

    def ready(self) -> bool:
        self.after -= 1
        return self.after < 0

    def wait(self) -> EStepAnswer:
        return self.answers.pop(0)


class Setting:
    def __init__(self, *answers: EStepAnswer, words: tuple[str, ...] = (), epoch: int = 2, after: int = 0):
        self.small = SmallTraining.of(*words)
        self.e_step = MadeUp(*answers, after=after)
        self.progress = Progress(epoch, clusters(epoch - 1), [EpochRecord(epoch - 1, 7, {"train/loss": 1.0})])
        self.learner = self.small.learner()
        self.schedule = EStepSchedule(
            "run",
            self.learner,
            self.small.features(),
            self.progress,
            self.small.config,
            self.small.plan,
            self.e_step,
            self.small.post,
        )


GOOD = EStepAnswer(
    clusters(2), {"eval/rankme": 5.0, "perf/evaluation_seconds": 0.5, "cluster/0/phi_mean": 0.2}
)
OVERLAP = ("e_step.overlap=true", "e_step.switch_step=2")


def test_without_overlap_the_clusters_are_in_force_at_once() -> None:
    setting = Setting(GOOD)
    output = setting.schedule.begin(2, evaluate=True)
    assert output.clusters is GOOD.clusters is setting.progress.clusters
    assert vars(setting.progress.e_step) == vars(EStepState(concluded=2))
    assert output.encoder_figures == {}
    assert set(output.epoch_figures) == {
        *GOOD.metrics,
        "perf/feature_seconds",
        "perf/e_step_seconds",
        "cluster/failures",
    }
    assert output.epoch_figures["cluster/failures"] == 0
    assert setting.schedule.switch(0) is None
    assert setting.schedule.finish() is None
    assert setting.small.texts("phase") == ["features", "clustering"]


def test_what_is_asked_for() -> None:
    setting = Setting(GOOD)
    before = setting.progress.clusters
    setting.schedule.begin(2, evaluate=True)
    ((key, request, parts, previous),) = setting.e_step.begun
    steps = setting.small.plan.steps_per_epoch
    images, holdout = len(setting.small.splits.train), setting.small.splits.num_holdout
    assert key == "run/2"
    assert request == EStepRequest(2, True, True, 1, images, images, holdout, 2 * steps - 1, request.show)
    assert parts == {"train", "bank", "bank/head", "queries", "queries/head"}
    assert previous is before


def test_the_final_evaluation_is_asked_for_after_the_last_epoch_alone() -> None:
    setting = Setting(GOOD, GOOD, GOOD)
    last = setting.small.plan.epochs
    for epoch, evaluate in ((last - 1, True), (last, False), (last, True)):
        setting.schedule.begin(epoch, evaluate=evaluate)
    assert [(request.epoch, request.final) for _, request, _, _ in setting.e_step.begun] == [
        (last - 1, False),
        (last, False),
        (last, True),
    ]


def test_where_nothing_is_planned_nothing_is_asked() -> None:
    setting = Setting(words=("e_step.warmup_epochs=3",))
    output = setting.schedule.begin(2, evaluate=False)
    assert (output.clusters, output.encoder_figures, output.epoch_figures) == (None, {}, {})
    assert setting.e_step.begun == []
    assert setting.small.events == []


def test_an_evaluation_alone_leaves_the_clusters() -> None:
    setting = Setting(EStepAnswer(metrics={"eval/rankme": 5.0}), words=("e_step.warmup_epochs=3",))
    before = setting.progress.clusters
    output = setting.schedule.begin(2, evaluate=True)
    assert set(output.epoch_figures) == {"perf/feature_seconds", "eval/rankme"}
    assert output.clusters is None
    assert setting.progress.clusters is before
    assert setting.small.texts("phase") == ["features", "evaluation"]
    assert not setting.e_step.begun[0][1].cluster


def test_an_e_step_anew_comes_whatever_the_plan_says() -> None:
    setting = Setting(GOOD, words=("e_step.warmup_epochs=3", *OVERLAP))
    assert setting.schedule.begin(2, evaluate=False, anew=True).clusters is GOOD.clusters


def test_with_overlap_the_clusters_come_before_the_fixed_step() -> None:
    setting = Setting(GOOD, words=OVERLAP)
    earlier = setting.progress.clusters
    begun = setting.schedule.begin(2, evaluate=True)
    assert begun.clusters is None
    assert set(begun.epoch_figures) == {"perf/feature_seconds", "perf/e_step_seconds"}
    assert [setting.schedule.switch(step) for step in (0, 1)] == [None, None]
    assert setting.progress.clusters is earlier
    output = setting.schedule.switch(2)
    assert output is not None
    assert output.clusters is GOOD.clusters is setting.progress.clusters
    assert set(output.encoder_figures) == {*GOOD.metrics, "cluster/failures"}
    assert set(output.epoch_figures) == {"perf/e_step_seconds"}  # the wait is the present epoch's
    assert setting.schedule.switch(3) is None


def test_with_overlap_and_no_fixed_step_they_come_when_they_are_there() -> None:
    setting = Setting(GOOD, words=("e_step.overlap=true",), after=2)
    setting.schedule.begin(2, evaluate=True)
    came = [step for step in range(40) if setting.schedule.switch(step) is not None]
    assert len(came) == 1
    assert 0 < came[0] < 40


def test_with_overlap_they_come_at_the_end_of_the_epoch_at_the_latest() -> None:
    setting = Setting(GOOD, words=("e_step.overlap=true",), after=99)
    setting.schedule.begin(2, evaluate=True)
    assert setting.schedule.switch(0) is None
    output = setting.schedule.finish()
    assert output is not None
    assert output.clusters is GOOD.clusters
    assert setting.schedule.finish() is None


@pytest.mark.parametrize("why", ["no clusters", "not usable", "the last epoch"])
def test_with_nothing_to_overlap_with_it_is_waited_for(why: str) -> None:
    setting = Setting(GOOD, words=OVERLAP)
    if why == "no clusters":
        setting.progress.clusters = None
    if why == "not usable":
        setting.progress.e_step = EStepState(usable=False)
    epoch = 4 if why == "the last epoch" else 2
    assert setting.schedule.begin(epoch, evaluate=True).clusters is GOOD.clusters


def refused(outcome: Any) -> EStepAnswer:
    return EStepAnswer(refused="has found nothing", outcome=outcome)


def test_a_rejected_clustering_leaves_the_last_good_one_in_force() -> None:
    setting = Setting(refused("rejected"))
    before = setting.progress.clusters
    output = setting.schedule.begin(2, evaluate=False)
    assert output.clusters is None
    assert setting.progress.clusters is before
    assert vars(setting.progress.e_step) == vars(EStepState(usable=True, failures=1, concluded=2))
    assert output.epoch_figures["cluster/failures"] == 1
    assert setting.small.texts("warning") == [
        "the E-step has found nothing. Meanwhile the last good clustering stays in force (1 of 3 times in a"
        " row)"
    ]


@pytest.mark.parametrize("outcome", ["collapsed", "rejected"])
def test_without_usable_clusters_the_next_epoch_trains_on_info_nce_alone(outcome: str) -> None:
    setting = Setting(refused(outcome))
    if outcome == "rejected":
        setting.progress.clusters = None
    setting.schedule.begin(2, evaluate=False)
    assert not setting.progress.e_step.usable
    (text,) = setting.small.texts("warning")
    assert "Meanwhile the next epoch trains on InfoNCE alone (1 of 3 times in a row)" in text


def test_patience_ends_but_not_after_the_last_epoch() -> None:
    for epoch, ends in ((2, True), (4, False)):
        setting = Setting(refused("collapsed"))
        setting.progress.e_step = EStepState(failures=2)
        if ends:
            with pytest.raises(RunFailed, match=r"That was the third time in a row \(e_step.patience = 3\)"):
                setting.schedule.begin(epoch, evaluate=False)
        else:
            setting.schedule.begin(epoch, evaluate=False)


def test_a_good_clustering_ends_the_row_of_failures() -> None:
    setting = Setting(GOOD)
    setting.progress.e_step = EStepState(usable=False, failures=2)
    setting.schedule.begin(2, evaluate=False)
    assert vars(setting.progress.e_step) == vars(EStepState(concluded=2))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refused("refused"), "the E-step has found nothing"),
        (EStepAnswer(missing="2 of 3 shards of train features"), "the E-step lacks 2 of 3 shards"),
    ],
)
def test_an_e_step_that_cannot_be_made_ends_the_run(answer: EStepAnswer, message: str) -> None:
    setting = Setting(answer)
    with pytest.raises(RunFailed, match=message):
        setting.schedule.begin(2, evaluate=False)


def test_warnings_of_the_answer_are_posted() -> None:
    setting = Setting(replace(GOOD, warnings=("took fright",)))
    setting.schedule.begin(2, evaluate=False)
    assert setting.small.texts("warning") == ["the E-step took fright"]


def test_the_bank_is_made_by_a_pass_and_then_stands_for_one() -> None:
    setting = Setting(GOOD, GOOD, words=("e_step.features=bank",))
    setting.schedule.begin(2, evaluate=False)
    assert setting.learner.bank is not None
    first = setting.e_step.shards["train"].features
    setting.learner.bank.rows.zero_()
    setting.schedule.begin(3, evaluate=False)
    banked = setting.e_step.shards["train"].features
    assert first.any()
    assert not banked.any()


def test_figures_from_random_views_belong_to_the_encoders_epoch() -> None:
    setting = Setting(GOOD, words=("evaluation.lidar_views=2",))
    output = setting.schedule.begin(2, evaluate=True)
    assert output.encoder_figures
    assert not output.encoder_figures.keys() & output.epoch_figures.keys()
