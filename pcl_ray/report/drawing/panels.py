"""The frame that all figures drawn by matplotlib have: title, grid, legend.

They are drawn on Figure objects alone: pyplot would keep a state, and ask for a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


def figure_of(width: float, height: float, title: str) -> Figure:
    """A figure with a title. Sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def tidy(panel: Axes) -> None:
    """Takes away the frame at the top and the right, and puts a pale grid behind."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(True, color="#E0E0E0", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, below them; none where there is but one kind."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1 or any(isinstance(handle, Line2D) for handle in handles.values()):
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=max(1, min(int(figure.get_figwidth() / 1.6), len(handles))),
            frameon=False,
            fontsize=9,
        )
