"""The rules about losses, features and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from diagnosed import rules_of, the, with_curve, with_knobs

from pcl_ray.config.figures import KNN_TOP1, LOSS_INSTANCE, RANKME
from pcl_ray.report.doctor import curve_rules, findings
from pcl_ray.report.run_record import RunRecord


def test_instance_stuck(made: Callable[..., RunRecord], good: RunRecord) -> None:
    stuck = the(made("optimizer.lr=1e-8"), "instance_stuck")
    assert stuck.severity == "problem"
    assert f"{math.log(257):.3f}" in stuck.meaning
    assert "optimizer.lr" in stuck.advice[0]
    assert rules_of(made("optimizer.lr=1e-8")) == {"instance_stuck"}  # not what follows from it
    assert rules_of(replace(made("optimizer.lr=1e-8"), num_holdout=0)) == {"instance_stuck"}
    # 12 % of the way: slow, not stuck; 8 % is. At 15 % accuracy the loss is not what tells.
    top, way = math.log(257), math.log(257) - math.log(1 + 256 * math.exp(-5))
    assert (
        curve_rules.instance_stuck(
            with_curve(good, train__loss_instance=top - 0.12 * way, train__accuracy_instance=0.01)
        )
        is None
    )
    assert (
        curve_rules.instance_stuck(
            with_curve(good, train__loss_instance=top - 0.08 * way, train__accuracy_instance=0.01)
        )
        is not None
    )
    assert (
        curve_rules.instance_stuck(with_curve(good, train__loss_instance=top, train__accuracy_instance=0.15))
        is None
    )


def test_a_temperature_at_which_nothing_can_be_learned(made: Callable[..., RunRecord]) -> None:
    assert "loss.temperature=0.2" in the(made("loss.temperature=5"), "instance_stuck").advice[0]


def test_prototype_stuck(made: Callable[..., RunRecord], good: RunRecord) -> None:
    untrained = made("optimizer.lr=1e-8")
    level = (math.log(12) + math.log(24)) / 2
    found = curve_rules.prototype_stuck(untrained)
    assert found is not None
    assert f"{level:.3f}" in found.meaning
    assert curve_rules.prototype_stuck(good) is None
    chance = {"train__accuracy_prototype_0": [1 / 12] * 9, "train__accuracy_prototype_1": [1 / 24] * 9}
    assert (
        curve_rules.prototype_stuck(with_curve(good, train__loss_prototype=[level] * 9, **chance)) is not None
    )
    assert (
        curve_rules.prototype_stuck(with_curve(good, train__loss_prototype=[0.85 * level] * 9, **chance))
        is None
    )
    # accuracy is well above chance
    assert curve_rules.prototype_stuck(with_curve(good, train__loss_prototype=[level] * 9)) is None


def test_prototype_stuck_counts_the_columns_that_are_drawn(good: RunRecord) -> None:
    drawn = with_knobs(good, "loss.negative_prototypes=8", "loss.mask_duplicates=false")
    assert findings.columns_of(drawn, 12) == 64 + 8
    assert findings.columns_of(with_knobs(drawn, "loss.mask_duplicates=true"), 12) == pytest.approx(
        1 + 63 * 11 / 12 + 8
    )
    assert findings.columns_of(good, 12) == 12


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("optimizer.lr=3",), "a lower optimizer.lr: 1 (now 3)"),
        (("optimizer.weight_decay=1",), "optimizer.weight_decay=0.0001"),
        (("encoder.momentum=0",), "encoder.momentum=0.99"),
        (("loss.temperature=0.005",), "loss.temperature=0.2"),
    ],
)
def test_collapse(made: Callable[..., RunRecord], words: tuple[str, ...], advice: str) -> None:
    collapsed = made(*words)
    found = the(collapsed, "collapse")
    assert found.severity == "problem"
    assert advice in found.advice[0]
    assert "rejected" not in rules_of(collapsed)  # the clustering was not at fault


def test_near_collapse(good: RunRecord) -> None:
    def said(**curves: float) -> str | None:
        found = curve_rules.collapse(with_curve(good, **curves))
        return found.severity if found else None

    assert said(cluster__cone=0.93) == "warning"
    assert said(cluster__cone=0.87) is None
    assert said(train__feature_std=0.25) == "warning"
    assert said(train__feature_std=0.35) is None
    assert said(cluster__rank=6.0) == "warning"  # the limit is 5 of 32
    assert said(cluster__rank=7.0) is None
    few = with_knobs(good, "encoder.dim=8")  # there the limit is 2
    assert curve_rules.collapse(with_curve(few, cluster__rank=3.0)) is None


def test_rank_lost(made: Callable[..., RunRecord], good: RunRecord) -> None:
    assert curve_rules.rank_lost(made("optimizer.lr=3")) is not None
    assert curve_rules.rank_lost(good) is None
    peak = max(value for _, value in good.series(RANKME))
    assert "from" in the(with_curve(good, eval__rankme=[0.45 * peak]), "rank_lost").meaning
    assert "rank_lost" not in rules_of(with_curve(good, eval__rankme=[0.55 * peak]))


def test_diverged(made: Callable[..., RunRecord], good: RunRecord) -> None:
    hot = made("optimizer.lr=100", "optimizer.momentum=0.99", "optimizer.weight_decay=1")
    found = the(hot, "diverged")
    assert (hot.state, found.severity) == ("failed", "problem")
    assert "optimizer.lr=10 " in found.advice[0]
    assert "epoch" in found.meaning
    assert "failed" not in rules_of(hot)
    assert the(with_curve(good, train__loss=[float("nan")]), "diverged").severity == "problem"


def test_training_that_gets_worse(good: RunRecord) -> None:
    lowest = min(value for _, value in good.series(LOSS_INSTANCE))
    # a tenth of ln 257 is 0.55
    assert "rose" in the(with_curve(good, train__loss_instance=[lowest + 0.7] * 3), "diverged").meaning
    assert "diverged" not in rules_of(with_curve(good, train__loss_instance=[lowest + 0.4] * 3))
    assert "train/gradient_norm" in the(with_curve(good, train__gradient_norm=[50.0]), "diverged").meaning
    assert "diverged" not in rules_of(with_curve(good, train__gradient_norm=[15.0]))


def test_a_run_that_failed_for_another_reason(good: RunRecord) -> None:
    killed = replace(good, state="failed", error="worker 1 failed: out of memory\nmore")
    assert the(killed, "failed").meaning == "worker 1 failed: out of memory"
    assert "failed" not in rules_of(replace(good, state="stopped"))


def test_knn_falling_where_views_hide_what_classes_differ_by(
    made: Callable[..., RunRecord], good: RunRecord
) -> None:
    words = (
        "train.epochs=16",
        "e_step.warmup_epochs=1",
        "data.limit=1000",
        "evaluation.knn_neighbours=10",
        "augment.flip=0.5",
        "augment.min_crop=0.7",
    )
    record = made(*words, "data.holdout=0.3", pictures="mirrored")
    found = the(record, "knn_falling")
    best = max(record.series(KNN_TOP1), key=lambda point: point[1])
    assert f"best after epoch {best[0]} ({best[1]:.3f})" in found.meaning
    assert any("augment.flip=0" in text for text in found.advice)
    # Noise of 359 held-out images at 0.81: two standard errors of a difference are 0.058.
    top = max(value for _, value in good.series(KNN_TOP1))
    assert "knn_falling" not in rules_of(with_curve(good, eval__knn_top1=[top - 0.04] * 3))
    assert "knn_falling" in rules_of(with_curve(good, eval__knn_top1=[top - 0.09] * 3))


def test_knn_that_stays_low_while_images_are_told_apart_is_a_shortcut(made: Callable[..., RunRecord]) -> None:
    words = (
        "augment.image_size=12",
        "augment.min_crop=1",
        "augment.jitter=0",
        "data.limit=700",
        "e_step.warmup_epochs=1",
    )
    record = made(*words, pictures="framed")
    found = the(record, "knn_falling")
    assert "shortcut" in found.title
    assert "augment.min_crop=0.3" in found.advice[0]
    assert "knn_falling" not in rules_of(with_curve(record, eval__knn_top1=[0.5] * 3))
    assert "knn_falling" not in rules_of(with_curve(record, train__accuracy_instance=0.8))
