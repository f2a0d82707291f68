from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_sweep import open_session

from pcl_ray.sweep.session import SweepSession


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SweepSession]:
    with open_session(tmp_path) as session:
        yield session
