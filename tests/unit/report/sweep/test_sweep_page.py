"""The report of a sweep as HTML: what is on it, and that nothing can break out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweep_records import at, record

from pcl_ray import config as configs
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.sweep import sweep_page
from pcl_ray.report.sweep.sweep_record import SweepRecord


def whole() -> SweepRecord:
    history = [
        {"epoch": epoch, "step": epoch, "metrics": {"eval/knn_top1": 0.5 + epoch / 10}} for epoch in range(4)
    ]
    run = RunRecord("sweep.0.1.0", configs.load("digits"), history)
    trials = [
        at(0.1, 0.9, device_seconds=120.0, saved_seconds=30.0, metrics={"eval/pixels/knn_top1": 0.7}),
        at(0.2, 0.8, device_seconds=60.0),
        at(0.4, None, state="failed", error="the <b>loss</b> is nan"),
    ]
    return record(
        *trials,
        planned=4,
        space="of_tau",
        recipe="digits",
        runs={run.name: run},
        best_recipe="/home/me/sweeps/my sweep/best.yaml",
        test={"eval/test_knn_top1": 0.88},
        link="javascript:alert(1)",
    )


def test_everything_that_a_sweep_found_is_on_its_page(tmp_path: Path) -> None:
    path = sweep_page.write(whole(), tmp_path / "report.html")
    text = path.read_text()
    for part in ("summary", "findings", "leaderboard", "figures", "curves", "trials", "configuration"):
        assert f'id="{part}"' in text
        assert f'href="#{part}"' in text
    assert "0.9000" in text
    assert "The recipe&#x27;s own" in text
    assert "0.880" in text
    assert "3 of 4" in text  # trials
    assert "raw pixels" in text
    assert "pcl-ray train &#x27;/home/me/sweeps/my sweep/best.yaml&#x27; train.epochs=200" in text
    assert text.count("data:image/png;base64,") == 3  # by knob, parallel, cost: one α has no map
    assert "tau0.1-s0" in text
    assert "All 3 trials" in text
    assert "log-uniform 0.05 … 0.5" in text


def test_what_trials_say_is_text_and_only_web_addresses_are_links() -> None:
    text = sweep_page.html_of(whole(), {})
    assert "<b>loss</b>" not in text
    assert "the &lt;b&gt;loss&lt;/b&gt; is nan" in text
    assert 'href="javascript' not in text
    assert "<img" not in text


def test_many_configurations_are_folded() -> None:
    trials = [at(0.1 + number / 100, 0.5 + number / 100) for number in range(25)]
    text = sweep_page.html_of(record(*trials), {})
    assert "5 more configurations" in text


def test_a_sweep_that_has_just_begun_has_a_page_too(tmp_path: Path) -> None:
    begun = record(state="running", planned=4, settings={}, num_holdout=0)
    text = sweep_page.write(begun, tmp_path / "report.html").read_text()
    assert "No trial has begun." in text
    assert 'id="figures"' not in text
    assert "0 of 4" in text


def test_figures_that_were_drawn_already_are_taken(tmp_path: Path) -> None:
    (tmp_path / "importance.png").write_bytes(b"drawn")
    text = sweep_page.write(replace(whole()), tmp_path / "report.html", tmp_path).read_text()
    assert text.count("data:image/png;base64,") == 1
