"""The figure catalogue: whatever is measured is in it, and whatever is shown is taken from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import reported
import torch
from small import DIGITS_RUN

import pcl_ray
from pcl_ray import cli
from pcl_ray.clustering import Clustering
from pcl_ray.clustering.concentration import Hidden
from pcl_ray.clustering.quality import quality
from pcl_ray.config import fault_figures, figures, final_figures, knn_figures
from pcl_ray.config.figures import CATALOGUE, Figure, find
from pcl_ray.evaluation.labels import agreement
from pcl_ray.on_ray.metrics import GAUGES
from pcl_ray.runs.folder import RunFolder, read_history_at
from pcl_ray.tracking import view_charts

PACKAGE = Path(pcl_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LOOKS_LIKE_A_FIGURE = re.compile(r"(train|eval|perf|sweep|cluster/\{m\}|cluster)/[a-z_0-9{}]+")


def unknown(names: object) -> set[str]:
    return {name for name in names if find(name) is None}  # type: ignore[attr-defined]


def test_every_entry_is_there_once_and_says_what_it_is() -> None:
    entries = [value for value in vars(figures).values() if isinstance(value, Figure)]
    assert set(entries) <= set(CATALOGUE), "an entry that nobody finds"
    assert len({figure.name for figure in CATALOGUE}) == len(CATALOGUE)
    for figure in CATALOGUE:
        assert figure.label
        assert figure.sentence.endswith("."), figure.name
        assert figure.text(0.25)


def test_a_figure_of_a_clustering_is_found_with_its_number() -> None:
    assert find("eval/knn_top1") == (figures.KNN_TOP1, None)
    assert find("cluster/3/ami") == (figures.AMI, 3)
    assert find("cluster/12/shortlist_agreement") is not None
    assert find("train/accuracy_prototype_11") == (figures.ACCURACY_PROTOTYPE, 11)
    assert find("sweep/importance/loss.temperature") == (figures.SWEEP_IMPORTANCE, None)
    assert [find(name) for name in ("cluster/ami", "cluster/x/ami", "cluster/3/cone", "loss", "")] == [
        None
    ] * 5
    assert figures.AMI.at(3).name == "cluster/3/ami"
    assert figures.SWEEP_IMPORTANCE.of("e_step.alpha").name == "sweep/importance/e_step.alpha"


def test_values_are_written_as_users_know_them() -> None:
    assert figures.KNN_TOP1.row(0.93456) == ("kNN accuracy, held-out images", "0.9346")
    assert figures.KNN_TOP1.phrase(0.93456) == "kNN 0.935"
    assert figures.AMI.at(0).phrase(0.5) == "AMI 0.500"
    assert figures.E_STEP_SECONDS.phrase(1.234) == "E-step s 1.23"


def test_clusterings_are_counted_by_their_k() -> None:
    assert figures.clusterings_in({"cluster/10/k": 3.0, "cluster/2/k": 8.0, "cluster/4/ami": 0.1}) == [2, 10]


def test_what_is_charted() -> None:
    metrics = {"eval/knn_top1": 0.9, "eval/areq": 1.0, "cluster/1/k": 5.0, "somebody's": 1.0}
    assert figures.charted(metrics).keys() == {"eval/knn_top1", "somebody's"}
    assert figures.charted(metrics, ("eval/areq",)).keys() == {"eval/knn_top1", "eval/areq", "somebody's"}


def test_a_reported_history_has_no_unknown_figure() -> None:
    assert not unknown(name for entry in reported.history(6) for name in entry["metrics"])


def test_a_run_records_no_unknown_figure() -> None:
    words = ("resources.workers=0", "evaluation.lidar_views=2", *DIGITS_RUN, "--name", "catalogued")
    assert cli.main(["train", "digits", *words]) == 0
    names = {name for entry in read_history_at(RunFolder.path_of("catalogued")) for name in entry["metrics"]}
    assert len(names) > 50
    assert not unknown(names)


def test_what_describes_a_clustering_is_known() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    clustering = Clustering(
        rows[:2], torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0.2, 0.3]), objective=1.0
    )
    names = [
        *quality(clustering, clustering),
        *agreement(clustering.assignments, torch.tensor([0, 0, 1, 1, 2, 2])),
        *Hidden(0.1, 0.2, 0.3, 0, 0, 0.0).figures(),
    ]
    assert {"drift", "ami", "phi_clipped"} <= set(names)
    assert not unknown(f"cluster/0/{name}" for name in names)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_spells_a_figure_of_its_own(path: Path) -> None:
    """A name that stands as a string of its own is a figure that somebody measures or shows."""
    if path in [Path(part.__file__) for part in (figures, final_figures, fault_figures, knn_figures)]:
        return
    spelled = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if LOOKS_LIKE_A_FIGURE.fullmatch(node.value)
    }
    assert not spelled, "take the name from config.figures"


def test_views_and_gauges_name_known_figures_only() -> None:
    sweep = view_charts.Sweep("s", "eval/rankme", "max", {"loss.temperature": True})
    for view in (view_charts.runs_view(3), view_charts.runs_view(0), view_charts.sweep_view(sweep, 2)):
        state = view.state
        names = {name for card in state["compareRunCharts"] for name in card.get("selectedMetricKeys", ())}
        names |= {card["metricKey"] for card in state["compareRunCharts"] if "metricKey" in card}
        columns = {column for column in state["selectedColumns"] if column.startswith("metrics.")}
        names |= {column.removeprefix("metrics.`").removesuffix("`") for column in columns}
        assert len(names) > 10
        assert not unknown(names)
        assert names == figures.charted(dict.fromkeys(names, 0.0)).keys(), "a chart of what is not charted"
    assert {"pcl_loss", "pcl_images_per_second", "pcl_epoch"} <= GAUGES.keys()
    assert all(sentence.endswith(".") for sentence in GAUGES.values())


def test_what_earlier_versions_wrote_has_the_name_of_today() -> None:
    older = {"eval/knn_top1": 0.5, "eval/rankme": 3.0}
    assert figures.with_present_names(older) == {"eval/head/knn_top1": 0.5, "eval/rankme": 3.0}
    assert older == {"eval/knn_top1": 0.5, "eval/rankme": 3.0}
    newer = {"eval/knn_top1": 0.9, "eval/head/knn_top1": 0.5}
    assert figures.with_present_names(newer) == newer
    assert figures.with_present_names({"train/loss": 1.0}) == {"train/loss": 1.0}
