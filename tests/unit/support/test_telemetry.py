"""Usage reports of Ray and MLflow are off unless the user turned them on."""

from __future__ import annotations

import os

import pytest

from pcl_ray.support import telemetry


def test_reports_are_turned_off_but_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    telemetry.turn_off()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # so that monkeypatch removes them again
    monkeypatch.setenv("DO_NOT_TRACK", "true")
