"""The client of MLflow is quiet, and soon done with a server that does not answer."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from processes import free_port

from pcl_ray.tracking import client

SHOW = """
import json, os, sys
from pcl_ray.tracking import client
client.set_defaults(int(sys.argv[1]))
print(json.dumps({"mlflow": "mlflow" in sys.modules, **os.environ}))
"""


def test_defaults_are_set_without_loading_mlflow_and_yield_to_the_user(
    run_python: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    variables = json.loads(run_python(SHOW, "1").stdout)
    assert variables["mlflow"] is False
    assert variables["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert variables["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert variables["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


def test_a_server_that_is_gone_is_an_error_soon_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = time.monotonic()
    with pytest.raises(Exception, match="refused"):
        client.open_client(f"http://127.0.0.1:{free_port()}").search_experiments()
    assert time.monotonic() - before < 60  # MLflow's own patience is four minutes
    assert capfd.readouterr() == ("", "")


def test_a_database_is_opened_and_loggers_are_silent(tmp_path: Path, empty_store: Path) -> None:
    store = client.open_client(f"sqlite:///{empty_store}")
    assert [experiment.name for experiment in store.search_experiments()] == ["Default"]
    levels = {logging.getLogger(name).level for name in ("mlflow", "alembic", "urllib3", "sqlalchemy")}
    assert levels == {logging.CRITICAL}


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("train/loss", "train/loss"),
        ("inertia@64", "inertia_64"),
        ("../up//x/", "up/x"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("a" * 300, "a" * 250),
    ],
)
def test_names_that_mlflow_accepts(name: str, accepted: str) -> None:
    assert client.clean_name(name) == accepted


def test_values_are_texts_of_a_length_that_mlflow_accepts() -> None:
    values = {"a": 0.123456789, "b": [250, 500], "c": None, "d": True, "e@f": "x" * 7000}
    assert client.as_texts(values) == {
        "a": "0.123456789",
        "b": "250,500",
        "c": "null",
        "d": "true",
        "e_f": "x" * 6000,
    }
