"""The rules about accuracy against what needs no training."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagnosed import rules_of, the, with_curve, with_knobs

from pcl_ray.config.figures import KNN_TOP1
from pcl_ray.report.doctor import accuracy_rules, diagnosis
from pcl_ray.report.doctor.findings import knn_noise
from pcl_ray.report.run_record import RunRecord


def last(record: RunRecord) -> float:
    return record.series(KNN_TOP1)[-1][1]


def with_lines(record: RunRecord, pixels: float, untrained: float) -> RunRecord:
    """Lines at the last evaluation, as far above the trained encoder as is said."""
    top = last(record)
    return with_curve(
        record, eval__pixels__knn_top1=[top + pixels], eval__untrained__knn_top1=[top + untrained]
    )


@pytest.mark.parametrize(
    ("pixels", "untrained", "names"),
    [
        (0.1, -0.3, "raw pixels"),
        (0.0, -0.3, "raw pixels"),
        (-0.3, 0.01, "the untrained encoder"),
        (0.1, 0.1, "raw pixels and the untrained encoder"),
    ],
)
def test_an_encoder_that_is_no_better_is_told_in_plain_words(
    good: RunRecord, pixels: float, untrained: float, names: str
) -> None:
    record = with_knobs(with_lines(good, pixels, untrained), "encoder.head=mlp")
    finding = the(record, "no_better_than_pixels")
    assert (finding.severity, finding.title) == ("warning", f"The trained encoder is no better than {names}")
    for value in (last(good), last(good) + pixels, last(good) + untrained):
        assert f"{value:.3f}" in finding.meaning
    assert any("train.epochs=48" in text for text in finding.advice)
    assert any("loss.prototype_weight=0.1 (now 1)" in text for text in finding.advice)
    assert any("encoder.head_width=1024" in text for text in finding.advice)
    # a run under way may still get there
    assert the(replace(record, state="running"), "no_better_than_pixels").severity == "note"


def test_clearly_better_is_better(good: RunRecord) -> None:
    record = with_lines(good, -0.2, -0.3)
    assert rules_of(record) == set()
    (knn,) = [finding for finding in diagnosis.findings(record) if "classes apart" in finding.title]
    assert f"Without training it is {last(good) - 0.2:.3f} by raw pixels" in knn.meaning


def test_within_chance_is_a_note(good: RunRecord) -> None:
    noise = knn_noise(good, last(good))
    assert 0.02 < noise < 0.09  # of 359 held-out images
    finding = the(with_lines(good, -0.5 * noise, -0.3), "no_better_than_pixels")
    assert (finding.severity, finding.title) == ("note", "The encoder is hardly better than raw pixels")
    assert "no_better_than_pixels" not in rules_of(with_lines(good, -1.1 * noise, -0.3))


def test_like_is_compared_with_like(good: RunRecord) -> None:
    """Where lines are of fewer queries, the trained encoder's accuracy on these is what counts."""
    better = with_lines(good, -0.3, -0.3)
    assert rules_of(better) == set()
    sampled = with_curve(better, eval__sampled__knn_top1=[last(good) - 0.4])
    assert "eval/sampled/knn_top1" in the(sampled, "no_better_than_pixels").meaning


def test_without_lines_or_labels_nothing_is_said(good: RunRecord) -> None:
    assert accuracy_rules.no_better_than_pixels(good) is None
    unlabelled = with_curve(with_lines(good, 0.1, 0.1), eval__knn_top1=None)
    assert accuracy_rules.no_better_than_pixels(unlabelled) is None


def test_a_cause_hides_it(good: RunRecord) -> None:
    lines = with_lines(good, 0.1, 0.1)
    collapsed = with_curve(lines, cluster__failures=[1.0], cluster__cone=[1.0], cluster__rank=[1.0])
    assert "collapse" in rules_of(collapsed)
    assert "no_better_than_pixels" not in rules_of(collapsed)


def test_advice_names_only_what_is_not_done_yet(good: RunRecord) -> None:
    lines = with_lines(good, 0.1, -0.2)
    done = with_knobs(lines, "loss.prototype_weight=0.1", "encoder.head_width=512")
    advice = " ".join(the(done, "no_better_than_pixels").advice)
    assert "prototype_weight" not in advice
    assert "head_width" not in advice


def test_of_earlier_versions_the_heads_accuracy_is_spoken_of_as_such(good: RunRecord) -> None:
    values = [value for _, value in good.series(KNN_TOP1)]
    older = with_curve(good, eval__knn_top1=None, eval__head__knn_top1=values)
    (knn,) = [finding for finding in diagnosis.findings(older) if "classes apart" in finding.title]
    assert knn.meaning.startswith("eval/head/knn_top1 rose from")
    fell = with_curve(older, eval__head__knn_top1=[max(values) - 0.2] * 3)
    assert "eval/head/knn_top1 was best" in the(fell, "knn_falling").meaning


def test_held_out_images_that_take_no_part_do_not_lower_the_noise(good: RunRecord) -> None:
    many = replace(good, num_holdout=1_000_000)
    assert knn_noise(many, 0.8) == pytest.approx(2 * (2 * 0.16 / 10_000) ** 0.5)
    assert knn_noise(many, 0.8, most=2000) == pytest.approx(2 * (2 * 0.16 / 2000) ** 0.5)


RISING = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]


def test_a_run_that_still_improved_says_how_to_go_on(good: RunRecord) -> None:
    record = with_curve(good, eval__knn_top1=None)
    rising = with_curve(record, eval__knn_top1=RISING)
    finding = the(rising, "still_improving")
    assert finding.severity == "note"
    assert f"pcl-ray resume {good.name} train.epochs={2 * good.config.train.epochs}" in finding.advice[0]
    for other in (
        with_curve(record, eval__knn_top1=[0.5, 0.6, 0.7, 0.7, 0.7, 0.7]),
        with_curve(record, eval__knn_top1=[0.5, 0.6, 0.7, 0.6, 0.7, 0.5]),
        with_curve(record, eval__knn_top1=[0.5, 0.7]),
        replace(rising, state="running"),
    ):
        assert accuracy_rules.still_improving(other) is None


def test_without_labels_the_loss_tells(good: RunRecord) -> None:
    record = with_curve(good, eval__knn_top1=None, eval__head__knn_top1=None)
    count = len(good.history)
    falling = [5.0 - 0.1 * number for number in range(count)]
    assert accuracy_rules.still_improving(with_curve(record, train__loss_instance=falling)) is not None
    assert accuracy_rules.still_improving(with_curve(record, train__loss_instance=4.0)) is None


def test_hardly_better_than_untrained_is_a_warning_once_the_run_has_ended(good: RunRecord) -> None:
    record = with_lines(good, -0.3, -0.01)
    assert the(record, "no_better_than_pixels").severity == "warning"
    assert the(replace(record, state="running"), "no_better_than_pixels").severity == "note"


def test_chance_and_the_error_stand_beside_it(good: RunRecord) -> None:
    record = with_curve(with_lines(good, 0.1, 0.1), eval__largest_class=0.123, eval__knn_top1_error=0.0456)
    meaning = the(record, "no_better_than_pixels").meaning
    assert f"{last(good):.3f} ± 0.046" in meaning
    assert "always naming the largest class 0.123" in meaning
