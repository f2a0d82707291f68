"""MLflow: one run for each experiment, also across restarts. The only module that knows MLflow.

A background thread does all the talking, so training never waits for the server and never fails because of
it. What the server does not take is kept in memory, then in `mlflow_pending.jsonl` of the run, and sent
before anything else when the run is opened again.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pcl_ray.config import RunConfig, TrackingConfig, figures, with_overrides
from pcl_ray.errors import Problem
from pcl_ray.support import redaction
from pcl_ray.support.redaction import public_uri
from pcl_ray.tracking import attachments, saved_views
from pcl_ray.tracking.attachments import NOTE as NOTE
from pcl_ray.tracking.attachments import DataSet as DataSet
from pcl_ray.tracking.client import as_texts, clean_name, set_defaults
from pcl_ray.tracking.outbox import Outbox, Point, Unsent
from pcl_ray.tracking.saved_views import Sweep as Sweep
from pcl_ray.tracking.store import RUN_TAG as RUN_TAG
from pcl_ray.tracking.store import Description, Store, is_database

Status = Literal["finished", "failed", "stopped", "stopped early"]

PENDING_FILE = "mlflow_pending.jsonl"
_URI = "tracking.uri"
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "stopped early": "KILLED"}
_ALLOWED = (
    "a server (http://… or https://…), a database (sqlite:////absolute/path/mlflow.db, postgresql://…,"
    " mysql://…, mssql://…), or databricks"
)


def tracking_uri(config: TrackingConfig, home: Path) -> str:
    """Where runs are recorded: the configured store, else MLFLOW_TRACKING_URI, else an sqlite file below
    `home`.
    """
    return (
        config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute()}/mlflow/mlflow.db"
    )


def check_uri(config: TrackingConfig, home: Path, *, stored: bool = False) -> list[Problem]:
    """What is wrong with the tracking URI, or with a name for MLflow; empty if nothing is. Asks no server.
    stored: the run has begun with this URI.
    """
    # also where nothing is recorded in MLflow: in config.yaml it would be
    if config.uri and not stored and redaction.holds_secret(config.uri):
        return [Problem(_URI, public_uri(config.uri), redaction.REFUSED)]
    if not config.enabled:
        return []
    uri = tracking_uri(config, home)
    wrong = _wrong_with(uri)
    origin = "" if config.uri else " (the value is that of MLFLOW_TRACKING_URI)"
    problems = [Problem(_URI, public_uri(uri), wrong + origin)] if wrong else []
    return problems + ([] if stored else list(_wrong_names(config)))


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


def secret_knobs(config: RunConfig) -> list[Problem]:
    """Knobs whose value is an address with a password or a key in it."""
    found = {name: value for name, value in _addresses(config).items() if redaction.holds_secret(value)}
    said = {_URI: redaction.REFUSED}
    return [
        Problem(name, public_uri(value), said.get(name, redaction.REFUSED_ELSEWHERE))
        for name, value in found.items()
    ]


def public_config(config: RunConfig) -> RunConfig:
    """As it may be shown and sent: addresses without passwords, which runs of earlier versions may have in
    `tracking.uri`.
    """
    private = {
        name: value
        for name, value in _addresses(config).items()
        if name == _URI or redaction.holds_secret(value)
    }
    changes = {name: public_uri(value) for name, value in private.items() if public_uri(value) != value}
    return with_overrides(config, changes) if changes else config


def _addresses(config: RunConfig) -> dict[str, str]:
    return {
        name: value
        for name, value in config.flatten().items()
        if isinstance(value, str) and (name == _URI or "://" in value)
    }


def stored_secret(config: RunConfig) -> str:
    """What to tell whoever goes on with a run that has a password in its configuration; "" for all others."""
    return redaction.STORED if secret_knobs(config) else ""


def _wrong_with(uri: str) -> str | None:
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
        try:
            parts = urlsplit(uri)
            named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            named = False
        return None if named else "needs a host, and a port that is a number, e.g. http://127.0.0.1:5000"
    if kind == "sqlite" and not rest.startswith("////"):
        return (
            "a relative path would lie in the working directory, which jobs throw away; write four slashes:"
            " sqlite:////absolute/path/mlflow.db"
        )
    if is_database(uri) or scheme in {
        plugin.name for plugin in metadata.entry_points(group="mlflow.tracking_store")
    }:
        return None
    return f"unknown kind of store {scheme!r}; allowed: {_ALLOWED}"


def ui_command(config: TrackingConfig, home: Path) -> str:
    """What to type, or the address to open, to see the dashboard."""
    uri = public_uri(tracking_uri(config, home))
    if not config.uri and is_database(uri):
        return "pcl-ray ui"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if is_database(uri) else uri


def run_tags(source: Path | None = None) -> dict[str, str]:
    """Versions, host, and the state of the source tree (by default the one this package lies in) when git
    knows it.
    """
    tags = {"version.python": platform.python_version(), "hostname": socket.gethostname()}
    for name in ("pcl_ray", "torch", "torchvision", "ray", "faiss-cpu", "faiss-gpu", "mlflow"):
        try:
            tags["version." + name.partition("-")[0]] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    folder = source or Path(__file__).parent
    # an installed package may lie below somebody else's repository, e.g. in its .venv: then that commit says
    # nothing about us
    if _git(folder, "ls-files"):
        commit, changes = (
            _git(folder, "rev-parse", "HEAD"),
            _git(folder, "status", "--porcelain", "--untracked-files=no"),
        )
        tags |= {"git.commit": commit} if commit else {}
        tags |= {"git.dirty": "true" if changes else "false"} if commit and changes is not None else {}
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=3, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


class NullRun:
    """Stands in for MlflowRun where nothing is to be recorded."""

    run_id: str | None = None
    dropped = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_text(self, text: str, file: str) -> None: ...

    def log_file(self, path: Path, file: str) -> None: ...

    def log_image(self, path: Path, key: str, step: int) -> None: ...

    def log_model(
        self, checkpoint: Path, config: RunConfig, metrics: Mapping[str, float], step: int
    ) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def announce(self, status: Status) -> None: ...

    def finish(self, status: Status, timeout_s: float = 30) -> None: ...

    def link(self, *, view: bool = False) -> str | None:
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
    dataset: DataSet | None = None,
    clusterings: int = 0,
    sweep: Sweep | None = None,
    keep: Iterable[str] = (),
    warn: Callable[[str], None],
) -> MlflowRun | NullRun:
    """The MLflow run of this name, found (by `run_id` or by name) or created in the background: returns at
    once and never raises.

    title: what the dashboard shows instead of the name. clusterings, sweep: what the experiment's saved views
    are made for; 0: none are. keep: figures that are charted in any case.

    `warn` gets one plain sentence when something is wrong with the server; it is called from another thread.
    """
    if not config.enabled:
        return NullRun()
    set_defaults()  # at once, for the processes that are started before the thread gets here
    described = Description(run_name, title or run_name, as_texts(params), dataset, clusterings, sweep)

    def say(message: str) -> None:
        warn(redaction.scrubbed(message))  # what servers and databases say may repeat addresses

    store = Store(
        tracking_uri(config, home),
        config.experiment,
        home.absolute() / "mlflow" / "artifacts",
        described,
        run_id,
        say,
    )
    first = Unsent(tags=as_texts(tags), files={"config.yaml": config_yaml})
    wanted = None if config.metrics == "all" else tuple(keep)
    return MlflowRun(
        store, Outbox(store, run_dir / PENDING_FILE, config.flush_s, first, say), wanted, config.register_as
    )


class MlflowRun:
    """One run. Its methods only write to a buffer; a daemon thread talks to the server."""

    def __init__(
        self, store: Store, outbox: Outbox, keep: Iterable[str] | None = None, register: str | None = None
    ):
        """keep: figures that are recorded beside the charted ones; None: all are."""
        self._store, self._outbox, self._keep, self._register = store, outbox, keep, register
        self._diverged = self._no_number = False  # each is told once
        self.dropped = 0  # points that MLflow will never have: no number, not finite

    @property
    def run_id(self) -> str | None:
        """None until the server has been reached."""
        return self._store.run_id

    def link(self, *, view: bool = False) -> str | None:
        """Address of the run on a server, or of the charts of its sweep or experiment; None for a database,
        or before the server was reached.
        """
        uri = public_uri(self._store.uri).rstrip("/")
        if not uri.startswith(("http://", "https://")) or self.run_id is None:
            return None
        experiment = str(self._store.experiment_id)
        return (
            saved_views.link(uri, experiment, view=self._store.view, charts=True)
            if view
            else saved_views.link(uri, experiment, run_id=self.run_id)
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records the metrics. For each name only rising steps are kept, so what is logged again after a
        restart makes no second point.

        Values that are not finite would spoil the scale of every chart: the first becomes the tag `diverged`
        instead.
        """
        now = int(time.time() * 1000)
        points = []
        for name, value in (metrics if self._keep is None else figures.charted(metrics, self._keep)).items():
            try:
                point = Point(clean_name(name), float(value), int(step), now)
            except Exception as error:  # a value that is no number costs its own point, nothing else
                self.dropped += 1
                if not self._no_number:
                    self._no_number = True
                    self._outbox.say(f"metric {name!r} at step {step} is not recorded: {error}")
                continue
            if math.isfinite(point.value):
                points.append(point)
                continue
            self.dropped += 1
            if not self._diverged:  # the first is the one to look at
                self._diverged = True
                self._outbox.put(Unsent(tags={"diverged": f"{point.key}@{step}"}))
        self._outbox.put(Unsent(points))

    def log_text(self, text: str, file: str) -> None:
        """Records a small text file as artifact of the run."""
        self._outbox.put(Unsent(files={file: str(text)}))

    def log_file(self, path: Path, file: str) -> None:
        """Records a file, which must stay where it is, as artifact `file` of the run."""
        self._outbox.put(Unsent(paths={file: str(path)}))

    def log_image(self, path: Path, key: str, step: int) -> None:
        """A picture on the step slider; the file is removed once the server has it."""
        self._outbox.put(Unsent(tasks={f"{key}@{step}": attachments.image(path, key, step)}))

    def log_model(self, checkpoint: Path, config: RunConfig, metrics: Mapping[str, float], step: int) -> None:
        """The checkpoint's encoder as MLflow models, with these figures; registered where
        `tracking.register_as` says so.
        """
        shown = metrics if self._keep is None else figures.charted(metrics, self._keep)
        finite = {name: value for name, value in shown.items() if math.isfinite(value)}
        objective = (figures.first_of(figures.OBJECTIVES, finite) or figures.RANKME).name
        task = attachments.model(
            checkpoint, public_config(config).to_yaml(), finite, step, self._register, objective
        )
        self._outbox.put(Unsent(tasks={"model": task}))

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.put(Unsent(tags=as_texts(tags)))

    def announce(self, status: Status) -> None:
        """Sets the status at once, before anything that still waits to be sent; `finish` follows."""
        self._outbox.announce(_MLFLOW_STATUS[status])

    def finish(self, status: Status, timeout_s: float = 30) -> None:
        """Sends what is left and closes the run; what cannot be sent in `timeout_s` seconds is kept on disk.
        A second call does nothing.
        """
        self._outbox.close(_MLFLOW_STATUS[status], timeout_s)
