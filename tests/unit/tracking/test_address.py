"""Where runs are recorded, and what is told of an address that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pcl_ray import tracking
from pcl_ray.config import TrackingConfig
from pcl_ray.tracking import check_uri, tracking_uri

HANG = 60  # seconds; a guard against hanging, nothing is timed


@pytest.fixture(autouse=True)
def no_store_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_uri_is_the_configured_one_then_the_environment_then_sqlite_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://there:5000"
    assert tracking_uri(TrackingConfig(uri="http://here:5000"), tmp_path) == "http://here:5000"


@pytest.mark.parametrize("uri", ["file:/tmp/x", "file:///tmp/x", "/tmp/x", "mlruns", "./mlruns"])
def test_file_stores_are_refused_with_the_way_out(uri: str, tmp_path: Path) -> None:
    [problem] = check_uri(TrackingConfig(uri=uri), tmp_path)
    assert problem.name == "tracking.uri"
    assert "file stores" in problem.message
    assert "sqlite:////" in problem.message
    assert "http" in problem.message


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://x:5000", "http://"),
        ("s3://bucket", "unknown kind of store 's3'"),
        ("sqlite:///mlflow.db", "four slashes"),
        ("sqlite://", "four slashes"),
        ("http://", "host"),
        ("http://x:port", "number"),
    ],
)
def test_other_wrong_uris(uri: str, said: str, tmp_path: Path) -> None:
    [problem] = check_uri(TrackingConfig(uri=uri), tmp_path)
    assert said in problem.message


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "http://x:5000",
        "https://x/mlflow",
        "sqlite:////abs/x.db",
        "postgresql+psycopg2://u@h/d?passfile=/home/u/.pgpass",
        "mysql://h/d",
        "databricks",
        "databricks://p",
    ],
)
def test_right_uris(uri: str | None, tmp_path: Path) -> None:
    assert check_uri(TrackingConfig(uri=uri), tmp_path) == []


def test_a_wrong_environment_variable_is_named_and_nothing_is_checked_when_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/tmp/x")
    assert "MLFLOW_TRACKING_URI" in check_uri(TrackingConfig(), tmp_path)[0].message
    assert check_uri(TrackingConfig(enabled=False), tmp_path) == []


def test_checking_a_uri_imports_no_mlflow() -> None:
    code = (
        "import sys, pathlib; from pcl_ray import tracking as t; from pcl_ray.config import TrackingConfig as"
        " C; t.check_uri(C(), pathlib.Path('/x')); t.ui_command(C(), pathlib.Path('/x')); print('mlflow' in"
        " sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG
        ).stdout.strip()
        == "False"
    )


def test_ui_command_is_quoted_for_the_shell_and_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.ui_command(TrackingConfig(), Path("/a home")) == "pcl-ray ui"
    given = TrackingConfig(uri="sqlite:////a home/x.db")
    assert tracking.ui_command(given, tmp_path) == "mlflow ui --backend-store-uri 'sqlite:////a home/x.db'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@x:5000")
    assert tracking.ui_command(TrackingConfig(), tmp_path) == "http://x:5000"
