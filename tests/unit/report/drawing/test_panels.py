from __future__ import annotations

import subprocess
import sys

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pcl_ray.report.drawing.panels import figure_of, legend, tidy


def drawn(labels: list[list[str]], *, lines: bool = False, width: float = 8.0) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each list, and what these labels name drawn in it."""
    figure = figure_of(width, 3.0, "title")
    panels = list(figure.subplots(1, len(labels), squeeze=False).flat)
    for panel, names in zip(panels, labels, strict=True):
        for name in names:
            if lines:
                panel.plot([0, 1], label=name)
            else:
                panel.scatter([0], [0], label=name)
    legend(figure, panels)
    return figure, panels


def legend_texts(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in box.get_texts()] for box in figure.legends]


def test_a_figure_has_its_size_in_inches_and_its_title() -> None:
    figure = figure_of(5.5, 2.5, "of a run")
    assert tuple(figure.get_size_inches()) == (5.5, 2.5)
    assert figure.get_suptitle() == "of a run"


def test_figures_need_no_display_and_no_pyplot() -> None:
    code = "import sys, pcl_ray.report.drawing.panels as p; p.figure_of(1, 1, ''); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "matplotlib.figure" in done.stdout.split()
    assert "matplotlib.pyplot" not in done.stdout.split()


def test_a_tidy_panel_has_no_frame_at_the_top_and_the_right() -> None:
    panel = figure_of(3, 3, "").subplots()
    tidy(panel)
    visible = {side: spine.get_visible() for side, spine in panel.spines.items()}
    assert visible == {"left": True, "bottom": True, "top": False, "right": False}
    assert panel.get_axisbelow() is True
    assert all(line.get_visible() for line in panel.get_xgridlines())


def test_one_legend_names_each_kind_once() -> None:
    figure, _ = drawn([["finished", "failed"], ["failed", "stopped"]])
    assert legend_texts(figure) == [["finished", "failed", "stopped"]]


def test_one_kind_of_points_needs_no_legend_but_one_line_does() -> None:
    assert legend_texts(drawn([["finished"], ["finished"]])[0]) == []
    assert legend_texts(drawn([["mean"]], lines=True)[0]) == [["mean"]]
    assert legend_texts(drawn([[]])[0]) == []


def test_a_narrow_figure_has_the_legend_in_more_rows() -> None:
    names = ["a", "b", "c", "d"]
    columns = [drawn([names], width=width)[0].legends[0]._ncols for width in (1.0, 3.3, 20.0)]
    assert columns == [1, 2, 4]
