from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from pcl_ray.report.sweep import leaderboard, plots
from pcl_ray.report.sweep.leaderboard import TrialRecord

TAU, ALPHA, K, LR = "loss.temperature", "e_step.alpha", "e_step.num_clusters", "optimizer.lr"
KNN = "eval/knn_top1"


def trial(
    objective: float | None,
    state: leaderboard.State = "finished",
    *,
    seed: int = 0,
    point: dict[str, Any] | None = None,
    **others: Any,
) -> TrialRecord:
    point = {TAU: 0.1, ALPHA: 10.0, K: "0.02"} | (point or {})
    return TrialRecord("-".join(map(str, point.values())), "run", state, point, seed, objective, **others)


def a_grid() -> list[TrialRecord]:
    """3 τ × 2 α × 2 K × 2 seeds; of τ = 0.5 with α = 3 all failed, τ = 0.05 was stopped early."""
    records = []
    for tau in (0.05, 0.2, 0.5):
        for alpha in (3, 30):
            for k in ("0.1", "0.02,0.04"):
                for seed in (0, 1):
                    lost = tau == 0.5 and alpha == 3
                    state = "failed" if lost else "finished"
                    if tau == 0.05:
                        state = "stopped early"
                    value = (
                        None if lost else 0.5 + tau / 10 + alpha / 1000 + 0.02 * (k == "0.1") + 0.01 * seed
                    )
                    records.append(
                        trial(
                            value,
                            state,
                            seed=seed,
                            point={TAU: tau, ALPHA: alpha, K: k},
                            device_seconds=60.0 * (1 + len(records)),
                        )
                    )
    return records


def drawn(figure: Figure, panel: int = 0) -> dict[str, PathCollection]:
    return {str(c.get_label()): c for c in figure.axes[panel].collections if isinstance(c, PathCollection)}


def lines(figure: Figure, panel: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines}


def labels(figure: Figure, panel: int = 0) -> list[str]:
    return [label.get_text() for label in figure.axes[panel].get_xticklabels()]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Neighbouring tick labels that touch, on any axis of the figure."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [
                (label.get_text(), label.get_window_extent())
                for label in axis.get_ticklabels()
                if label.get_text() and label.get_visible()
            ]
            rotated = axis is axes.xaxis and any(
                label.get_rotation() == 30 for label in axis.get_ticklabels()
            )
            found += [
                (a, b)
                for (a, first), (b, second) in zip(boxes, boxes[1:], strict=False)
                if not rotated and first.overlaps(second)
            ]
    return found


def test_every_trial_is_drawn_in_every_panel_as_what_it_is() -> None:
    figure = plots.objective_by_knob(a_grid(), [TAU, ALPHA, K], KNN)
    for panel in range(3):
        points = drawn(figure, panel)
        assert {kind: len(points[kind].get_offsets()) for kind in points} == {
            "finished": 12,
            "stopped early": 8,
        }
        assert len(points["stopped early"].get_facecolors()) == 0  # hollow
        assert len(points["finished"].get_facecolors()) == 1
        crosses = lines(figure, panel)["failed or without a value"]
        assert (len(crosses.get_xdata()), crosses.get_marker()) == (4, "x")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "temperature τ",
        "concentration smoothing α",
        "clusters K",
    ]
    assert figure.axes[0].get_ylabel() == KNN
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log", "linear"]
    assert [labels(figure, panel) for panel in range(3)] == [
        ["0.05", "0.2", "0.5"],
        ["3", "30"],
        ["0.02,0.04", "0.1"],
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "finished",
        "stopped early",
        "failed or without a value",
        "mean of finished",
    ]


def test_the_mean_line_is_that_of_trials_that_finished_and_passed() -> None:
    records = [
        trial(value, point={TAU: tau}, seed=seed)
        for seed, (tau, value) in enumerate([(0.1, 0.2), (0.1, 0.4), (0.2, 0.5), (0.2, 0.9)])
    ]
    records.append(trial(9.0, point={TAU: 0.1}, refused="collapsed"))
    records += [trial(-9.0, "stopped early", point={TAU: 0.2}, seed=seed) for seed in (5, 6, 7)]
    figure = plots.objective_by_knob(records, [TAU], KNN)
    mean = lines(figure)["mean of finished"]
    assert list(mean.get_xdata()) == [0.1, 0.2]
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.7])
    assert len(drawn(figure)["refused"].get_offsets()) == 1


def test_values_that_were_tried_once_have_no_mean_line() -> None:
    figure = plots.objective_by_knob([trial(0.1 * n, point={TAU: 0.1 * n}) for n in range(1, 6)], [TAU], KNN)
    assert "mean of finished" not in lines(figure)


@pytest.mark.parametrize(
    ("knob", "values", "scale"),
    [
        (TAU, [0.1, 0.2], "log"),
        (ALPHA, [5, 10], "log"),
        (LR, [0.001, 0.03], "log"),  # a factor 30
        (LR, [0.01, 0.03], "linear"),
        (LR, [0.0, 0.03], "linear"),
        (TAU, [-0.1, 0.2], "linear"),
        (K, [16, 1000], "log"),
        (K, [16, "0.02,0.04"], "linear"),
    ],
)
def test_axes_are_logarithmic_where_that_shows_more(knob: str, values: list[Any], scale: str) -> None:
    figure = plots.objective_by_knob([trial(0.5, point={knob: value}) for value in values], [knob], KNN)
    assert figure.axes[0].get_xscale() == scale


def test_tick_labels_do_not_touch() -> None:
    random_like = [
        trial(
            0.5 + math.sin(n) / 10,
            point={TAU: 0.05 * 1.008**n, ALPHA: 1 + n * 0.37, K: str(0.001 * (n % 37)), LR: 1e-4 * (n + 1)},
        )
        for n in range(300)
    ]
    for records in (a_grid(), random_like, [trial(0.5)]):
        knobs = list(records[0].point)
        figures = [plots.objective_by_knob(records, knobs, KNN), plots.temperature_alpha_map(records, KNN)]
        figures += [plots.objective_by_cost(records, KNN, "max")]
        assert [pair for figure in figures if figure is not None for pair in overlapping(figure)] == []


def test_the_map_of_a_grid_shows_the_best_configuration_of_each_cell() -> None:
    figure = plots.temperature_alpha_map(a_grid(), KNN)
    assert figure is not None
    panel = figure.axes[0]
    image = panel.images[0].get_array()
    # K = "0.1" is the better one; the mean of its two seeds; rows are α = 3, 30, columns τ = 0.05, 0.2, 0.5
    assert image[0, :2].tolist() == pytest.approx([0.533, 0.548])
    assert image[1].tolist() == pytest.approx([0.56, 0.575, 0.605])
    assert bool(image.mask[0, 2])  # all failed
    assert sorted(text.get_text() for text in panel.texts) == ["0.533", "0.548", "0.56", "0.575", "0.605"]
    assert (panel.get_xlabel(), panel.get_ylabel(), labels(figure)) == (
        "temperature τ",
        "concentration smoothing α",
        ["0.05", "0.2", "0.5"],
    )


def test_the_map_follows_the_direction() -> None:
    records = [
        trial(value, point={TAU: tau, ALPHA: alpha, K: k})
        for tau in (0.1, 0.2)
        for alpha in (1, 2)
        for k, value in ((5, 0.7), (6, 1.6))
    ]
    shown = {}
    for direction in ("max", "min", "nearest_one"):
        figure = plots.temperature_alpha_map(records, KNN, direction)
        assert figure is not None
        shown[direction] = set(figure.axes[0].images[0].get_array().ravel().round(6).tolist())
    assert shown == {"max": {1.6}, "min": {0.7}, "nearest_one": {0.3}}


def test_the_map_of_a_random_search_is_of_points() -> None:
    figure = plots.temperature_alpha_map(
        [trial(0.5, point={TAU: 0.1 + 0.01 * n, ALPHA: 5 + n}) for n in range(30)], KNN
    )
    assert figure is not None
    assert len(figure.axes[0].images) == 0
    assert len(next(iter(drawn(figure).values())).get_offsets()) == 30
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_there_is_no_map_without_both_knobs() -> None:
    assert plots.temperature_alpha_map([trial(0.5, point={TAU: tau}) for tau in (0.1, 0.2)], KNN) is None
    assert (
        plots.temperature_alpha_map(
            [TrialRecord("t", "r", "finished", {TAU: 0.1 * n}, 0, 0.5) for n in (1, 2)], KNN
        )
        is None
    )
    assert (
        plots.temperature_alpha_map(
            [trial(None, "failed", point={TAU: 0.1 * n, ALPHA: n}) for n in (1, 2)], KNN
        )
        is None
    )


@pytest.mark.parametrize(("direction", "height"), [("max", 1.0), ("min", 0.0)])
def test_parallel_coordinates_have_a_line_a_configuration_and_mark_the_best(
    direction: leaderboard.Direction, height: float
) -> None:
    records = [trial(0.1 * n, point={TAU: 0.1 * n}, seed=seed) for n in (1, 2, 4) for seed in (0, 1)]
    figure = plots.parallel_coordinates(records, [TAU, K], KNN, direction)
    assert figure is not None
    through = [line for line in figure.axes[0].lines if len(line.get_ydata()) == 3]
    assert len(through) == 3
    best = lines(figure)["best"].get_ydata()
    assert list(best) == pytest.approx([height, 0.5, height])
    middle = sorted(line.get_ydata()[0] for line in through)[1]
    assert middle == pytest.approx(0.5)  # 0.2 lies in the middle of 0.1 and 0.4 on the logarithmic axis of τ
    assert labels(figure) == ["temperature\nτ", "clusters\nK", KNN]


def test_the_pareto_front_is_of_trials_that_nothing_cheaper_beats() -> None:
    costs = [(1, 0.3), (2, 0.2), (3, 0.6), (4, 0.6), (5, 0.9), (5, 0.7)]
    records = [trial(value, device_seconds=60.0 * minutes) for minutes, value in costs]
    records += [
        trial(5.0, device_seconds=60.0, refused="collapsed"),
        trial(7.0, "failed", device_seconds=1.0),
    ]
    figure = plots.objective_by_cost(records, KNN, "max")
    assert figure is not None
    front = lines(figure)["Pareto front"]
    assert (front.get_xdata().tolist(), front.get_ydata().tolist()) == ([1.0, 3.0, 5.0], [0.3, 0.6, 0.9])
    assert len(drawn(figure)["finished"].get_offsets()) == 6
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("device minutes of a trial", KNN)
    fewest = plots.objective_by_cost(records, KNN, "min")
    assert fewest is not None
    assert list(lines(fewest)["Pareto front"].get_ydata()) == pytest.approx([0.3, 0.2])


def test_a_shared_warm_up_counts_for_all_who_went_on_from_it() -> None:
    figure = plots.objective_by_cost(
        [trial(0.5, device_seconds=120.0), trial(0.6, device_seconds=60.0, saved_seconds=60.0)], KNN, "max"
    )
    assert figure is not None
    assert drawn(figure)["finished"].get_offsets()[:, 0].tolist() == [2.0, 2.0]
    assert figure.axes[0].get_xlabel() == "device minutes of a trial, shared warm-up included"


def test_importance_bars_are_ordered_and_there_are_none_without_importances() -> None:
    assert plots.importance_bars({}) is None
    figure = plots.importance_bars({LR: 0.1, TAU: 0.7, K: 0.2})
    assert figure is not None
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.1, 0.2, 0.7]  # from below
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        LR,
        "clusters K",
        "temperature τ",
    ]
    assert [text.get_text() for text in figure.axes[0].texts] == ["10%", "20%", "70%"]


ALL = [
    "objective_by_knob.png",
    "temperature_alpha.png",
    "parallel_coordinates.png",
    "objective_by_cost.png",
    "importance.png",
]
DEGENERATE = {
    "one trial": ([trial(0.5)], [ALL[0], ALL[2], ALL[3]]),
    "all failed": ([trial(None, "failed", point={TAU: 0.1 * n, ALPHA: n}) for n in (1, 2, 3)], [ALL[0]]),
    "all equal": ([trial(0.5, seed=seed) for seed in range(5)], [ALL[0], ALL[2], ALL[3]]),
    "equal values": ([trial(0.5, point={TAU: 0.1 * n, ALPHA: n}) for n in (1, 2, 3)], ALL[:4]),
    "NaN": ([trial(math.nan), trial(math.inf, seed=1)], [ALL[0]]),
    "all refused": (
        [trial(0.5, point={TAU: 0.1 * n}, refused="collapsed") for n in (1, 2)],
        [ALL[0], ALL[2], ALL[3]],
    ),
    "none": ([], []),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_what_there_is_gets_drawn_and_the_rest_is_skipped(name: str, tmp_path: Path) -> None:
    records, expected = DEGENERATE[name]
    written = plots.write_all(records, [TAU, ALPHA, K], KNN, "nearest_one", {}, tmp_path)
    assert [path.name for path in written] == expected
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_a_whole_sweep_has_all_figures(tmp_path: Path) -> None:
    records = a_grid()
    written = plots.write_all(
        records, [TAU, ALPHA, K], KNN, "max", leaderboard.importances(records, "max"), tmp_path
    )
    assert [path.name for path in written] == ALL
    for path in written:
        with Image.open(path) as image:
            assert (image.format, image.width >= 500) == ("PNG", True)
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10
