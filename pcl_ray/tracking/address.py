"""Where runs are recorded: the address of the tracking store, and what is wrong with one. Asks no server."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from pcl_ray.config import TrackingConfig
from pcl_ray.errors import Problem
from pcl_ray.support import redaction
from pcl_ray.support.redaction import TRACKING_URI, public_uri

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_ALLOWED = (
    "a server (http://… or https://…), a database (sqlite:////absolute/path/mlflow.db, postgresql://…,"
    " mysql://…, mssql://…), or databricks"
)


def tracking_uri(config: TrackingConfig, home: Path) -> str:
    """The configured store, else MLFLOW_TRACKING_URI, else an sqlite file below `home`."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{home.absolute()}/mlflow/mlflow.db"


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    return uri.lower().startswith(_DATABASES)


def check_uri(config: TrackingConfig, home: Path, *, stored: bool = False) -> list[Problem]:
    """What is wrong with the tracking URI, or with a name for MLflow; empty if nothing is.

    stored: the run has begun with this URI.
    """
    # also where nothing is recorded in MLflow: in config.yaml it would be
    if config.uri and not stored and redaction.holds_secret(config.uri):
        return [Problem(TRACKING_URI, public_uri(config.uri), redaction.refusal(TRACKING_URI))]
    if not config.enabled:
        return []
    uri = tracking_uri(config, home)
    problems = []
    if mistake := _mistake_in(uri):
        origin = "" if config.uri else " (the value is that of MLFLOW_TRACKING_URI)"
        problems.append(Problem(TRACKING_URI, public_uri(uri), mistake + origin))
    return problems if stored else [*problems, *_wrong_names(config)]


def _wrong_names(config: TrackingConfig) -> Iterator[Problem]:
    """Names that a registry could take for a folder, or that no page can show."""
    if config.register_as is not None and not config.register_as.strip(". "):
        yield Problem(
            "tracking.register_as", config.register_as, "is no name: a letter, digit, _ or - must be in it"
        )
    if not config.experiment.strip() or not config.experiment.isprintable():
        yield Problem(
            "tracking.experiment",
            config.experiment,
            "must be letters and signs that can be seen, in one line",
        )


def _mistake_in(uri: str) -> str | None:
    scheme, colon, rest = uri.partition(":")
    kind = scheme.lower().partition("+")[0]  # postgresql+psycopg2
    if uri == "databricks" or (colon and kind == "databricks"):
        return None
    if not colon or len(scheme) < 2 or kind in ("file", ""):  # C:\… is a path too
        return (
            "MLflow does not support file stores any more; use sqlite:////absolute/path/mlflow.db, or a"
            " server (http://… or https://…)"
        )
    if kind in ("http", "https"):
        if _has_host(uri):
            return None
        return "needs a host, and a port that is a number, e.g. http://127.0.0.1:5000"
    if kind == "sqlite" and not rest.startswith("////"):
        return (
            "a relative path would lie in the working directory, which jobs throw away; write four slashes:"
            " sqlite:////absolute/path/mlflow.db"
        )
    if is_database(uri):
        return None
    if scheme in {plugin.name for plugin in metadata.entry_points(group="mlflow.tracking_store")}:
        return None
    return f"unknown kind of store {scheme!r}; allowed: {_ALLOWED}"


def _has_host(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        return False


def ui_command(config: TrackingConfig, home: Path) -> str:
    """What to type, or the address to open, to see the dashboard."""
    uri = public_uri(tracking_uri(config, home))
    if not is_database(uri):
        return uri
    return "pcl-ray ui" if not config.uri else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
