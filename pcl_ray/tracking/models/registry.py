"""Versions of a registered model: one for each run and step, and the alias of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pcl_ray.config.figures import HEAD_KNN_TOP1, KNN_TOP1
from pcl_ray.tracking.address import is_server
from pcl_ray.tracking.models.request import STEP_TAG, ModelRequest

BEST = "best"
HEAD_TAG = "pcl_ray.head_knn_top1"  # earlier versions have none: their eval/knn_top1 is that of the head
OBJECTIVE_TAG, VALUE_TAG, ENCODER_TAG = "pcl_ray.objective", "pcl_ray.objective_value", "pcl_ray.encoder"
# what registries answer where there is no such alias
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def register(
    client: Any, name: str, request: ModelRequest, embedder: str, encoder: str | None
) -> tuple[str, str]:
    """The version of a registered model that this embedder is, made where there is none, and what was done.

    embedder, encoder: ids of logged models. Raises MlflowException.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}' AND run_id = '{request.run_id}'"):
        if embedder in (version.source or ""):
            return str(version.version), f"version {version.version} of {name} was registered before"
    value = request.metrics.get(request.objective)
    if value is not None and not math.isfinite(value):
        value = None
    tags = {STEP_TAG: str(request.step)}
    if encoder:
        tags[ENCODER_TAG] = f"models:/{encoder}"
    if value is not None:
        tags |= {OBJECTIVE_TAG: request.objective, VALUE_TAG: repr(float(value))}
    head = request.metrics.get(HEAD_KNN_TOP1.name)
    if head is not None and math.isfinite(head):
        tags[HEAD_TAG] = repr(float(head))
    # a database asks MLflow's global tracking URI, not the client's, about models:/ URIs; a server its own
    if is_server(client.tracking_uri):
        source = f"models:/{embedder}"
    else:
        source = client.get_logged_model(embedder).artifact_location
    created = client.create_model_version(name, source, request.run_id, tags, model_id=embedder)
    rank = _move_best(client, name, created.version, tags)
    return str(created.version), f"registered as version {created.version} of {name}, {rank}"


def _move_best(client: Any, name: str, version: str, tags: Mapping[str, str]) -> str:
    """Gives the alias `best` to a new version with these tags that beats its holder; says how the two
    compare. With a holder that an earlier version registered, the kNN accuracy of the head is compared.
    """
    from mlflow.exceptions import MlflowException

    try:
        holder = client.get_model_version_by_alias(name, BEST)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        holder = None
    if holder is not None:
        best_value, best_objective = holder.tags.get(VALUE_TAG), holder.tags.get(OBJECTIVE_TAG)
        objective, value = tags.get(OBJECTIVE_TAG), tags.get(VALUE_TAG)
        if objective == best_objective == KNN_TOP1.name and HEAD_TAG in tags and HEAD_TAG not in holder.tags:
            objective = best_objective = HEAD_KNN_TOP1.name
            value = tags[HEAD_TAG]
        if value is None or (best_value is not None and best_objective != objective):
            return f"which cannot be compared with the best, version {holder.version}"
        if best_value is not None and float(value) <= float(best_value):
            return (
                f"which is no better than the best, version {holder.version} ({objective} {float(value):.4g}"
                f" against {float(best_value):.4g})"
            )
    client.set_registered_model_alias(name, BEST, version)
    return "the best so far"
