"""One figure of the catalogue: its name, and what those need who show it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Direction = Literal["max", "min", "nearest_one"]


@dataclass(frozen=True)
class Figure:
    """One figure. Where every clustering has one of it, the name holds {m}, and `at` gives that of one.

    label: how reports head it; title: its row in the table at a run's end; short: its name within a line.
    format: for its value in a table; short_format: within a line. direction: which values are better, None
    where runs cannot be compared by it. charted: whether the MLflow dashboard gets it; the others are only in
    the checkpoint and in figures.csv, for each would be a card, and sixty cards answer no question.
    """

    name: str
    label: str
    sentence: str
    title: str = ""
    short: str = ""
    format: str = "{:.4g}"
    short_format: str = ""
    direction: Direction | None = None
    charted: bool = True

    def at(self, clustering: int) -> Figure:
        """The figure of the clustering with this number, counted from 0."""
        return replace(self, name=self.name.replace("{m}", str(clustering)))

    def of(self, knob: str) -> Figure:
        """The figure of the knob with this dotted name, where each knob has one."""
        return replace(self, name=self.name.replace("{knob}", knob))

    def text(self, value: float) -> str:
        """The value as a table shows it."""
        return self.format.format(value)

    def phrase(self, value: float) -> str:
        """Name and value as a line shows them: "kNN 0.934"."""
        return f"{self.short or self.label} {(self.short_format or self.format).format(value)}"

    def row(self, value: float) -> tuple[str, str]:
        """Title and value as a table shows them."""
        return self.title or self.label, self.text(value)
