"""Which curves a report has."""

from __future__ import annotations

import json
from pathlib import Path

from pages import read_report
from reported import digits_record, history


def test_only_charts_with_data(tmp_path: Path) -> None:
    found = read_report(digits_record(history=history(2)), tmp_path)
    charts = {attributes["id"] for tag, attributes in found.found if tag == "figure" and "id" in attributes}
    assert {"chart-loss", "chart-knn", "chart-rankme"} <= charts
    assert not {"chart-drift", "chart-phi-0", "chart-ami"} & charts
    told = json.loads(found.scripts["chart-loss-data"])
    assert [line["name"] for line in told["lines"]] == ["all", "instance term"]
    assert told["lines"][0]["x"] == [1, 2]


def test_accuracy_is_drawn_with_what_needs_no_training(tmp_path: Path) -> None:
    entries = history(4)
    lines = {"eval/pixels/knn_top1": 0.72, "eval/untrained/knn_top1": 0.4}
    for entry in entries:
        entry["metrics"] |= {"eval/head/knn_top1": 0.6} | lines
    found = read_report(digits_record(history=entries), tmp_path)
    told = json.loads(found.scripts["chart-knn-data"])
    assert [line["name"] for line in told["lines"]] == ["backbone", "head", "raw pixels", "untrained"]
    assert [line["y"] for line in told["lines"][2:]] == [[0.72] * 4, [0.4] * 4]  # horizontal
    assert "Raw pixels: 0.72" in found.text
    assert "Untrained: 0.4" in found.text


def test_of_a_run_of_an_earlier_version_the_heads_accuracy_is_drawn_as_such(tmp_path: Path) -> None:
    entries = history(4)
    for entry in entries:
        entry["metrics"]["eval/head/knn_top1"] = entry["metrics"].pop("eval/knn_top1")
    found = read_report(digits_record(history=entries), tmp_path)
    told = json.loads(found.scripts["chart-knn-data"])
    assert [line["name"] for line in told["lines"]] == ["head"]
    assert "kNN top-1 of the head" in found.text
