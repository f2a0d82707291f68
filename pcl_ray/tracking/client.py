"""The MLflow client of every module in this room: quiet, and soon done with a server that does not answer."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from pcl_ray.support import telemetry
from pcl_ray.support.paths import storable
from pcl_ray.support.text import value_text

_VARIABLES = {  # MLflow's own defaults hold one call for four minutes when the server is gone
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_LOGGERS = ("mlflow", "alembic", "urllib3", "sqlalchemy")
_LONGEST_NAME = 250
_LONGEST_VALUE = 6000  # of a parameter; tags may be longer
_REFUSED_IN_NAMES = re.compile(r"[^\w.\-: /]")


def set_defaults(retries: int = 2) -> None:
    """Sets MLflow's variables, for this process and those that it starts. What the user has set stands."""
    telemetry.turn_off()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)


def open_client(uri: str, retries: int = 2) -> Any:
    """An MlflowClient of the store at this address. A database is opened and gets its tables, a server is not
    asked yet. retries: of each request, unless the user or an earlier client has set them.

    Takes seconds where MLflow has not been imported before. Raises what MLflow and its databases raise.
    """
    set_defaults(retries)
    from mlflow import MlflowClient

    # after the import, which sets levels of its own
    for name in _LOGGERS:
        # errors reach us as exceptions; logged too, they would bring tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def clean_name(name: str) -> str:
    """`name` as MLflow accepts it: letters, digits, `_ - . : /`, space; no part between / empty or dotted."""
    parts = [part for part in _REFUSED_IN_NAMES.sub("_", str(name)).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:_LONGEST_NAME].rstrip("/") or "unnamed"


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters or tags as MLflow accepts them."""
    texts = {name: value_text(value, digits=None) for name, value in values.items()}
    return {clean_name(name): storable(text)[:_LONGEST_VALUE] for name, text in texts.items()}
