"""Charts as SVG: their points and ticks."""

from __future__ import annotations

import pytest

from pcl_ray.report.drawing import svg


def test_a_long_history_is_thinned_and_keeps_its_end() -> None:
    points = [(float(n), float(n)) for n in range(3001)]
    thinned = svg.thinned(points)
    assert len(thinned) < 502
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.9612, 0.9614), (-3, 7), (1, 14), (0, 2.5e6), (5, 5.0000001)]
)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in found)
