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
