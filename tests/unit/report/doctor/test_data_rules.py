"""The rules about the pictures themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagnosed import rules_of, the, with_knobs

from pcl_ray.data.inspection.summary import DataSummary
from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.run_record import RunRecord


def with_data(record: RunRecord, **found: object) -> RunRecord:
    record = with_knobs(record, "data.source=folder", "data.path=x")
    return replace(record, data=DataSummary(pictures=1000, **found))  # type: ignore[arg-type]


def test_sound_pictures_and_unknown_ones_are_no_finding(good: RunRecord) -> None:
    assert not {"copies", "blank"} & rules_of(good)
    assert not {"copies", "blank"} & rules_of(with_data(good, classes={"a": 500, "b": 500}))


@pytest.mark.parametrize(("alike", "severity"), [(50, "note"), (51, "warning")])
def test_copies_on_one_side_matter_where_they_are_many(good: RunRecord, alike: int, severity: str) -> None:
    finding = the(with_data(good, alike=alike, copies=[["a.png", "b.png"]]), "copies")
    assert finding.severity == severity
    assert "a.png and b.png" in finding.meaning


def test_held_out_pictures_with_a_copy_in_training_are_a_warning(good: RunRecord) -> None:
    record = with_data(good, identical=9, separated=7, copies=[["a.png", "b.png"]])
    finding = the(with_knobs(record, "data.split=random"), "copies")
    assert finding.severity == "warning"
    assert finding.title == "7 held-out pictures can be seen in the training part"
    assert "data.split=content" in finding.advice[0]
    assert "data.split" not in the(record, "copies").advice[0]  # the parts are the user's own


@pytest.mark.parametrize(
    ("blank", "invisible", "severity"), [(20, 0, "note"), (0, 20, "note"), (15, 6, "warning")]
)
def test_blank_pictures(good: RunRecord, blank: int, invisible: int, severity: str) -> None:
    finding = the(
        with_data(good, blank=blank, invisible=invisible, blank_examples=["a"], invisible_examples=["b"]),
        "blank",
    )
    assert finding.severity == severity
    assert finding.title == f"{blank + invisible} pictures are almost blank"
    assert ("data.trim=true" in str(finding.advice)) == bool(blank)
    assert ("data.background=black" in str(finding.advice)) == bool(invisible)


def test_cut_margins_are_no_finding(good: RunRecord) -> None:
    assert "blank" not in rules_of(with_data(good, blank=500, blank_examples=["a"], trimmed=True))


def test_what_matters_more_stands_first(good: RunRecord) -> None:
    record = with_data(good, identical=90, separated=70, copies=[["a", "b"]], blank=90, blank_examples=["a"])
    order = [finding.rule for finding in diagnosis.findings(record)]
    assert order.index("copies") < order.index("blank")
