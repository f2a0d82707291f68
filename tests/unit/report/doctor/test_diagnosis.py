"""What the doctor says of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diagnosed import rules_of, with_curve

from pcl_ray.config.figures import KNN_TOP1
from pcl_ray.report.doctor import (
    accuracy_rules,
    cluster_rules,
    curve_rules,
    data_rules,
    diagnosis,
    time_rules,
)
from pcl_ray.report.run_record import RunRecord


def test_a_healthy_run_is_told_what_is_good_about_it(good: RunRecord) -> None:
    found = diagnosis.findings(good)
    # so short a run was still improving
    assert {finding.severity for finding in found if finding.rule != "still_improving"} == {"good"}
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


def test_every_rule_is_known_by_name(good: RunRecord) -> None:
    assert {rule.__name__ for rule in diagnosis.RULES} == {
        name
        for module in (curve_rules, accuracy_rules, cluster_rules, data_rules, time_rules)
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
    }
