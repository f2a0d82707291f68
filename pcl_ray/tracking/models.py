"""Models in MLflow: what a run has learned, to be loaded, served and compared by its figures. Beside
`tracking` only this and `model_folders` know MLflow.

checkpoint ─→ Embedder ─┬→ encoder: the momentum encoder as an exported graph (pt2): normalised views
                        │  → unit vectors
                        └→ embedder: pyfunc from code (served_model.py + this package + safetensors):
                           pictures → embeddings, prototypes ─→ registry

Neither holds a pickle, so both load with MLflow's defaults. Everything goes through a client of its own with
explicit ids: MLflow's active run, experiment and tracking URI stay as they are, and other threads may log
meanwhile.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pcl_ray.config import RunConfig
from pcl_ray.config.figures import KNN_TOP1
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.tracking import model_folders
from pcl_ray.tracking.client import clean_name, open_client
from pcl_ray.tracking.model_folders import NotExported

ENCODER, EMBEDDER = "encoder", "embedder"
BEST = "best"
STEP_TAG, OBJECTIVE_TAG, VALUE_TAG, ENCODER_TAG = (
    "pcl_ray.step",
    "pcl_ray.objective",
    "pcl_ray.objective_value",
    "pcl_ray.encoder",
)
_BATCH_METRICS = 500
# what registries answer where there is no such alias
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Logged:
    """Where the models are: URIs that `mlflow.pyfunc.load_model` takes. `said`: what was done, in a
    sentence.
    """

    said: str
    embedder: str
    encoder: str | None  # None: its graph could not be exported
    version: str | None = None  # in the registry


def log(
    uri: str,
    run_id: str,
    experiment_id: str,
    checkpoint: Path,
    config: RunConfig,
    *,
    metrics: Mapping[str, float],
    step: int,
    register: str | None = None,
    objective: str = KNN_TOP1.name,
    warn: Callable[[str], None],
) -> Logged:
    """Records the models of a checkpoint with the run, once for each step: a second call finds them.

    metrics: the run's figures of this step, which become the models' too; points that the run has already are
    not doubled, so send those first. register: also make the embedder a version of this registered model. The
    alias `best` goes to it where its `objective` (more is better) beats that of its holder; `latest` is
    always the newest version (MLflow's own alias).

    Raises RunFailed for a checkpoint that cannot be read, MlflowException for a server that does not answer.
    Takes seconds; meant for a thread.
    """
    target = _Target(open_client(uri), run_id, experiment_id, step, metrics)
    known = target.known()
    if done := EMBEDDER in known:
        embedder, encoder = known[EMBEDDER], known.get(ENCODER)
    else:
        served = Embedder.of_checkpoint(
            checkpoint, config.augment, reduced_decoding=config.data.reduced_decoding
        )
        params = _params(served, config)
        encoder = known.get(ENCODER) or _log_encoder(target, served, params, warn)
        embedder = target.upload(EMBEDDER, lambda folder: model_folders.save_embedder(served, folder), params)
    said = f"models of step {step} {'were logged before' if done else 'logged'}"
    version = None
    if register is not None:
        version, more = _register(
            target.client, register, embedder, encoder, run_id, step, objective, metrics
        )
        said += f"; {more}"
    return Logged(said, f"models:/{embedder}", encoder and f"models:/{encoder}", version)


class _Target:
    """The run and step that the models belong to."""

    def __init__(self, client: Any, run_id: str, experiment_id: str, step: int, metrics: Mapping[str, float]):
        self.client, self.run_id, self.experiment_id, self.step = client, run_id, experiment_id, step
        self._metrics = {
            clean_name(name): float(value) for name, value in metrics.items() if math.isfinite(value)
        }

    def known(self) -> dict[str, str]:
        """Name and id of the models that are there; what an upload that broke off has left is removed."""
        found: dict[str, str] = {}
        asked = f"source_run_id = '{self.run_id}' AND tags.`{STEP_TAG}` = '{self.step}'"
        for model in self.client.search_logged_models([self.experiment_id], asked):
            if model.status == "READY":
                found[model.name] = model.model_id
            else:
                self.client.delete_logged_model(model.model_id)
        return found

    def upload(self, name: str, save: Callable[[Path], None], params: dict[str, str]) -> str:
        """Writes a model on this disk, then sends it; gives its id."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        with tempfile.TemporaryDirectory(prefix="pcl_ray_model_") as folder:
            path = Path(folder, "model")
            save(path)
            described = Model.load(str(path))
            model = self.client.create_logged_model(
                self.experiment_id, name, self.run_id, {STEP_TAG: str(self.step)}, params
            )
            described.model_id = described.model_uuid = model.model_id
            described.run_id, described.artifact_path = self.run_id, model.artifact_location
            described.save(str(path / "MLmodel"))
            self.client.log_model_artifacts(model.model_id, str(path))
            self._link_metrics(model.model_id)
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, self.step)])
            # last: a model that is not ready is made again
            self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def _link_metrics(self, model_id: str) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, moment, self.step, model_id=model_id, run_id=self.run_id)
            for name, value, moment in self._points
        ]
        for start in range(0, len(points), _BATCH_METRICS):
            self.client.log_batch(
                self.run_id, metrics=points[start : start + _BATCH_METRICS], synchronous=True
            )

    @cached_property
    def _points(self) -> list[tuple[str, float, int]]:
        """Name, value and time, those of the run's own point where there is one: it is the same point then,
        not a second one in its charts.
        """
        now, recorded = int(time.time() * 1000), self.client.get_run(self.run_id).data.metrics
        points = []
        for name, value in self._metrics.items():
            history = self.client.get_metric_history(self.run_id, name) if name in recorded else []
            there = [point for point in history if point.step == self.step]
            points.append((name, there[-1].value, there[-1].timestamp) if there else (name, value, now))
        return points


def _log_encoder(
    target: _Target, served: Embedder, params: dict[str, str], warn: Callable[[str], None]
) -> str | None:
    try:
        return target.upload(ENCODER, lambda folder: model_folders.export_apart(served, folder), params)
    except NotExported as reason:
        warn(
            f"{served.settings['encoder']['backbone']} cannot be exported as a graph ({reason}); the embedder"
            " is logged alone"
        )
        return None


def _params(served: Embedder, config: RunConfig) -> dict[str, str]:
    """The few that tell models apart; all others are the run's."""
    clusters = [len(c.prototypes) for c in served.clusterings] or list(config.e_step.num_clusters)
    encoder = served.settings["encoder"]
    values = {
        "encoder.backbone": encoder["backbone"],
        "encoder.dim": encoder["dim"],
        "loss.temperature": config.loss.temperature,
    }
    return {name: str(value) for name, value in values.items()} | {
        "e_step.num_clusters": ",".join(map(str, clusters))
    }


def _register(
    client: Any,
    name: str,
    embedder: str,
    encoder: str | None,
    run_id: str,
    step: int,
    objective: str,
    metrics: Mapping[str, float],
) -> tuple[str, str]:
    """The version of this model, made where there is none, and what was done."""
    from mlflow.exceptions import MlflowException

    value = metrics.get(objective)
    value = value if value is not None and math.isfinite(value) else None
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [
        version
        for version in client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
        if embedder in (version.source or "")
    ]
    if found:
        return str(found[0].version), f"version {found[0].version} of {name} was registered before"
    tags = {STEP_TAG: str(step)} | ({ENCODER_TAG: f"models:/{encoder}"} if encoder else {})
    tags |= {} if value is None else {OBJECTIVE_TAG: objective, VALUE_TAG: repr(float(value))}
    # a database asks MLflow's global tracking URI, not the client's, what a models:/ URI means; a server its
    # own
    source = (
        f"models:/{embedder}"
        if client.tracking_uri.startswith(("http://", "https://"))
        else client.get_logged_model(embedder).artifact_location
    )
    version = client.create_model_version(name, source, run_id, tags, model_id=embedder).version
    return (
        str(version),
        f"registered as version {version} of {name}, {_move_best(client, name, version, objective, value)}",
    )


def _move_best(client: Any, name: str, version: str, objective: str, value: float | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        holder = client.get_model_version_by_alias(name, BEST)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        holder = None
    if holder is not None:
        theirs = holder.tags.get(VALUE_TAG)
        if value is None or (theirs is not None and holder.tags.get(OBJECTIVE_TAG) != objective):
            return f"which cannot be compared with the best, version {holder.version}"
        if theirs is not None and value <= float(theirs):
            return (
                f"which is no better than the best, version {holder.version} ({objective} {value:.4g} against"
                f" {float(theirs):.4g})"
            )
    client.set_registered_model_alias(name, BEST, version)
    return "the best so far"
