"""The models of a checkpoint, written on this disk and sent to the run that they belong to."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from pcl_ray.config import RunConfig
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.support.text import value_text
from pcl_ray.tracking.client import clean_name, open_client
from pcl_ray.tracking.models import folders, registry
from pcl_ray.tracking.models.folders import NotExported
from pcl_ray.tracking.models.request import STEP_TAG, LoggedModels, ModelRequest

ENCODER, EMBEDDER = "encoder", "embedder"
_METRICS_A_REQUEST = 500


def log(uri: str, request: ModelRequest, warn: Callable[[str], None]) -> LoggedModels:
    """Records the models of a checkpoint with the run, once for each step: a second call finds them.

    Points that the run has already are not doubled, so send those first. A registered embedder gets the alias
    `best` where its objective beats that of the alias's holder; `latest` is always the newest version
    (MLflow's own alias).

    Raises RunFailed for a checkpoint that cannot be read, MlflowException for a server that does not answer.
    Takes seconds; meant for a thread.
    """
    models = _ModelsOfStep(open_client(uri), request)
    logged = models.logged()
    logged_before = EMBEDDER in logged
    if not logged_before:
        options = DecodingOptions.of(request.config.data)
        served = Embedder.of_checkpoint(request.checkpoint, request.config.augment, options)
        params = _params(served, request.config)
        if ENCODER not in logged and (encoder_id := _upload_encoder(models, served, params, warn)):
            logged[ENCODER] = encoder_id
        logged[EMBEDDER] = models.upload(
            EMBEDDER, lambda folder: folders.save_embedder(served, folder), params
        )
    embedder, encoder = logged[EMBEDDER], logged.get(ENCODER)
    summary = f"models of step {request.step} {'were logged before' if logged_before else 'logged'}"
    version = None
    if request.register_as is not None:
        version, registered = registry.register(
            models.client, request.register_as, request, embedder, encoder
        )
        summary += f"; {registered}"
    return LoggedModels(summary, f"models:/{embedder}", encoder and f"models:/{encoder}", version)


class _ModelsOfStep:
    """The models of one step of a run on the server."""

    def __init__(self, client: Any, request: ModelRequest):
        self.client, self._request = client, request
        self._run_id, self._step = request.run_id, request.step

    def logged(self) -> dict[str, str]:
        """Name and id of the models that are there; what an upload that broke off has left is removed."""
        ids: dict[str, str] = {}
        query = f"source_run_id = '{self._run_id}' AND tags.`{STEP_TAG}` = '{self._step}'"
        for model in self.client.search_logged_models([self._request.experiment_id], query):
            if model.status == "READY":
                ids[model.name] = model.model_id
            else:
                self.client.delete_logged_model(model.model_id)
        return ids

    def upload(self, name: str, save: Callable[[Path], None], params: dict[str, str]) -> str:
        """Writes a model on this disk, then sends it; gives its id."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        tags = {STEP_TAG: str(self._step)}
        with tempfile.TemporaryDirectory(prefix="pcl_ray_model_") as folder:
            path = Path(folder, "model")
            save(path)
            description = Model.load(str(path))
            model = self.client.create_logged_model(
                self._request.experiment_id, name, self._run_id, tags, params
            )
            description.model_id = description.model_uuid = model.model_id
            description.run_id, description.artifact_path = self._run_id, model.artifact_location
            description.save(str(path / "MLmodel"))
            self.client.log_model_artifacts(model.model_id, str(path))
            self._link_metrics(model.model_id)
            self.client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, self._step)])
            # last: a model that is not ready is made again
            self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def _link_metrics(self, model_id: str) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, moment, self._step, model_id=model_id, run_id=self._run_id)
            for name, value, moment in self._points
        ]
        for start in range(0, len(points), _METRICS_A_REQUEST):
            batch = points[start : start + _METRICS_A_REQUEST]
            self.client.log_batch(self._run_id, metrics=batch, synchronous=True)

    @cached_property
    def _points(self) -> list[tuple[str, float, int]]:
        """Name, value and time: those of the run's own point if there is one, lest it be charted twice."""
        now = int(time.time() * 1000)
        recorded = self.client.get_run(self._run_id).data.metrics
        points = []
        for name, value in self._request.metrics.items():
            if not math.isfinite(value):
                continue
            key, value, moment = clean_name(name), float(value), now
            if key in recorded:
                for point in self.client.get_metric_history(self._run_id, key):
                    if point.step == self._step:
                        value, moment = point.value, point.timestamp
            points.append((key, value, moment))
        return points


def _upload_encoder(
    models: _ModelsOfStep, served: Embedder, params: dict[str, str], warn: Callable[[str], None]
) -> str | None:
    """The id of the logged encoder; None where its graph cannot be exported."""
    try:
        return models.upload(ENCODER, lambda folder: folders.export_apart(served, folder), params)
    except NotExported as reason:
        warn(
            f"{served.settings['encoder']['backbone']} cannot be exported as a graph ({reason}); the embedder"
            " is logged alone"
        )
        return None


def _params(served: Embedder, config: RunConfig) -> dict[str, str]:
    """The few that tell models apart; all others are the run's."""
    clusters = [len(c.prototypes) for c in served.clusterings] or config.e_step.num_clusters
    encoder = served.settings["encoder"]
    values = {
        "encoder.backbone": encoder["backbone"],
        "encoder.dim": encoder["dim"],
        "loss.temperature": config.loss.temperature,
    }
    return {name: str(value) for name, value in values.items()} | {
        "e_step.num_clusters": value_text(clusters, digits=None)
    }
