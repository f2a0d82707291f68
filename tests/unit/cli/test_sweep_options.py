"""The options of `pcl-ray sweep`."""

from __future__ import annotations

import pytest

from pcl_ray.cli import sweep
from pcl_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("0.5h", 1800)],
)
def test_budgets_are_written_as_people_write_times(text: str, seconds: float) -> None:
    assert sweep.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2x", "h", "two hours", "-3h", "1h 30"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        sweep.seconds(text)
