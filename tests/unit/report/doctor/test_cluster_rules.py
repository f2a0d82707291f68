"""The rules about E-steps and clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diagnosed import rules_of, the, with_curve, with_knobs

from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.run_record import RunRecord


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
