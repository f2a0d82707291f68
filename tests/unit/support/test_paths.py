from __future__ import annotations

from pathlib import Path

import pytest

from pcl_ray.errors import ConfigError
from pcl_ray.support.paths import check_writable, home


def test_a_writable_home_is_made_and_left_clean() -> None:
    check_writable()
    assert (home() / "runs").is_dir()
    assert list((home() / "runs").iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "file" / below))
    with pytest.raises(
        ConfigError,
        match=r"PCL_RAY_HOME = '.*file.*' cannot be written \(.+\); set PCL_RAY_HOME to a folder of yours",
    ):
        check_writable()
    assert (tmp_path / "file").read_text() == "in the way"
