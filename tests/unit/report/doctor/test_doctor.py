"""The doctor: every rule on a run that was made to show it, and on one that just does not. Runs are real
where that takes seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pcl_ray.config import with_overrides
from pcl_ray.config.figures import KNN_TOP1, LOSS_INSTANCE, RANKME
from pcl_ray.errors import RunFailed
from pcl_ray.report.doctor import cluster_rules, curve_rules, diagnosis, findings, time_rules
from pcl_ray.report.doctor.diagnosis import Finding
from pcl_ray.report.run_record import RunRecord
from pcl_ray.runs import driver, record_reader, request
from pcl_ray.runs.console import Display

SMALL = (
    "augment.image_size=8",
    "encoder.width=8",
    "encoder.blocks=1,1",
    "encoder.dim=32",
    "loss.queue_size=256",
    "data.limit=600",
    "train.batch_size=64",
    "train.epochs=12",
    "train.log_every_steps=20",
    "e_step.num_clusters=12,24",
    "e_step.warmup_epochs=3",
    "tracking.enabled=false",
    "tracking.report=false",
    "tracking.pictures=0",
    "resources.workers=0",
)
DIGITS = load_digits()
PICTURES = (DIGITS.images * 255 / 16).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (600, 8, 8), dtype=np.uint8)


def _pictures(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    if name == "noise":
        return {"images": NOISE}
    if name == "copies":  # two thirds are one picture
        images = PICTURES[:700].copy()
        images[250:] = PICTURES[3]
        return {"images": images, "labels": DIGITS.target[:700]}
    if name == "few":  # forty pictures, fifteen times each
        return {"images": np.tile(PICTURES[:40], (15, 1, 1)), "labels": np.tile(DIGITS.target[:40], 15)}
    if name == "mirrored":  # classes that flips make alike
        side = rng.integers(0, 2, 1400)
        images = PICTURES[:1400].copy()
        images[side == 1] = images[side == 1][:, :, ::-1]
        return {"images": images, "labels": side}
    frames = rng.integers(0, 255, (900, 12, 12), dtype=np.uint8)  # a border that gives every picture away
    frames[:, 2:10, 2:10] = PICTURES[:900]
    return {"images": frames, "labels": DIGITS.target[:900]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunRecord]:
    """The record of a run with these knobs; trained once."""
    known: dict[tuple[str, ...], RunRecord] = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(*words: str, pictures: str = "") -> RunRecord:
        key = (pictures, *words)
        if key not in known:
            home = folder / str(len(known))
            data = ()
            if pictures:
                np.savez(folder / f"{pictures}.npz", **_pictures(pictures))
                data = ("data.source=arrays", f"data.path={folder / f'{pictures}.npz'}")
            known[key] = _trained(home, (*SMALL, *data, *words))
        return known[key]

    return make


def _trained(home: Path, words: tuple[str, ...]) -> RunRecord:
    before = os.environ["PCL_RAY_HOME"]
    os.environ["PCL_RAY_HOME"] = str(home)
    try:
        asked = request.check("digits", words)
        with open(os.devnull, "w") as nowhere, suppress(RunFailed):
            driver.start(asked, name="it", display=Display(nowhere))
        return record_reader.read("it")
    finally:
        os.environ["PCL_RAY_HOME"] = before


def with_curve(record: RunRecord, **curves: Any) -> RunRecord:
    """The record with figures replaced: a number for every epoch, or one for each of the last epochs. Names
    with __ for /; None takes a figure away.
    """
    history = [{**entry, "metrics": dict(entry["metrics"])} for entry in record.history]
    for name, values in curves.items():
        key = name.replace("__", "/")
        if values is None or isinstance(values, int | float):
            values = [values] * len(history)
        for entry, value in zip(history[-len(values) :], values, strict=True):
            if value is None:
                entry["metrics"].pop(key, None)
            else:
                entry["metrics"][key] = float(value)
    return replace(record, history=history)


def with_knobs(record: RunRecord, *words: str) -> RunRecord:
    return replace(record, config=with_overrides(record.config, words))


def rules_of(record: RunRecord, *severities: str) -> set[str]:
    return {
        finding.rule
        for finding in diagnosis.findings(record)
        if finding.severity in (severities or ("problem", "warning", "note"))
    }


def the(record: RunRecord, rule: str) -> Finding:
    found = {finding.rule: finding for finding in diagnosis.findings(record)}
    assert rule in found, found
    return found[rule]


@pytest.fixture
def good(made: Callable[..., RunRecord]) -> RunRecord:
    return made()


# --- runs that are all right
# ------------------------------------------------------------------------------------------


def test_a_healthy_run_is_told_what_is_good_about_it(good: RunRecord) -> None:
    found = diagnosis.findings(good)
    assert {finding.severity for finding in found} == {"good"}
    text = diagnosis.as_text(good, found)
    knn = [value for _, value in good.series(KNN_TOP1)]
    assert f"from {knn[0]:.3f} after epoch 1 to {knn[-1]:.3f} after epoch 12" in text
    for said in ("clusters settle", "AMI", "dimensions"):
        assert said in text


def test_more_epochs_are_no_reason_to_worry(made: Callable[..., RunRecord]) -> None:
    assert rules_of(made("train.epochs=30")) == set()


def test_every_beginning_of_a_good_run_is_without_false_alarms(made: Callable[..., RunRecord]) -> None:
    whole = made("train.epochs=30")
    for epochs in range(len(whole.history)):
        under_way = replace(whole, history=whole.history[:epochs], state="running")
        assert rules_of(under_way, "problem", "warning") == set(), epochs


def test_an_older_run_lacks_newer_figures(good: RunRecord) -> None:
    newer = (
        "train__gradient_norm",
        "train__feature_std",
        *(
            f"cluster__{m}__{name}"
            for m in (0, 1)
            for name in ("collisions", "phi_p10", "phi_p50", "phi_p90")
        ),
    )
    older = with_curve(good, **dict.fromkeys(newer))
    assert rules_of(older) == set()
    assert diagnosis.findings(older)


def test_a_run_without_an_epoch(good: RunRecord) -> None:
    empty = replace(
        good, history=[], state="running", num_images=0, num_holdout=0, num_clusters=(), steps_per_epoch=0
    )
    assert rules_of(empty) == {"too_early"}
    assert "0 of 12 epochs" in diagnosis.as_text(empty, [])


def test_text_has_problems_first_and_keeps_to_the_width(made: Callable[..., RunRecord]) -> None:
    record = made("optimizer.lr=1e-8")
    text = diagnosis.as_text(record, list(reversed(diagnosis.findings(record))), width=70)
    assert text.index("PROBLEM") == min(
        text.index(mark) for mark in ("PROBLEM", "warning:", "note:") if mark in text
    )
    assert max(map(len, text.splitlines())) <= 75
    assert "optimizer.lr" in text


# --- losses and features
# ------------------------------------------------------------------------------------------


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


# --- E-steps and clusters
# ------------------------------------------------------------------------------------------


def test_phi_of_repeated_pictures(made: Callable[..., RunRecord], good: RunRecord) -> None:
    few = made("train.epochs=6", "e_step.num_clusters=24,20", pictures="few")
    assert "φ = 0" in the(few, "phi_collapse").meaning
    assert "phi_collapse" not in rules_of(with_curve(good, cluster__0__phi_zeros=1))
    assert "phi_collapse" in rules_of(with_curve(good, cluster__0__phi_zeros=2))


def test_phi_that_are_stand_ins_or_all_alike(made: Callable[..., RunRecord], good: RunRecord) -> None:
    assert (
        "one image or none" in the(made("e_step.num_clusters=450", "train.epochs=6"), "phi_collapse").meaning
    )
    clipped = the(made("e_step.clip=49,50", "train.epochs=6"), "phi_collapse")
    assert "alike" in clipped.meaning
    assert "e_step.clip=10,90" in clipped.advice[0]
    wide = {
        f"cluster__{m}__{name}": value
        for m in (0, 1)
        for name, value in (("phi_p10", 0.197), ("phi_p90", 0.203))
    }
    assert "phi_collapse" not in rules_of(with_curve(good, **wide))
    assert "phi_collapse" not in rules_of(with_curve(good, cluster__0__phi_imputed=6))
    assert "phi_collapse" in rules_of(with_curve(good, cluster__0__phi_imputed=7))


def test_dominant_cluster(made: Callable[..., RunRecord], good: RunRecord) -> None:
    found = the(made(pictures="copies"), "dominant_cluster")
    assert "64%" in found.meaning
    assert "duplicate" in found.advice[0]
    assert "dominant_cluster" not in rules_of(with_curve(good, cluster__0__largest_share=0.45))
    assert "balance" in the(with_curve(good, cluster__0__largest_share=0.55), "dominant_cluster").advice[1]
    many = replace(with_knobs(good, "e_step.num_clusters=400"), num_clusters=(400,))
    assert "dominant_cluster" in rules_of(with_curve(many, cluster__0__largest_share=0.11))
    assert "dominant_cluster" not in rules_of(with_curve(many, cluster__0__largest_share=0.09))


def test_empty_clusters(good: RunRecord) -> None:
    assert the(with_curve(good, cluster__1__empty=1), "empty_clusters").severity == "warning"
    many = replace(with_knobs(good, "e_step.num_clusters=400"), num_clusters=(400,))
    assert the(with_curve(many, cluster__0__empty=3), "empty_clusters").severity == "note"
    assert "empty_clusters" not in rules_of(with_curve(good, cluster__0__empty=0))


def test_never_settles(made: Callable[..., RunRecord], good: RunRecord) -> None:
    words = (
        "optimizer.schedule=constant",
        "e_step.warm_start=none",
        "e_step.restarts=1",
        "optimizer.lr=0.003",
    )
    found = the(made(*words, pictures="noise"), "never_settles")
    assert "NMI" in found.meaning
    assert "optimizer.schedule=cosine (now constant)" in found.advice
    # noise settles too once the rate goes down
    assert "never_settles" not in rules_of(made(pictures="noise"))
    unsteady = {f"cluster__{m}__nmi_previous": [0.6] * 8 for m in (0, 1)}
    assert "never_settles" in rules_of(with_curve(good, **unsteady))
    # rising
    assert "never_settles" not in rules_of(
        with_curve(good, **{name: [0.5 + 0.02 * i for i in range(8)] for name in unsteady})
    )
    assert "never_settles" not in rules_of(with_curve(good, **{name: [0.72] * 8 for name in unsteady}))
    assert "move" in the(with_curve(good, cluster__0__drift=[0.12] * 3), "never_settles").meaning
    assert "never_settles" not in rules_of(with_curve(good, cluster__0__drift=[0.08] * 3))


def test_accuracy_of_prototypes_missing_in_the_warm_up(
    made: Callable[..., RunRecord], good: RunRecord
) -> None:
    warming = made("e_step.warmup_epochs=12")
    found = the(warming, "prototype_accuracy_zero")
    assert found.severity == "warning"
    assert "missing, not zero" in found.meaning
    assert "e_step.warmup_epochs=2" in found.advice[0]
    under_way = replace(good, history=good.history[:3], state="running")
    assert the(under_way, "prototype_accuracy_zero").severity == "note"
    assert the(with_knobs(warming, "loss.prototype_weight=0"), "prototype_accuracy_zero").severity == "note"
    none = with_curve(good, train__loss_prototype=None)
    assert the(none, "prototype_accuracy_zero").severity == "problem"


def test_accuracy_of_prototypes_that_is_really_zero(good: RunRecord) -> None:
    assert (
        "than by chance"
        in the(with_curve(good, train__accuracy_prototype_1=[0.0] * 9), "prototype_accuracy_zero").meaning
    )
    # chance is 0.04
    assert "prototype_accuracy_zero" not in rules_of(with_curve(good, train__accuracy_prototype_1=[0.02] * 9))


def test_rejected(made: Callable[..., RunRecord], good: RunRecord) -> None:
    # Of forty pictures there are no hundred clusters.
    refused = made("train.epochs=6", "e_step.num_clusters=100", pictures="few")
    found = the(refused, "rejected")
    assert found.severity == "problem"
    assert "only 40 of the 480 features differ" in found.meaning
    assert "e_step.num_clusters" in found.advice[0]
    assert "collapse" not in rules_of(refused, "problem")
    once = the(with_curve(good, cluster__failures=[1, 0, 0]), "rejected")
    assert (once.severity, "after epoch 10" in once.meaning) == ("warning", True)
    assert "rejected" not in rules_of(with_curve(good, cluster__failures=[0, 0, 0]))


def test_many_clusters(made: Callable[..., RunRecord], good: RunRecord) -> None:
    found = the(made("e_step.num_clusters=300", "train.epochs=6"), "many_clusters")
    assert "2 images" in found.meaning
    assert "e_step.num_clusters=30" in found.advice[0]
    assert "many_clusters" not in rules_of(with_curve(good, cluster__0__size_p50=3.5))
    assert "many_clusters" in rules_of(with_curve(good, cluster__0__size_p50=3))


def test_collisions(made: Callable[..., RunRecord], good: RunRecord) -> None:
    words = ("loss.negative_prototypes=8", "train.epochs=6")
    found = the(made("loss.mask_duplicates=false", *words), "collisions")
    assert found.severity == "warning"
    assert found.advice[0] == "loss.mask_duplicates=true"
    masked = made(*words)
    assert the(masked, "collisions").severity == "note"
    shares = {f"cluster__{m}__collisions": 0.85 for m in (0, 1)}
    assert "collisions" not in rules_of(with_curve(masked, **shares))
    assert "collisions" not in rules_of(good)  # compared with all prototypes: each is there once
    unmasked = with_knobs(good, "loss.mask_duplicates=false", "loss.negative_prototypes=8")
    assert "collisions" in rules_of(
        with_curve(unmasked, cluster__0__collisions=0.55, cluster__1__collisions=0.4)
    )
    assert "collisions" not in rules_of(
        with_curve(unmasked, cluster__0__collisions=0.45, cluster__1__collisions=0.4)
    )


def test_too_early(good: RunRecord) -> None:
    assert "too_early" in rules_of(replace(good, history=good.history[:4]))
    assert "too_early" not in rules_of(replace(good, history=good.history[:5]))
    assert not any(
        finding.severity == "good" for finding in diagnosis.findings(replace(good, history=good.history[:4]))
    )


# --- time
# ------------------------------------------------------------------------------------------


def test_waiting_for_data(made: Callable[..., RunRecord], good: RunRecord) -> None:
    slow = made("augment.engine=torchvision", "train.epochs=3", "e_step.warmup_epochs=1")
    assert "augment.engine=batch" in the(slow, "waiting_for_data").advice[0]
    assert "instance_stuck" not in rules_of(slow)  # it has only begun
    assert "waiting_for_data" not in rules_of(with_curve(slow, perf__data_share=[0.09] * 2))
    # a quarter of the time goes into views, and no knob makes that less
    assert "waiting_for_data" not in rules_of(good)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            ("data.source=folder", "data.path=x", "data.in_memory=false", "data.loader_workers=3"),
            "data.loader_workers (now 3",
        ),
        (("resources.workers=1", "resources.gpus_per_worker=1"), "data.prefetch"),
        (("data.channels=3", "augment.hue=0.1"), "augment.hue=0"),
    ],
)
def test_what_helps_against_waiting(good: RunRecord, words: tuple[str, ...], advice: str) -> None:
    assert (
        advice
        in the(with_curve(with_knobs(good, *words), perf__data_share=0.3), "waiting_for_data").advice[0]
    )


def test_e_step_seconds(made: Callable[..., RunRecord], good: RunRecord) -> None:
    words = (
        "e_step.num_clusters=100",
        "e_step.restarts=30",
        "e_step.cold_iterations=200",
        "e_step.warm_start=none",
        "train.epochs=4",
        "e_step.warmup_epochs=0",
    )
    record = made(*words)
    # How long it took is this machine's affair; what it is called follows from that.
    record = with_curve(record, perf__e_step_seconds=1.0)
    found = the(record, "e_step_seconds")
    assert found.severity == "note"
    assert found.advice[:3] == (
        "e_step.warm_start=labels (now none)",
        "e_step.restarts=1 (now 30)",
        "e_step.cold_iterations=20 (now 200)",
    )
    assert the(with_curve(record, perf__e_step_seconds=20.0), "e_step_seconds").severity == "warning"
    assert "e_step_seconds" not in rules_of(with_curve(record, perf__e_step_share=0.35))
    # nobody waits for that
    assert "e_step_seconds" not in rules_of(with_curve(record, perf__e_step_seconds=0.3))
    assert "bank" in the(with_curve(record, perf__feature_seconds=5.0), "e_step_seconds").advice[0]
    assert "e_step_seconds" not in rules_of(good)


def test_every_rule_is_known_by_name(good: RunRecord) -> None:
    assert {rule.__name__ for rule in diagnosis.RULES} == {
        name
        for module in (curve_rules, cluster_rules, time_rules)
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
        and name != "knn_noise"
    }
