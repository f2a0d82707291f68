"""The E-step in whole runs in one process, by the command: overlap, feature bank, features that collapse."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import DIGITS_RUN
from small_training import StopsIn

from pcl_ray import cli
from pcl_ray.checkpoints import run_state
from pcl_ray.errors import Stopped
from pcl_ray.features import FeatureShard
from pcl_ray.model.bank import FeatureBank
from pcl_ray.plan import why_so_many
from pcl_ray.runs import driver, request
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_shards import EStepRequest

TINY = ("resources.workers=0", *DIGITS_RUN, "train.log_every_steps=2", "train.keep_checkpoints=20")
OVERLAP = ("e_step.overlap=true", "e_step.switch_step=2")


def train(*words: str) -> int:
    return cli.main(["train", "digits", *TINY, *words])


def runs() -> Path:
    return Path(os.environ["PCL_RAY_HOME"], "runs")


def state_of(name: str, epoch: int) -> run_state.RunState:
    return run_state.load(runs() / name / "checkpoints" / f"epoch_{epoch:05d}.pt")


def numbers(name: str, epoch: int) -> dict[str, torch.Tensor]:
    """Everything that must be the same in two runs that are one."""
    state = state_of(name, epoch)
    flat = {**state.learner["model"], "queue": state.learner["queue"]["keys"]}
    if state.e_step.bank is not None:
        flat["bank"] = state.e_step.bank
    for m, clustering in enumerate(state.clusters.clusterings if state.clusters else ()):
        flat |= {
            f"{m}.prototypes": clustering.prototypes,
            f"{m}.assignments": clustering.assignments,
            f"{m}.phi": clustering.concentration,
        }
    return {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


OFTEN_RESUMED = {
    "overlap": OVERLAP,
    "both": ("e_step.features=bank", *OVERLAP),
    "mates, symmetric": ("loss.cluster_positives=0.3", "loss.symmetric=true"),
}
SELDOM_RESUMED = {
    "bank": ("e_step.features=bank",),
    "bank, mixed, half": ("e_step.features=bank", "e_step.fresh_every=2", "e_step.feature_dtype=float16"),
    "nested, balanced": ("e_step.nested=true", "e_step.balance=1.5"),
    "ramp": ("loss.prototype_ramp_epochs=4.3",),
    "other clusters": ("loss.queue_negatives=other_clusters",),
    "seldom at first": ("e_step.early_epochs=4", "e_step.early_every_epochs=2", "e_step.restart_every=3"),
    "auto": ("e_step.num_clusters=auto",),
}


@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(words, id=name) for name, words in OFTEN_RESUMED.items()),
        *(pytest.param(words, id=name, marks=pytest.mark.slow) for name, words in SELDOM_RESUMED.items()),
    ],
)
def test_a_resumed_run_is_bit_identical_to_one_never_stopped(words: tuple[str, ...]) -> None:
    words = (*words, "train.epochs=6")
    assert train("--name", "whole", *words) == 0
    with pytest.raises(Stopped):
        driver.start(request.check("digits", [*TINY, *words]), name="cut", display=StopsIn(4))
    assert cli.main(["train", "--resume", "cut"]) == 0
    for epoch in (4, 5, 6):
        assert_same(numbers("whole", epoch), numbers("cut", epoch))


@pytest.mark.slow
def test_auto_chooses_k_and_says_so(
    tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    words = ("e_step.num_clusters=auto", "data.limit=500", "tracking.enabled=true", f"tracking.uri={store}")
    why = f"K = 22, 45 ({why_so_many('auto', 500)})"
    assert train(*words, "--dry-run") == 0
    assert why.removeprefix("K = ") in capsys.readouterr().out
    assert train("--name", "automatic", *words) == 0
    assert why in capsys.readouterr().out
    clusters = state_of("automatic", 4).clusters
    assert clusters is not None
    assert [clustering.num_clusters for clustering in clusters.clusterings] == [22, 45]
    folder = runs() / "automatic"
    told = json.loads((folder / "state.json").read_text())
    assert told["num_clusters"] == [22, 45]
    assert "num_clusters: auto" in (folder / "config.yaml").read_text()
    assert why.removeprefix("K = ") in (folder / "report.html").read_text()
    from mlflow import MlflowClient

    recorded = MlflowClient(store).get_run(told["mlflow_run_id"]).data.params
    assert recorded["e_step.num_clusters"] == "auto"
    assert (recorded["plan.num_clusters_0"], recorded["plan.num_clusters_1"]) == ("22", "45")
    # a fork that says its counts has those, and one that does not has the same rule
    for name, knob, counts in (("said", "e_step.num_clusters=5", [5]), ("again", "seed=1", [22, 45])):
        more = ("train.epochs=5", "tracking.enabled=false", knob, "--name", name)
        assert cli.main(["fork", "automatic", *more]) == 0
        state = state_of(name, 5)
        assert state.clusters is not None
        assert [clustering.num_clusters for clustering in state.clusters.clusterings] == counts


def test_e_steps_may_be_seldom_at_first() -> None:
    seldom = ("e_step.early_epochs=3", "e_step.early_every_epochs=2", "train.epochs=6")
    assert train("--name", "seldom", *seldom) == 0
    # after one epoch of warm-up: before epochs 1 and 3 (from 0), then before each from 4 on, and at the end
    held = [state_of("seldom", epoch).clusters for epoch in range(1, 7)]
    assert [clusters.epoch for clusters in held if clusters is not None] == [1, 1, 3, 4, 5, 6]


def test_overlap_trains_on_the_earlier_prototypes_until_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcl_ray.training.e_step_schedule import EStepOutput, EStepSchedule

    seen: list[tuple[int, int]] = []
    in_force: list[int] = []  # the epochs of the clusters that came, the newest last
    begin, switch = EStepSchedule.begin, EStepSchedule.switch

    def noted(output: EStepOutput | None) -> EStepOutput | None:
        if output is not None and output.clusters is not None:
            in_force.append(output.clusters.epoch)
        return output

    def noting(self: EStepSchedule, step: int) -> EStepOutput | None:
        output = noted(switch(self, step))
        if in_force:
            seen.append((step, in_force[-1]))
        return output

    monkeypatch.setattr(
        EStepSchedule, "begin", lambda self, *given, **named: noted(begin(self, *given, **named))
    )
    monkeypatch.setattr(EStepSchedule, "switch", noting)
    assert train("--name", "late", *OVERLAP, "train.epochs=4") == 0
    # 4 steps an epoch. The first E-step, before epoch 1 (from 0), has nothing to overlap with.
    assert seen == [(step, 1) for step in range(4)] + [(0, 1), (1, 1), (2, 2), (3, 2)] + [
        (0, 2),
        (1, 2),
        (2, 3),
        (3, 3),
    ]
    assert state_of("late", 4).clusters.epoch == 4  # the final clustering waits


def test_overlap_without_a_fixed_step_changes_over_by_the_end_of_the_epoch() -> None:
    assert train("--name", "free", "e_step.overlap=true", "train.epochs=4") == 0
    # A checkpoint holds the clusters of the epoch that has ended: those of the next are still being made.
    assert [state_of("free", epoch).clusters.epoch for epoch in (3, 4)] == [2, 4]
    metrics = [entry["metrics"] for entry in state_of("free", 4).history]
    for name in ("eval/knn_top1", "eval/head/knn_top1"):  # the figures reach their own epoch
        assert all(name in values for values in metrics)
    assert all("cluster/0/ami" in values for values in metrics[1:])


def test_overlap_and_waiting_agree_on_the_figures_of_the_same_encoder() -> None:
    """After the first epoch with clusters both have trained alike: the same measures, whenever they come."""
    assert train("--name", "waits", "train.epochs=3") == 0
    assert train("--name", "goes-on", *OVERLAP, "train.epochs=3") == 0
    for epoch in (0, 1):
        first, second = (state_of(name, 3).history[epoch]["metrics"] for name in ("waits", "goes-on"))
        for name in ("eval/knn_top1", "eval/head/knn_top1", "eval/rankme"):
            assert first[name] == second[name]
    assert (
        state_of("waits", 3).history[2]["metrics"]["train/loss"]
        != state_of("goes-on", 3).history[2]["metrics"]["train/loss"]
    )


def test_the_bank_saves_the_pass_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcl_ray.training.feature_pass import FeaturePass

    passes: list[int] = []
    original = FeaturePass.train
    monkeypatch.setattr(
        FeaturePass,
        "train",
        lambda self, learner, **options: passes.append(1) or original(self, learner, **options),
    )
    words = ("evaluation.every_epochs=0", "train.epochs=6", "e_step.features=bank")
    assert train("--name", "bank", *words) == 0
    assert len(passes) == 2  # the first E-step and the final one
    assert train("--name", "mixed", *words, "e_step.fresh_every=2") == 0
    assert len(passes) == 2 + 4  # E-steps 0, 2, 4 and the final one
    assert train("--name", "fresh", *words[:2]) == 0
    assert len(passes) == 2 + 4 + 6


def test_a_bank_row_is_the_normalised_mean_and_holes_keep_theirs() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    bank = FeatureBank.of(FeatureShard(np.arange(10, 16), rows.numpy()), 0.25, torch.device("cpu"))
    keys = torch.nn.functional.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    bank.update(torch.tensor([3, 11, 99, 14]), keys)  # two belong to other workers
    for i in range(6):
        expected = rows[i]
        for image, key in ((11, keys[1]), (14, keys[3])):
            if image == 10 + i:
                mixed = 0.25 * rows[i] + 0.75 * key
                expected = mixed / mixed.norm()
        assert torch.allclose(bank.rows[i], expected, atol=1e-6)
    assert bank.shard().indices.tolist() == list(range(10, 16))


def answers(monkeypatch: pytest.MonkeyPatch, *outcomes: str) -> None:
    """The E-steps of a run end so, one after the other; "clustered" is the real one."""
    original, left = EStepActor.run, list(outcomes)

    def run(self: EStepActor, key: str, request: EStepRequest, *arguments: Any) -> EStepAnswer:
        answer = original(self, key, request, *arguments)
        outcome = left.pop(0) if left and request.cluster else "clustered"
        if outcome == "clustered":
            return answer
        measured = {name: value for name, value in answer.metrics.items() if not name.startswith("cluster/")}
        return EStepAnswer(metrics=measured, refused=f"said {outcome}", outcome=outcome)

    monkeypatch.setattr(EStepActor, "run", run)


def test_after_a_collapse_an_epoch_trains_on_info_nce_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "clustered", "collapsed", "clustered")
    assert train("--name", "collapse", "train.epochs=4") == 0
    with_prototypes = [
        "train/loss_prototype" in entry["metrics"] for entry in state_of("collapse", 4).history
    ]
    assert with_prototypes == [False, True, False, True]  # warm-up, clustered, collapsed, clustered
    said = capsys.readouterr().err
    assert "said collapsed" in said
    assert "InfoNCE alone (1 of 3 times in a row)" in said
    third = state_of("collapse", 2)
    assert (third.e_step.usable, third.e_step.failures, third.e_step.concluded) == (False, 1, 2)
    assert third.clusters.epoch == 1  # the last good clustering is kept
    assert state_of("collapse", 3).e_step.failures == 0


def test_a_rejected_clustering_leaves_the_earlier_one_in_force(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "clustered", "rejected", "rejected", "clustered")
    assert train("--name", "rejected", "train.epochs=4") == 0
    assert ["train/loss_prototype" in entry["metrics"] for entry in state_of("rejected", 4).history] == [
        False,
        True,
        True,
        True,
    ]
    assert [state_of("rejected", epoch).clusters.epoch for epoch in (1, 2, 3, 4)] == [1, 1, 1, 4]
    assert "the last good clustering stays in force (2 of 3 times in a row)" in capsys.readouterr().err


@pytest.mark.parametrize("outcome", ["collapsed", "rejected"])
def test_three_in_a_row_end_the_run_and_the_count_survives_a_stop(
    outcome: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "clustered", outcome, outcome, outcome)
    with pytest.raises(Stopped):
        driver.start(request.check("digits", [*TINY, "train.epochs=9"]), name="cut", display=StopsIn(2))
    assert cli.main(["train", "--resume", "cut"]) == 1
    said = capsys.readouterr().err
    assert f"said {outcome}. That was the third time in a row (e_step.patience = 3)" in said
    assert "The last good checkpoint is" in said
    assert "Traceback" not in said


def test_a_really_collapsed_encoder_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pcl_ray.training.feature_pass import FeaturePass

    original = FeaturePass.train

    def one_point(self: FeaturePass, learner: Any, **options: bool) -> dict[str, FeatureShard]:
        shards = original(self, learner, **options)
        indices = shards["train"].indices
        rows = np.ones((len(indices), 16), np.float32) + 1e-5 * np.random.default_rng(0).normal(
            size=(len(indices), 16)
        ).astype(np.float32)
        flat = FeatureShard(indices, rows / np.linalg.norm(rows, axis=1, keepdims=True))
        return shards | {"train": flat}

    monkeypatch.setattr(FeaturePass, "train", one_point)
    assert train("--name", "flat", "train.epochs=9") == 1
    said = capsys.readouterr().err
    assert "collapsed onto one point" in said
    assert "third time in a row" in said
    assert json.loads((runs() / "flat/state.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["e_step.mode=distributed"], "needs resources.workers of 1 or more"),
        (["e_step.overlap=true", "e_step.mode=distributed", "resources.workers=2"], "use single or sharded"),
        (["e_step.switch_step=2"], "is for e_step.overlap = true"),
        (["e_step.overlap=true", "e_step.switch_step=99"], "an epoch has 4 steps, so at most 3"),
        (["e_step.fresh_every=3"], "is for e_step.features = bank"),
        (["e_step.shards=3", "resources.workers=2"], "is for e_step.mode = sharded"),
        (["e_step.balance=0.5"], "number | null ≥ 1"),
        (["e_step.nested=true", "e_step.nested_passes=0", "e_step.balance=2"], "cannot be balanced as well"),
    ],
)
def test_wrong_knobs_of_the_e_step(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            [],
            [
                "single: in this process; cold at first, then 5 passes from the last labels",
                "a pass over all images each time",
            ],
        ),
        (
            ["resources.workers=2", "e_step.mode=sharded", "e_step.shards=3"],
            ["sharded: in 3 actors, each with a range of the images"],
        ),
        (
            ["resources.workers=2", "e_step.mode=distributed", "e_step.warm_start=none"],
            ["in the 2 workers, each with the features it made; cold each time"],
        ),
        (
            ["e_step.overlap=true", "e_step.features=bank"],
            ["; while the next epoch trains", "from the M-step's momentum features, after a first pass"],
        ),
    ],
)
def test_dry_run_says_where_features_come_from_and_are_clustered(
    words: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dry-run", *words) == 0
    out = capsys.readouterr().out
    for text in shown:
        assert text in out


@pytest.mark.slow
def test_where_a_run_clusters_may_change_when_it_goes_on() -> None:
    assert train("--name", "moved", "train.epochs=2") == 0
    assert (
        cli.main(["train", "--resume", "moved", "train.epochs=3", "e_step.backend=torch", "e_step.threads=2"])
        == 0
    )
    assert train("--name", "stayed", "train.epochs=2") == 0
    assert cli.main(["train", "--resume", "stayed", "train.epochs=3"]) == 0
    assert_same(numbers("moved", 3), numbers("stayed", 3))


def test_an_e_step_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = EStepActor.run, []

    def slow(*arguments: Any) -> Any:
        calls.append(1)
        time.sleep(30 if len(calls) == 3 else 0)  # the first E-step is waited for in the thread as well
        return original(*arguments)

    monkeypatch.setattr(EStepActor, "run", slow)
    assert train("--name", "endless", *OVERLAP, "e_step.timeout_s=3") == 1
    said = capsys.readouterr().err
    assert "e_step.timeout_s = 3 s" in said
    assert "Traceback" not in said
