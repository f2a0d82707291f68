"""MLflow: one run for each experiment, also across restarts. The only module that knows MLflow.

A background thread does all the talking, so training never waits for the server and never fails because of it. What the server does not take is kept
in memory, then in `mlflow_pending.jsonl` of the run, and sent before anything else when the run is opened again.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
import platform
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pcl_ray.config import TrackingConfig
from pcl_ray.errors import Problem
from pcl_ray.tracking_buffer import Outbox, Point, Unsent, as_texts, clean_name

Status = Literal["finished", "failed", "stopped", "stopped early"]

RUN_TAG = "pcl_ray.run_name"  # finds the run again; MLflow's own run name may be edited in the dashboard
PENDING_FILE = "mlflow_pending.jsonl"
BATCH_NAMES = 100  # parameters or tags in one request
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "stopped early": "KILLED"}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_ALLOWED = "a server (http://… or https://…), a database (sqlite:////absolute/path/mlflow.db, postgresql://…, mysql://…, mssql://…), or databricks"
_ENVIRONMENT = {  # MLflow's own defaults hold one call for four minutes when the server is gone
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(config: TrackingConfig, home: Path) -> str:
    """Where runs are recorded: the configured store, else MLFLOW_TRACKING_URI, else an sqlite file below `home`."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute()}/mlflow/mlflow.db"


def check_uri(config: TrackingConfig, home: Path) -> list[Problem]:
    """What is wrong with the tracking URI; empty if nothing is. Asks no server."""
    if not config.enabled:
        return []
    uri = tracking_uri(config, home)
    wrong = _wrong_with(uri)
    origin = "" if config.uri else " (the value is that of MLFLOW_TRACKING_URI)"
    return [Problem("tracking.uri", public_uri(uri), wrong + origin)] if wrong else []


def _wrong_with(uri: str) -> str | None:
    scheme, colon, rest = uri.partition(":")
    kind = scheme.lower().partition("+")[0]  # postgresql+psycopg2
    if uri == "databricks" or (colon and kind == "databricks"):
        return None
    if not colon or len(scheme) < 2 or kind in ("file", ""):  # C:\… is a path too
        return "MLflow does not support file stores any more; use sqlite:////absolute/path/mlflow.db, or a server (http://… or https://…)"
    if kind in ("http", "https"):
        try:
            parts = urlsplit(uri)
            named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            named = False
        return None if named else "needs a host, and a port that is a number, e.g. http://127.0.0.1:5000"
    if kind == "sqlite" and not rest.startswith("////"):
        return "a relative path would lie in the working directory, which jobs throw away; write four slashes: sqlite:////absolute/path/mlflow.db"
    if kind in _DATABASES or scheme in {plugin.name for plugin in metadata.entry_points(group="mlflow.tracking_store")}:
        return None
    return f"unknown kind of store {scheme!r}; allowed: {_ALLOWED}"


def ui_command(config: TrackingConfig, home: Path) -> str:
    """What to type, or the address to open, to see the dashboard."""
    uri = public_uri(tracking_uri(config, home))
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if _is_database(uri) else uri


def run_tags(source: Path | None = None) -> dict[str, str]:
    """Versions, host, and the state of the source tree (by default the one this package lies in) when git knows it."""
    tags = {"version.python": platform.python_version(), "hostname": socket.gethostname()}
    for name in ("pcl_ray", "torch", "torchvision", "ray", "faiss-cpu", "faiss-gpu", "mlflow"):
        try:
            tags["version." + name.partition("-")[0]] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    folder = source or Path(__file__).parent
    # an installed package may lie below somebody else's repository, e.g. in its .venv: then that commit says nothing about us
    if _git(folder, "ls-files"):
        commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
        tags |= {"git.commit": commit} if commit else {}
        tags |= {"git.dirty": "true" if changes else "false"} if commit and changes is not None else {}
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=3, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


class NullRun:
    """Stands in for MlflowRun where nothing is to be recorded."""

    run_id: str | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_text(self, text: str, file: str) -> None: ...

    def log_file(self, path: Path, file: str) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def finish(self, status: Status, timeout_s: float = 30) -> None: ...

    def link(self) -> str | None:
        return None


def open_run(
    config: TrackingConfig,
    *,
    home: Path,
    run_name: str,
    run_dir: Path,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    config_yaml: str,
    run_id: str | None = None,
    title: str | None = None,
    warn: Callable[[str], None],
) -> MlflowRun | NullRun:
    """The MLflow run of this name, found (by `run_id` or by name) or created in the background: returns at once and never raises.

    title: what the dashboard shows instead of the name.

    `warn` gets one plain sentence when something is wrong with the server; it is called from another thread.
    """
    if not config.enabled:
        return NullRun()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    artifacts = home.absolute() / "mlflow" / "artifacts"
    store = _Store(tracking_uri(config, home), config.experiment, run_name, artifacts, as_texts(params), run_id, title or run_name)
    first = Unsent(tags=as_texts(tags), files={"config.yaml": config_yaml})
    return MlflowRun(store, Outbox(store, run_dir / PENDING_FILE, config.flush_s, first, warn))


class MlflowRun:
    """One run. Its methods only write to a buffer; a daemon thread talks to the server."""

    def __init__(self, store: _Store, outbox: Outbox):
        self._store, self._outbox = store, outbox
        self._diverged = self._no_number = False  # each is told once

    @property
    def run_id(self) -> str | None:
        """None until the server has been reached."""
        return self._store.run_id

    def link(self) -> str | None:
        """Address of the run on a server; None for a database, or before the server was reached."""
        uri = public_uri(self._store.uri).rstrip("/")
        if not uri.startswith(("http://", "https://")) or self.run_id is None:
            return None
        return f"{uri}/#/experiments/{self._store.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records the metrics. For each name only rising steps are kept, so what is logged again after a restart makes no second point.

        Values that are not finite would spoil the scale of every chart: the first becomes the tag `diverged` instead.
        """
        now = int(time.time() * 1000)
        points = []
        for name, value in metrics.items():
            try:
                point = Point(clean_name(name), float(value), int(step), now)
            except Exception as error:  # a value that is no number costs its own point, nothing else
                if not self._no_number:
                    self._no_number = True
                    self._outbox.say(f"metric {name!r} at step {step} is not recorded: {error}")
                continue
            if math.isfinite(point.value):
                points.append(point)
            elif not self._diverged:  # the first is the one to look at
                self._diverged = True
                self._outbox.put(Unsent(tags={"diverged": f"{point.key}@{step}"}))
        self._outbox.put(Unsent(points))

    def log_text(self, text: str, file: str) -> None:
        """Records a small text file as artifact of the run."""
        self._outbox.put(Unsent(files={file: str(text)}))

    def log_file(self, path: Path, file: str) -> None:
        """Records a file, which must stay where it is, as artifact `file` of the run."""
        self._outbox.put(Unsent(paths={file: str(path)}))

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.put(Unsent(tags=as_texts(tags)))

    def finish(self, status: Status, timeout_s: float = 30) -> None:
        """Sends what is left and closes the run; what cannot be sent in `timeout_s` seconds is kept on disk. A second call does nothing."""
        self._outbox.close(_MLFLOW_STATUS[status], timeout_s)


class _Store:
    """The run on the server, as the outbox wants it."""

    def __init__(self, uri: str, experiment: str, run_name: str, artifacts: Path, params: dict[str, str], wanted: str | None, title: str):
        self._title = title
        self.uri, self._experiment, self._run_name, self._artifacts, self._params, self._wanted = uri, experiment, run_name, artifacts, params, wanted
        self.name = f"MLflow at {public_uri(uri)}"
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._client: Any = None
        self._existed = False  # the run was there before: ask it how far it got
        self._last_steps: dict[str, int] = {}

    def open(self) -> list[str]:
        """Finds or creates the run and describes it; does nothing once that is done. Gives back what the user should know."""
        if self.run_id is not None:
            return []
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "urllib3", "sqlalchemy"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors reach us as exceptions; logged too, they would bring tracebacks
        with _one_process(self.uri):
            self._client = MlflowClient(self.uri)
            self.experiment_id, messages = self._find_experiment()
            run = self._find_run()
            self._existed = run is not None
            if run is None:
                tags = {RUN_TAG: self._run_name, "mlflow.source.name": "pcl_ray", "mlflow.user": _user()}
                run = self._client.create_run(self.experiment_id, run_name=self._title, tags=tags)
        self.experiment_id = run.info.experiment_id
        if self._existed:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._describe(run)
        self.run_id = run.info.run_id
        return messages

    def _find_experiment(self) -> tuple[str, list[str]]:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:  # a database alone would put artifacts below the working directory; a server has a place of its own
                location = self._artifacts.as_uri() if _is_database(self.uri) else None
                return self._client.create_experiment(self._experiment, artifact_location=location), []
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(self._experiment)  # another process was faster
        if experiment.lifecycle_stage == "active":
            return experiment.experiment_id, []
        self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id, [f"the MLflow experiment {self._experiment!r} had been deleted; it is restored, with its runs"]

    def _find_run(self) -> Any:
        from mlflow.exceptions import MlflowException

        if self._wanted is not None:
            try:
                run = self._client.get_run(self._wanted)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        quote = '"' if "'" in self._run_name else "'"
        found = self._client.search_runs([self.experiment_id], f"tags.`{RUN_TAG}` = {quote}{self._run_name}{quote}", max_results=1)
        return found[0] if found else None

    def _describe(self, run: Any) -> None:
        """Parameters cannot be changed, so a value that is another one after a restart becomes a tag `changed.NAME`."""
        from mlflow.entities import Param, RunTag

        known, tags = run.data.params, run.data.tags
        new = [Param(name, value) for name, value in self._params.items() if name not in known]
        given_again = {name: value for name, value in self._params.items() if name in known}
        changed = [RunTag(f"changed.{name}", value) for name, value in given_again.items() if value != tags.get(f"changed.{name}", known[name])]
        for start in range(0, max(len(new), len(changed)), BATCH_NAMES):
            part = slice(start, start + BATCH_NAMES)
            self._client.log_batch(run.info.run_id, params=new[part], tags=changed[part], synchronous=True)

    def send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        for key in {point.key for point in points} - self._last_steps.keys():
            history = self._client.get_metric_history(self.run_id, key) if self._existed else []
            self._last_steps[key] = max((metric.step for metric in history), default=-1)
        reached, fresh = dict(self._last_steps), []
        for point in points:
            if point.step > reached[point.key]:
                reached[point.key] = point.step
                fresh.append(Metric(point.key, point.value, point.time, point.step))
        if fresh:
            self._client.log_batch(self.run_id, metrics=fresh, synchronous=True)
        self._last_steps = reached  # only now: points of a failed request are sent again

    def send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(rows), BATCH_NAMES):
            self._client.log_batch(self.run_id, tags=rows[start : start + BATCH_NAMES], synchronous=True)

    def send_file(self, file: str, text: str) -> None:
        self._client.log_text(self.run_id, text, file)

    def send_path(self, file: str, path: str) -> None:
        """Under its own name in the artifact folder of `file`. A file that has gone meanwhile is no reason to send nothing more."""
        if Path(path).is_file():
            folder = file.rpartition("/")[0]
            self._client.log_artifact(self.run_id, path, folder or None)

    def close(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)


@contextmanager
def _one_process(uri: str) -> Iterator[None]:
    """The trials of a sweep open a new sqlite file at the same moment: one after the other, or they create its tables twice."""
    if not uri.startswith("sqlite"):
        yield
        return
    import fcntl

    database = Path(uri.partition(":///")[2].partition("?")[0])
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_database(uri: str) -> bool:
    return uri.lower().startswith(_DATABASES)


def public_uri(uri: str) -> str:
    start, slashes, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return start + slashes + place.rpartition("@")[2] + slash + path


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container user without a name
        return "unknown"
