"""Saved views of MLflow's dashboard: what a researcher looks at first, there without setting anything up.

A view is an experiment tag in a format internal to the dashboard. So it is written only for versions whose
format is known, and nothing depends on it: where views are missing the dashboard shows its own default. The
format is all that this module knows of MLflow; the client is handed in.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.request
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from importlib import metadata
from typing import Any
from urllib.parse import quote

from pcl_ray.tracking.view_charts import ALL_RUNS, RUNS, Sweep, View, runs_view, sweep_key, sweep_view

__all__ = ["ALL_RUNS", "RUNS", "Sweep", "View", "ensure", "link", "shown", "sweep_key", "version_at"]

VERSIONS = ("3.17",)  # versions whose dashboards were seen to read what is written here
LONGEST = 20_000  # characters that MLflow takes as an experiment tag's value
_TAG = "mlflow.sharedViewState."
_PACKED = "deflate;"
_MARK = "pcl_ray"  # a field that the dashboard drops when somebody changes a view there: then it is theirs
_SWEEPS_KEPT = 20  # the dashboard lets nobody save a view of their own where an experiment has 40


def link(
    uri: str, experiment_id: str, *, view: str | None = None, run_id: str | None = None, charts: bool = False
) -> str:
    """The address of a run, or of the table or the charts of an experiment's runs. Without workflowType a new
    browser shows traces, and no run at all.
    """
    page = f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs"
    query = "?workflowType=machine_learning"
    if run_id is not None:
        return f"{page}/{run_id}{'/model-metrics' if charts else ''}{query}"
    if view:
        query += f"&viewStateShareKey={quote(view)}"
    if charts:
        query += "&compareRunsMode=CHART"
    return page + query


def version_at(uri: str, timeout_s: float = 3.0) -> str:
    """The version of the dashboard that shows this store: the server's, or that of this machine's MLflow
    where the store is a database. Empty if the server does not say.
    """
    if not uri.startswith(("http://", "https://")):
        return metadata.version("mlflow")
    scheme, _, rest = uri.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    address = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}/version"
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as answer:
            return answer.read(100).decode().strip()
    except (OSError, ValueError, HTTPException):
        return ""


def shown(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags has our views."""
    return _TAG + RUNS in tags


def ensure(
    client: Any, experiment_id: str, version: str, *, clusterings: int, sweep: Sweep | None = None
) -> None:
    """Writes the views that are missing or not as they should be; leaves alone what a user saved, or changed
    in the dashboard.

    version: of MLflow, where the views will be opened. clusterings: of the run or the sweep at hand. Raises
    what the client raises.
    """
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        return
    tags = dict(client.get_experiment(experiment_id).tags)
    before = _fields_of_ours(tags.get(_TAG + RUNS, ""))
    most = max(clusterings, before.get(_MARK, {}).get("clusterings", 0)) if before else clusterings
    views = [runs_view(most), runs_view(most, trials=True)]
    if sweep:
        views.append(sweep_view(sweep, clusterings))
    for view in views:
        present = tags.get(_TAG + view.key)
        if present is not None and not _outdated(present, view):
            continue
        value = encode(view, {"clusterings": most})
        if len(value) <= LONGEST:
            client.set_experiment_tag(experiment_id, _TAG + view.key, value)
    if sweep:
        for key in _too_many(tags, keep=sweep_key(sweep.name)):
            client.delete_experiment_tag(experiment_id, _TAG + key)


def encode(view: View, mark: Mapping[str, Any]) -> str:
    """The value of the tag that holds the view. mark: what else is noted there, for the next `ensure`."""
    now = int(time.time() * 1000)
    state = json.dumps(view.state, separators=(",", ":")).encode()
    packed = _PACKED + base64.b64encode(zlib.compress(state, 9)).decode()
    fields = {"name": view.name, "createdAt": now, "updatedAt": now, "state": packed, _MARK: dict(mark)}
    return json.dumps(fields)


def decode(key: str, value: str) -> View:
    """The view in a tag. Raises ValueError if it is none."""
    try:
        fields = json.loads(value)
        state = fields["state"]
        if state.startswith(_PACKED):
            state = zlib.decompress(base64.b64decode(state.removeprefix(_PACKED)))
        return View(key, fields["name"], json.loads(state))
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a view: {error}") from None


def _fields_of_ours(value: str) -> dict[str, Any]:
    """The fields around a view, if the view is ours and nobody changed it; else none."""
    try:
        fields = json.loads(value)
    except ValueError:
        return {}
    ours = isinstance(fields, dict) and isinstance(fields.get(_MARK), dict)
    return fields if ours else {}


def _outdated(value: str, wanted: View) -> bool:
    """Whether the view is ours but out of date. Compared unpacked: another zlib packs in another way."""
    if not _fields_of_ours(value):
        return False
    try:
        return decode(wanted.key, value) != wanted
    except ValueError:
        return True


def _too_many(tags: Mapping[str, str], keep: str) -> list[str]:
    """The oldest of our views of sweeps, beyond those that are kept."""
    keys = [
        name.removeprefix(_TAG)
        for name in tags
        if name.startswith(f"{_TAG}sweep-") and name != _TAG + keep and _fields_of_ours(tags[name])
    ]
    newest_first = sorted(keys, key=lambda key: -int(_fields_of_ours(tags[_TAG + key]).get("createdAt", 0)))
    return newest_first[_SWEEPS_KEPT - 1 :]
