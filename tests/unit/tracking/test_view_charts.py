"""What our views of the dashboard show."""

from __future__ import annotations

import pytest

from pcl_ray.tracking import view_charts as charts
from pcl_ray.tracking.view_charts import Sweep, View

SWEEP = Sweep(
    "all_three",
    "eval/knn_top1",
    "max",
    {"loss.temperature": True, "e_step.alpha": True, "e_step.num_clusters": False},
    last_step=320,
)


@pytest.mark.parametrize(
    "view",
    [charts.runs_view(0), charts.runs_view(3), charts.runs_view(2, trials=True), charts.sweep_view(SWEEP, 2)],
)
def test_every_card_has_a_section_and_a_number_of_its_own(view: View) -> None:
    cards, sections = view.state["compareRunCharts"], view.state["compareRunSections"]
    numbers = [card["uuid"] for card in cards] + [section["uuid"] for section in sections]
    assert len(numbers) == len(set(numbers))
    assert {card["metricSectionId"] for card in cards} <= {section["uuid"] for section in sections}
    assert len({section["name"] for section in sections}) == len(sections)
    named = [card["metricKey"] for card in cards if card["type"] == "LINE"]
    assert len(named) == len(set(named)), "a metric with two cards is drawn twice"
    drawn = {
        metric
        for card in cards
        if card["type"] == "LINE" and not card["deleted"]
        for metric in card["selectedMetricKeys"]
    }
    assert set(named) == drawn, "a metric without a card of its own is drawn once more by the dashboard"


def test_the_view_of_runs() -> None:
    state = charts.runs_view(2).state
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/knn_top1`", False)
    assert state["searchFilter"] == "tags.`pcl_ray.sweep` IS NULL"
    assert charts.runs_view(2, trials=True).state["searchFilter"] == ""
    assert ["cluster/1/phi_p10", "cluster/1/phi_p50", "cluster/1/phi_p90"] in [
        card.get("selectedMetricKeys") for card in state["compareRunCharts"]
    ]
    pictures = [card["imageKeys"] for card in state["compareRunCharts"] if card["type"] == "IMAGE"]
    assert pictures == [
        ["prototypes/0"],
        ["prototypes/1"],
        ["clusters/sizes"],
        ["clusters/phi"],
        ["map"],
        ["views"],
    ]


def test_accuracies_share_a_chart_with_the_lines_they_are_held_against() -> None:
    state = charts.runs_view(1).state
    accuracies = ["eval/knn_top1", "eval/pixels/knn_top1", "eval/untrained/knn_top1", "eval/head/knn_top1"]
    assert accuracies in [card.get("selectedMetricKeys") for card in state["compareRunCharts"]]
    names = {section["name"] for section in state["compareRunSections"]}
    assert {"eval/head", "eval/pixels", "eval/untrained"} <= names


def test_the_view_of_a_sweep() -> None:
    state = charts.sweep_view(SWEEP, 2).state
    cards = {
        kind: [card for card in state["compareRunCharts"] if card["type"] == kind]
        for kind in ("PARALLEL", "SCATTER", "CONTOUR", "IMAGE")
    }
    axes = ["loss.temperature", "e_step.alpha", "plan.num_clusters_0"]
    assert cards["PARALLEL"][0]["selectedParams"] == axes
    assert cards["PARALLEL"][0]["selectedMetrics"] == ["eval/rankme", "eval/knn_top1"]
    assert [card["xaxis"]["key"] for card in cards["SCATTER"]] == [*axes, "eval/rankme"]
    assert len(cards["CONTOUR"]) == 1
    assert {card["step"] for card in cards["IMAGE"]} == {320}
    assert state["searchFilter"] == "tags.`pcl_ray.sweep` = 'all_three'"
    assert "params.`e_step.num_clusters`" in state["selectedColumns"]
    assert state["selectedColumns"][0] == "metrics.`eval/knn_top1`"


def test_the_view_of_another_sweep() -> None:
    view = charts.sweep_view(Sweep("it's", "eval/rankme", "min", {"model.backbone": False}), 0)
    kinds = [card["type"] for card in view.state["compareRunCharts"]]
    assert not {"PARALLEL", "CONTOUR"} & set(kinds)
    assert view.state["orderByAsc"] is True
    assert view.state["searchFilter"] == 'tags.`pcl_ray.sweep` = "it\'s"'
    assert view.key == "sweep-it_s"
