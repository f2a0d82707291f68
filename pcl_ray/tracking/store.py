"""A run on an MLflow server or in a database, for the outbox: found or made, filled. Only for `tracking`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_ray.support import machine
from pcl_ray.support.files import WAIT_FOREVER, file_lock
from pcl_ray.support.redaction import public_uri
from pcl_ray.tracking import attachments, saved_views
from pcl_ray.tracking.address import is_database
from pcl_ray.tracking.attachments import DataSet
from pcl_ray.tracking.client import as_texts, open_client
from pcl_ray.tracking.pending import Point

RUN_TAG = "pcl_ray.run_name"  # finds the run again; MLflow's own run name may be edited in the dashboard
# What lists show of a run under way: what it waits for, what it does beside training; a sweep's trials.
WAITS_TAG, PHASE_TAG, TRIALS_TAG = "pcl_ray.waits_for", "pcl_ray.phase", "pcl_ray.trials"
BATCH_NAMES = 100  # parameters or tags in one request


@dataclass(frozen=True)
class RunDescription:
    """What MLflow is told of a run beside its figures.

    run_id: of the MLflow run that it had before. title: what the dashboard shows instead of its name.
    clusterings: how many the saved views of the experiment are made for; 0: none are. sweep: gets a view of
    its own.
    """

    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, Any]
    config_yaml: str
    run_id: str | None = None
    title: str | None = None
    dataset: DataSet | None = None
    clusterings: int = 0
    sweep: saved_views.Sweep | None = None


class MlflowStore:
    """One run. Every method may take long and raise; only the outbox's thread calls them."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: Path,
        description: RunDescription,
        warn: Callable[[str], None],
    ):
        self.uri = uri
        self._experiment = experiment
        self._artifacts = artifacts
        self._description = description
        self._warn = warn
        self.name = f"MLflow at {public_uri(uri)}"
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._client: Any = None
        self._existed = False  # the run was there before: ask it how far it got
        self._last_steps: dict[str, int] = {}

    @property
    def view(self) -> str:
        """Key of the saved view that shows the run among its like."""
        sweep = self._description.sweep
        return saved_views.sweep_key(sweep.name) if sweep else saved_views.RUNS

    def open(self) -> list[str]:
        """Finds or creates the run and describes it, once. Gives back what the user should know."""
        if self.run_id is not None:
            return []
        with _one_process(self.uri):
            self._client = open_client(self.uri)
            self.experiment_id, messages = self._find_experiment()
            run = self._find_run()
            self._existed = run is not None
            if run is None:
                tags = {
                    RUN_TAG: self._description.name,
                    "mlflow.source.name": "pcl_ray",
                    "mlflow.user": machine.user(),
                }
                title = self._description.title or self._description.name
                run = self._client.create_run(self.experiment_id, run_name=title, tags=tags)
        self.experiment_id = run.info.experiment_id
        if self._existed:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._describe(run)
        self._adorn(run)
        self.run_id = run.info.run_id
        return messages

    def _adorn(self, run: Any) -> None:
        """Sends what makes the dashboard better and is worth no failure: data set and saved views."""
        log = logging.getLogger(__name__)
        try:
            if self._description.dataset is not None:
                attachments.log_dataset(self._client, run, self._description.dataset)
        except Exception as error:  # a store without data sets
            log.debug("data set not recorded: %s", error)
        try:
            if self._description.clusterings:
                version = saved_views.version_at(self.uri)
                saved_views.ensure(
                    self._client,
                    run.info.experiment_id,
                    version,
                    clusterings=self._description.clusterings,
                    sweep=self._description.sweep,
                )
        except Exception as error:  # no right to change the experiment, another format
            log.debug("saved views not written: %s", error)

    def _find_experiment(self) -> tuple[str, list[str]]:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            # a database alone would put artifacts below the working directory; a server has a place for them
            try:
                location = self._artifacts.as_uri() if is_database(self.uri) else None
                return self._client.create_experiment(self._experiment, artifact_location=location), []
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(self._experiment)  # another process was faster
        if experiment.lifecycle_stage == "active":
            return experiment.experiment_id, []
        self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id, [
            f"the MLflow experiment {self._experiment!r} had been deleted; it is restored, with its runs"
        ]

    def _find_run(self) -> Any:
        from mlflow.exceptions import MlflowException

        if self._description.run_id is not None:
            try:
                run = self._client.get_run(self._description.run_id)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        name = self._description.name
        quote = '"' if "'" in name else "'"
        query = f"tags.`{RUN_TAG}` = {quote}{name}{quote}"
        return next(iter(self._client.search_runs([self.experiment_id], query, max_results=1)), None)

    def _describe(self, run: Any) -> None:
        """Parameters cannot be changed: a value that a restart changed becomes a tag `changed.NAME`."""
        from mlflow.entities import Param, RunTag

        recorded, tags = run.data.params, run.data.tags
        params = as_texts(self._description.params)
        new = [Param(name, value) for name, value in params.items() if name not in recorded]
        changed = [
            RunTag(f"changed.{name}", value)
            for name, value in params.items()
            if name in recorded and value != tags.get(f"changed.{name}", recorded[name])
        ]
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

        assert self.run_id is not None
        rows = [
            RunTag(name, value)
            for name, value in attachments.without_foreign_note(self._client, self.run_id, tags).items()
        ]
        for start in range(0, len(rows), BATCH_NAMES):
            self._client.log_batch(self.run_id, tags=rows[start : start + BATCH_NAMES], synchronous=True)

    def send_text(self, artifact: str, text: str) -> None:
        self._client.log_text(self.run_id, text, artifact)

    def send_file(self, artifact: str, path: str) -> None:
        """Sends a file, under its own name, to the artifact folder of `artifact`. A file that has gone
        meanwhile is left out: it is no reason to send nothing more.
        """
        if Path(path).is_file():
            folder = artifact.rpartition("/")[0]
            self._client.log_artifact(self.run_id, path, folder or None)

    def perform(self, task: dict[str, Any]) -> None:
        assert self.run_id is not None
        assert self.experiment_id is not None
        attachments.perform(self._client, self.uri, self.run_id, self.experiment_id, task, self._warn)

    def set_status(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def forget_unknown(self, error: Exception) -> bool:
        """Whether the run that was there is unknown by now: the server was started with another database."""
        from mlflow.exceptions import MlflowException

        if self.run_id is None or getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
            return False
        try:
            self._client.get_run(self.run_id)
        except MlflowException as missing:
            if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.run_id, self._last_steps = None, {}
            return True
        return False


@contextmanager
def _one_process(uri: str) -> Iterator[None]:
    """Trials of a sweep open a new sqlite file at once: one after the other, or its tables are made twice."""
    if not uri.startswith("sqlite"):
        yield
        return
    address, _, options = uri.partition("?")
    scheme, _, file = address.partition(":///")
    database = Path(file)
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(database.name + ".lock"), WAIT_FOREVER):
        if not database.exists():
            # Whole or not at all: one whose making was cut off by a kill could never be opened again.
            new = f"{file}.new"
            Path(new).unlink(missing_ok=True)
            open_client(f"{scheme}:///{new}{'?' * bool(options)}{options}").search_experiments(max_results=1)
            os.replace(new, database)
        yield
