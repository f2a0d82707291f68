"""What the README shows of the study: a table of one data set, a figure of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study_report import Results

BEGIN, END = "<!-- learning: written by `benchmarks/study.py report` -->", "<!-- end of learning -->"
_TASK = "fashion_mnist"
_ROWS = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "infonce_longer": "InfoNCE, as long as PCL",
    "pcl": "PCL",
}
_COLUMNS = {
    "knn_20": "kNN (k = 20)",
    "linear": "linear probe",
    "five_labels": "5 labels a class",
    "ami": "AMI",
}
_PANELS = {"ami": "AMI of k-means", "five_labels": "5 labels a class", "knn_20": "kNN (k = 20)"}
_COLOURS = {"pixels": "#999999", "untrained": "#cccccc", "infonce_longer": "#55a868", "pcl": "#c44e52"}


def table(results: Results) -> Iterator[str]:
    """Mean ± standard deviation over the seeds, in per cent, line by line."""
    from study_report import mean_and_spread, table_line

    yield table_line("", "seeds", *_COLUMNS.values())
    yield table_line("---", *["---:"] * (len(_COLUMNS) + 1))
    for arm, title in _ROWS.items():
        cells = [mean_and_spread(results.of(_TASK, arm, figure)) for figure in _COLUMNS]
        yield table_line(title, len(results.rows(_TASK, arm)), *cells)


def draw(results: Results, path: Path) -> None:
    """A panel for each of three figures, a row for each data set, a dot for each seed."""
    from matplotlib import pyplot

    tasks = [task for task in results.tasks if results.of(task, "pcl", "ami")]
    figure, axes = pyplot.subplots(
        1, len(_PANELS), sharey=True, figsize=(2.9 * len(_PANELS), 0.9 + 0.5 * len(tasks))
    )
    for axis, (name, title) in zip(axes, _PANELS.items(), strict=True):
        for row, task in enumerate(tasks):
            for offset, arm in enumerate(_ROWS):
                _draw_dots(axis, results.of(task, arm, name), row + 0.18 * (offset - 1.5), arm, row == 0)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel("per cent")
        axis.set_xlim(0, 100)
        axis.grid(axis="x", linewidth=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    save_rows(figure, axes, tasks, path, legend_columns=4)


def save_rows(figure: Any, axes: Any, names: list[str], path: Path, *, legend_columns: int = 0) -> None:
    """Writes a figure whose panels share the rows of these names; with so many columns a legend below."""
    from matplotlib import pyplot

    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    bottom = 0.0
    if legend_columns:
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="lower center", ncols=legend_columns, frameon=False)
        bottom = 0.32 / figure.get_figheight()
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_dots(axis: Any, values: dict[int, float], height: float, arm: str, with_label: bool) -> None:
    points = [100 * value for value in values.values()]
    axis.plot(
        points,
        [height] * len(points),
        "o",
        color=_COLOURS[arm],
        markersize=3,
        label=_ROWS[arm] if with_label else None,
    )
