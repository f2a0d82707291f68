"""The rules about time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diagnosed import rules_of, the, with_curve, with_knobs

from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.run_record import RunRecord


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
    ],
)
def test_what_helps_against_waiting(good: RunRecord, words: tuple[str, ...], advice: str) -> None:
    assert (
        advice
        in the(with_curve(with_knobs(good, *words), perf__data_share=0.3), "waiting_for_data").advice[0]
    )


def test_making_views_is_a_note_and_no_waiting(good: RunRecord) -> None:
    slow = with_curve(with_knobs(good, "data.channels=3", "augment.hue=0.1"), perf__data_share=0.3)
    finding = the(slow, "views")
    assert (finding.severity, "waiting" in f"{finding.title} {finding.meaning}") == ("note", False)
    assert "augment.hue=0" in finding.advice[0]
    assert "waiting_for_data" not in rules_of(slow)
    assert "views" not in rules_of(with_curve(slow, perf__data_share=0.05))
    assert "views" not in rules_of(with_curve(good, perf__data_share=0.3))  # nothing can be left out
    assert any(finding.severity == "good" for finding in diagnosis.findings(slow))  # never the only one


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
