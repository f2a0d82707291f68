"""The MLflow run of an experiment, one also across restarts.

A background thread does all the talking, so training never waits for the server and never fails because of
it. What the server does not take is kept in memory, then in `mlflow_pending.jsonl` of the run, and sent
before anything else when the run is opened again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcl_ray.config import RunConfig, TrackingConfig, figures, public_config
from pcl_ray.support import redaction
from pcl_ray.tracking import attachments, saved_views
from pcl_ray.tracking.address import is_server, tracking_uri
from pcl_ray.tracking.client import as_texts, clean_name, set_defaults
from pcl_ray.tracking.outbox import Outbox
from pcl_ray.tracking.pending import Point, Unsent
from pcl_ray.tracking.store import MlflowStore, RunDescription

Status = Literal["finished", "failed", "stopped", "stopped early"]

PENDING_FILE = "mlflow_pending.jsonl"
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "stopped early": "KILLED"}


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

    def release(self) -> None: ...

    def announce(self, status: Status) -> None: ...

    def finish(self, status: Status, timeout_s: float = 30) -> None: ...

    def link(self, *, view: bool = False) -> str | None:
        return None


def open_run(
    config: TrackingConfig,
    description: RunDescription,
    *,
    home: Path,
    run_dir: Path,
    always_charted: Iterable[str] = (),
    hold_s: float = 0.0,
    warn: Callable[[str], None],
) -> MlflowRun | NullRun:
    """The MLflow run that is described, found (by its id or by its name) or created in the background:
    returns at once and never raises.

    home: PCL_RAY_HOME. run_dir: the folder of the run, where the file lies of what the server did not take.
    always_charted: figures that are recorded whatever the catalogue of figures says. hold_s: MLflow, which
    takes seconds of a core to begin with, is left alone for so long, or until `release`. warn: gets one plain
    sentence when something is wrong with the server; it is called from another thread.
    """
    if not config.enabled:
        return NullRun()
    set_defaults()  # at once, for the processes that are started before the thread gets here

    def warn_without_secrets(message: str) -> None:
        warn(redaction.scrubbed(message))  # what servers and databases say may repeat addresses

    store = MlflowStore(
        tracking_uri(config, home),
        config.experiment,
        home.absolute() / "mlflow" / "artifacts",
        description,
        warn_without_secrets,
    )
    first = Unsent.of("tag", as_texts(description.tags))
    first.add(Unsent.of("file", {"config.yaml": description.config_yaml}))
    outbox = Outbox(store, run_dir / PENDING_FILE, config.flush_s, first, warn_without_secrets, hold_s=hold_s)
    choice = Selection(None if config.metrics == "all" else tuple(always_charted), config.register_as)
    return MlflowRun(store, outbox, choice)


@dataclass(frozen=True)
class Selection:
    """What of a run is recorded. always_charted: figures beside the charted ones; None: all figures are.
    register_as: the name of the registered model, None where none is.
    """

    always_charted: tuple[str, ...] | None = None
    register_as: str | None = None

    def of(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return metrics if self.always_charted is None else figures.charted(metrics, self.always_charted)


class MlflowRun:
    """One run. Its methods only write to a buffer; a daemon thread talks to the server."""

    def __init__(self, store: MlflowStore, outbox: Outbox, selection: Selection):
        self._store, self._outbox, self._selection = store, outbox, selection
        self._diverged = self._no_number = False  # each is told once
        self.dropped = 0  # points that MLflow will never have: no number, not finite

    @property
    def run_id(self) -> str | None:
        """None until the server has been reached."""
        return self._store.run_id

    def link(self, *, view: bool = False) -> str | None:
        """The address of the run on a server, or of the charts of its sweep or experiment; None for a
        database, or before the server was reached.
        """
        uri = redaction.public_uri(self._store.uri).rstrip("/")
        if not is_server(uri) or self.run_id is None:
            return None
        experiment = str(self._store.experiment_id)
        if view:
            return saved_views.link(uri, experiment, view=self._store.view, charts=True)
        return saved_views.link(uri, experiment, run_id=self.run_id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records the metrics. For each name only rising steps are kept, so what is logged again after a
        restart makes no second point.

        Values that are not finite would spoil the scale of every chart: the first becomes the tag `diverged`
        instead.
        """
        now = int(time.time() * 1000)
        points = []
        for name, value in self._selection.of(metrics).items():
            try:
                point = Point(clean_name(name), float(value), int(step), now)
            except Exception as error:  # a value that is no number costs its own point, nothing else
                self.dropped += 1
                if not self._no_number:
                    self._no_number = True
                    self._outbox.warn(f"metric {name!r} at step {step} is not recorded: {error}")
                continue
            if math.isfinite(point.value):
                points.append(point)
                continue
            self.dropped += 1
            if not self._diverged:  # the first is the one to look at
                self._diverged = True
                self._outbox.put(Unsent.of("tag", {"diverged": f"{point.key}@{step}"}))
        self._outbox.put(Unsent(points))

    def log_text(self, text: str, file: str) -> None:
        """Records a small text file as artifact of the run."""
        self._outbox.put(Unsent.of("file", {file: str(text)}))

    def log_file(self, path: Path, file: str) -> None:
        """Records a file, which must stay where it is, as artifact `file` of the run."""
        self._outbox.put(Unsent.of("artifact", {file: str(path)}))

    def log_image(self, path: Path, key: str, step: int) -> None:
        """Records a picture on the step slider; the file is removed once the server has it."""
        self._outbox.put(Unsent.of("task", {f"{key}@{step}": attachments.image(path, key, step)}))

    def log_model(self, checkpoint: Path, config: RunConfig, metrics: Mapping[str, float], step: int) -> None:
        """Records the checkpoint's encoder as MLflow models, with these figures; it is registered where
        `tracking.register_as` says so.
        """
        finite = {name: value for name, value in self._selection.of(metrics).items() if math.isfinite(value)}
        task = attachments.model(
            checkpoint, public_config(config).to_yaml(), finite, step, self._selection.register_as
        )
        self._outbox.put(Unsent.of("task", {"model": task}))

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.put(Unsent.of("tag", as_texts(tags)))

    def release(self) -> None:
        """Begins to record, where `hold_s` is not over yet."""
        self._outbox.release()

    def announce(self, status: Status) -> None:
        """Sets the status at once, before anything that still waits to be sent; `finish` follows."""
        self._outbox.announce(_MLFLOW_STATUS[status])

    def finish(self, status: Status, timeout_s: float = 30) -> None:
        """Sends what is left and closes the run; what cannot be sent in `timeout_s` seconds is kept on disk.
        A second call does nothing.
        """
        self._outbox.close(_MLFLOW_STATUS[status], timeout_s)
