"""Runs for lists, from stores that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.tracking import run_list


@pytest.mark.parametrize("kind", ["folder", "text"])
def test_a_file_that_is_no_database_is_said_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("no database")
    with pytest.raises(RunFailed, match=r"MLflow's store cannot be read: .*mlflow\.db"):
        run_list.recorded(f"sqlite:///{path}", "pcl_ray")
