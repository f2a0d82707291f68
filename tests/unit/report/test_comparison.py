"""Several runs on one page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PageReader
from reported import digits_record, digits_snapshot, history

from pcl_ray.report import comparison
from pcl_ray.report.differences import common_evaluation, differing, measures, sentences
from pcl_ray.report.run_record import RunRecord


def read_pages(records: list[RunRecord], folder: Path) -> PageReader:
    path = folder / "comparison.html"
    assert comparison.write(records, path) == path
    return PageReader(path.read_text(encoding="utf-8"))


def said(records: list[RunRecord]) -> list[str]:
    return sentences(records, differing(records), common_evaluation(records))


def rows_of(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """First words of each row of a table of figures → (class, text) of its cells, of the first such table."""
    text = (folder / "comparison.html").read_text(encoding="utf-8")
    table = text.split('<table class="numbers wide">')[1].split("</table>")[0]
    rows = {}
    for row in table.split("<tr>")[2:]:
        name = re.sub(r"<small>.*?</small>|<[^>]*>", "", row.split("</th>")[0])
        rows[name] = [
            (cell[0], re.sub(r"<[^>]*>", " ", cell[1]).strip())
            for cell in re.findall(r'<td(?: class="(\w*)")?>(.*?)</td>', row)
        ]
    return rows


def test_only_differing_knobs(tmp_path: Path) -> None:
    records = [
        digits_record("one"),
        digits_record("two", {"loss.temperature": 0.1}),
        digits_record("three", {"e_step.alpha": 3.0, "loss.temperature": 0.1}),
    ]
    knobs = differing(records)
    assert [(knob.name, knob.values) for knob in knobs] == [
        ("loss.temperature", (0.2, 0.1, 0.1)),
        ("e_step.alpha", (10.0, 10.0, 3.0)),
    ]
    found = read_pages(records, tmp_path)
    assert "A one finished" in found.text
    assert "C three finished" in found.text


def test_one_knob_may_be_named(tmp_path: Path) -> None:
    records = [
        digits_record("one"),
        digits_record("two", {"loss.temperature": 0.1}, history=history(6, better=0.038)),
    ]
    first, *others = said(records)
    assert first.startswith(
        "B has loss.temperature 0.1 instead of 0.2: kNN top-1 0.816 instead of 0.778 (+0.038)"
    )
    assert first.endswith("in about the same time.")
    assert not any("single one" in other for other in others)
    assert any("one seed" in other for other in others)


def test_the_last_common_evaluation(tmp_path: Path) -> None:
    short, long = digits_record("short", history=history(4)), digits_record("long", {"train.epochs": 6})
    assert common_evaluation([short, long]) == 4
    assert common_evaluation([short, digits_record("none", history=[])]) is None
    text = read_pages([short, long], tmp_path).text
    assert "After epoch 4" in text
    assert "At the end of each" in text
    assert "A, epoch 4 B, epoch 6" in text
    rows = rows_of(tmp_path)
    assert [value.split()[0] for _, value in rows["kNN top-1"]] == ["0.663", "0.663"]  # both after epoch 4
    assert [value for _, value in rows["Time"]] == ["4 min", "4 min ±0 %"]


def test_figures_of_other_epochs_are_not_taken_instead(tmp_path: Path) -> None:
    rare = history(6)
    for entry in rare[4:]:
        # no E-step after epoch 4
        entry["metrics"] = {
            name: value for name, value in entry["metrics"].items() if not name.startswith("cluster/")
        }
    read_pages([digits_record("short", history=history(5)), digits_record("rare", history=rare)], tmp_path)
    # after epoch 5
    assert [value.split()[0] for _, value in rows_of(tmp_path)["AMI, K = 8"]] == ["0.468", "–"]


def test_the_best_by_the_figures_direction(tmp_path: Path) -> None:
    fast = history(6)
    for entry in fast:
        entry["metrics"]["perf/epoch_seconds"] = 30.0
        entry["metrics"] |= {"perf/e_step_seconds": 1.0} if "perf/e_step_seconds" in entry["metrics"] else {}
    better = history(6, better=0.05)
    for entry in better:
        entry["metrics"]["train/loss"] -= 1.0
    read_pages(
        [
            digits_record("one"),
            digits_record("two", {"seed": 1}, history=fast),
            digits_record("three", {"seed": 2}, history=better),
        ],
        tmp_path,
    )
    rows = rows_of(tmp_path)
    best = {
        name: [place for place, (marked, _) in enumerate(cells) if marked == "best"]
        for name, cells in rows.items()
    }
    assert best["kNN top-1"] == [2]
    assert best["AMI, K = 8"] == [2]
    assert best["Loss"] == [2]
    assert best["Seconds of an E-step"] == [1]
    assert best["Time"] == [1]
    assert best["RankMe"] == []  # all the same
    assert rows["Time"][1][1] == "3 min −50 %"


def test_losses_on_other_scales_are_not_ranked(tmp_path: Path) -> None:
    records = [
        digits_record("one"),
        digits_record("two", {"loss.temperature": 0.1}, history=history(6, better=0.1)),
    ]
    loss = next(measure for measure in measures(records, differing(records)) if measure.title == "Loss")
    assert (loss.better, loss.note) == (0, "on other scales: not to be compared")
    other_size = [digits_record("one"), digits_record("two", {"encoder.dim": 32})]
    assert (
        next(
            measure for measure in measures(other_size, differing(other_size)) if measure.title == "RankMe"
        ).better
        == 0
    )


def test_twenty_runs_and_odd_ones(tmp_path: Path) -> None:
    single, pictures = digits_snapshot((8,))
    odd = [
        digits_record(
            "<i>&\"'</i>",
            {"e_step.num_clusters": (8,)},
            snapshot=single,
            thumbnails=pictures,
            num_clusters=(8,),
        ),
        digits_record("none", snapshot=None, thumbnails=None, history=[], state="failed", error="</script>&"),
        digits_record("no pictures", thumbnails=None),
        digits_record("unlabelled", snapshot=digits_snapshot(labelled=False)[0]),
        *(
            digits_record(
                f"run {n}", {"loss.temperature": 0.1 + n / 100}, history=history(6, better=n / 1000)
            )
            for n in range(16)
        ),
    ]
    found = read_pages(odd, tmp_path)
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<i>&" not in text
    assert "T run 15 finished" in found.text
    assert "K differs" in found.text
    assert not re.findall(r"https?://", text)
    assert len(text) < 3_000_000
    assert len(re.findall(r"background-image:url", text)) == 18


def test_runs_without_anything(tmp_path: Path) -> None:
    bare = digits_record("one", history=[], snapshot=None, thumbnails=None)
    text = read_pages([bare, bare], tmp_path).text
    assert "the runs have the same configuration" in text
    assert "No run has recorded a figure yet" in text
    assert "There is no epoch after which both were evaluated" in text
    with pytest.raises(ValueError, match="two or more"):
        comparison.write([bare], tmp_path / "one.html")
