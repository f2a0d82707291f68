"""The page with all runs: what stands in it, in which order, and that names of others cannot do harm."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from pages import PageReader
from PIL import Image
from reported import digits_snapshot

from pcl_ray import config
from pcl_ray.report.overview import RunEntry, SweepEntry, html_of, strip_of

FIGURES = {
    "eval/knn_top1": 0.96935,
    "eval/pixels/knn_top1": 0.9805,
    "eval/untrained/knn_top1": 0.94707,
    "cluster/0/ami": 0.8133,
}


def run(name: str, data: str = "digits", **changes: Any) -> RunEntry:
    fields: dict[str, Any] = {
        "state": "finished",
        "began": 1.8e9,
        "config": config.load("digits", {"loss.temperature": 0.15, "train.epochs": 50}),
        "epochs": 50,
        "num_clusters": (10, 20, 40),
        "figures": FIGURES,
        "mlflow_run_id": "ab12",
        "has_report": True,
        "has_pictures": True,
    }
    return RunEntry(name=name, data=data, **(fields | changes))


def page(runs: list[RunEntry], sweeps: list[SweepEntry] | None = None) -> PageReader:
    return PageReader(html_of(runs, sweeps or [], "/pcl", "/home/me/.pcl_ray"))


def test_a_run_is_told_by_what_one_asks_first() -> None:
    text = page([run("first")]).text
    assert "first report · MLflow 50 10, 20, 40 0.15 10 small_resnet 0.969 0.981 0.947 0.813 – 20" in text
    shown = page([run("first")])
    assert {attributes["src"] for attributes in shown.having("src")} == {"/pcl/runs/first/prototypes.png"}
    assert "/pcl/runs/first/report.html" in {attributes["href"] for attributes in shown.having("href")}
    assert [attributes["data-run"] for attributes in shown.having("data-run")] == ["ab12"]


def test_runs_stand_by_data_set_the_best_first_and_trials_only_as_a_number() -> None:
    better = run("better", figures=FIGURES | {"eval/knn_top1": 0.985})
    none_yet = run("young", state="running", epochs=3, figures={}, has_report=False, has_pictures=False)
    trials = [run(f"tau.{n}", sweep="tau", figures=FIGURES | {"eval/knn_top1": 0.99}) for n in range(3)]
    sweep = SweepEntry("tau", "finished", 1.8e9, "digits", objective="eval/knn_top1", best=0.9912, trials=3)
    shown = page([none_yet, run("stamp", data="stamps"), run("plain"), better, *trials], [sweep])
    order = [
        shown.text.index(word) for word in ("better", "plain", "young running", "3 of 50", "stamp report")
    ]
    assert order == sorted(order)
    assert "tau.0" not in shown.text
    assert "tau digits finished 3 eval/knn_top1 0.991" in shown.text
    assert "4 runs and 1 sweep in /home/me/.pcl_ray" in shown.text


def test_only_what_beats_pixels_and_the_untrained_encoder_is_bold() -> None:
    assert "<b>0.969</b>" not in html_of([run("first")], [], "/pcl", "")
    better = html_of([run("first", figures=FIGURES | {"eval/knn_top1": 0.985})], [], "/pcl", "")
    assert "<b>0.985</b>" in better


def test_names_are_no_markup_and_nothing_is_fetched_from_elsewhere() -> None:
    text = html_of([run("a", data="<script>alert(1)</script>/x y")], [], "/pcl", "<b>")
    assert "<script>alert" not in text
    assert "connect-src 'self'" in text
    PageReader(text)


def test_without_runs_the_first_command_is_named() -> None:
    assert "pcl-ray train digits" in page([]).text


def test_the_strip_shows_images_of_the_coarsest_clustering() -> None:
    content = strip_of(*digits_snapshot())
    assert content is not None
    picture = np.asarray(Image.open(BytesIO(content)))
    assert picture.shape == (68, 137, 3)
    shown, thumbnails = digits_snapshot()
    coarsest = min(shown.clusterings, key=lambda each: each.num_clusters)
    tightest = int(np.argmin(coarsest.concentration[coarsest.selected]))
    first = thumbnails.picture(int(coarsest.nearest[tightest][0]))
    assert first is not None
    expected = np.asarray(Image.fromarray(first).resize((22, 22)))
    np.testing.assert_array_equal(picture[:22, :22], expected)
