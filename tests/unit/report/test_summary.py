"""What a report says of a run in plain numbers, and its knobs."""

from __future__ import annotations

import re
from pathlib import Path

from pages import read_report
from reported import digits_record

from pcl_ray.report import page


def test_what_is_said_of_the_run(tmp_path: Path) -> None:
    found = read_report(digits_record(), tmp_path)
    for words in (
        "seven",
        "finished",
        "digits",
        "1,797",
        "Temperature τ 0.2",
        "Smoothing α 10",
        "small_resnet",
        "2 workers",
    ):
        assert words in found.text, words
    assert "6; warm-up 3" in found.text
    assert "kNN top-1 0.778" in found.text
    assert "pcl-ray train digits --name seven" in found.text
    assert "f00d" in found.text
    assert "Time 6 min" in found.text
    assert "E-step 11 %" in found.text


def test_the_rule_is_told_where_the_run_chose_k(tmp_path: Path) -> None:
    assert "auto" not in read_report(digits_record(), tmp_path).text.split("Clusters K")[1][:20]
    automatic = digits_record(overrides={"e_step.num_clusters": "auto"})
    found = read_report(automatic, tmp_path)
    assert "Clusters K 30, 8 (auto: 1, 2 and 4 times √N of N = 1,797 images)" in found.text
    # a run that has not told its counts has them from its last clusters
    unknown = digits_record(overrides={"e_step.num_clusters": "auto"}, num_clusters=(), num_images=0)
    assert "Clusters K 30, 8 Temperature" in read_report(unknown, tmp_path).text


def test_every_knob_is_listed_and_the_changed_ones_are_marked(tmp_path: Path) -> None:
    record = digits_record()
    page.write(record, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    few, every = text.split("<details>")
    for name in record.config.flatten():
        assert f"<code>{name}</code>" in every
    assert "<code>e_step.warmup_epochs</code>" in few
    assert "<code>e_step.alpha</code>" not in few
    assert re.search(
        r"<code>e_step.warmup_epochs</code></th><td class=\"changed\"><b>3</b></td><td>20</td>", every
    )
