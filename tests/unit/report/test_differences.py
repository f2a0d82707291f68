"""What differs between runs, and what may be said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reported import digits_record, history

from pcl_ray.report.differences import (
    Measure,
    best_of,
    common_evaluation,
    difference,
    differing,
    sentences,
    warnings,
)
from pcl_ray.report.run_record import RunRecord


def said(records: list[RunRecord]) -> list[str]:
    return sentences(records, differing(records), common_evaluation(records))


def test_several_knobs_are_no_cause() -> None:
    records = [digits_record("one"), digits_record("two", {"loss.temperature": 0.1, "optimizer.lr": 0.01})]
    assert any("no single one can be named" in sentence for sentence in said(records))
    many = {
        "loss.temperature": 0.1,
        "optimizer.lr": 0.01,
        "e_step.alpha": 1,
        "train.batch_size": 64,
        "encoder.dim": 32,
    }
    assert said([digits_record("one"), digits_record("two", many)])[0].startswith(
        "B differs from A in 5 knobs"
    )


def test_seeds_tell_what_chance_is() -> None:
    records = [
        digits_record("one"),
        digits_record("two", {"seed": 1}, history=history(6, better=0.004)),
        digits_record("three", {"loss.temperature": 0.1}),
    ]
    assert (
        "A and B differ in nothing but the seed: kNN top-1 from 0.778 to 0.782. Differences of that size are"
        " chance." in said(records)
    )


def test_knobs_without_effect_are_listed_but_no_cause() -> None:
    records = [digits_record("one"), digits_record("two", {"tracking.experiment": "other"})]
    assert [knob.name for knob in differing(records)] == ["tracking.experiment"]
    assert said(records)[0].startswith("B has the configuration of A: ")


def test_what_reads_the_same_is_equally_good() -> None:
    measure = Measure("figure", 1, lambda record, epoch: None)
    assert best_of(measure, [0.71301, 0.71304, 0.6]) == {0, 1}
    assert best_of(measure, [0.71301, 0.71304]) == set()
    assert best_of(measure, [None, 0.7, 0.6]) == {1}
    assert best_of(replace(measure, better=-1), [None, 0.7, 0.6]) == {2}
    assert best_of(replace(measure, is_aim=False), [None, 0.7, 0.6]) == set()


@pytest.mark.parametrize(
    ("relative", "value", "first", "text"),
    [
        (False, 0.912, 0.874, "+0.038"),
        (False, 25.9, 26.9, "−1.0"),
        (False, 0.7, 0.7, "±0"),
        (True, 50.0, 100.0, "−50 %"),
        (True, 1.0, 0.0, ""),
        (True, 100, 100.2, "±0 %"),
    ],
)
def test_differences(relative: bool, value: float, first: float, text: str) -> None:
    assert (
        difference(Measure("figure", 1, lambda record, epoch: None, relative=relative), value, first) == text
    )


def test_warnings() -> None:
    one = digits_record("one")
    assert warnings([one, digits_record("two")]) == []
    assert "different images" in warnings([one, digits_record("two", fingerprint="beef")])[0]
    assert "different images" in warnings([one, digits_record("two", num_images=900)])[0]
    assert warnings([one, digits_record("two", fingerprint="")]) == [
        "Nobody recorded which images B saw: they may be others."
    ]
    assert (
        "different numbers of epochs (A 6, B 4)"
        in warnings([one, digits_record("two", history=history(4))])[0]
    )
    assert "Not finished: B (failed)." in warnings([one, digits_record("two", state="failed")])
    assert any(
        "learning rates differ" in text
        for text in warnings([one, digits_record("two", {"train.epochs": 50})])
    )


def test_a_run_of_an_earlier_version_is_compared_by_the_heads_accuracy() -> None:
    """It has nothing of the backbone; of a present one both are known."""
    older, newer = history(6), history(6, better=0.05)
    for before, now in zip(older, newer, strict=True):
        before["metrics"]["eval/head/knn_top1"] = before["metrics"].pop("eval/knn_top1")
        now["metrics"]["eval/head/knn_top1"] = 0.7
    records = [digits_record("older", history=older), digits_record("newer", {"seed": 1}, history=newer)]
    (sentence,) = [text for text in said(records) if text.startswith("B has")]
    assert "kNN top-1 of the head 0.700 instead of 0.778" in sentence
    both = [digits_record("one", history=newer), digits_record("two", {"seed": 1}, history=newer)]
    (sentence,) = [text for text in said(both) if text.startswith("B has")]
    assert "of the head" not in sentence
