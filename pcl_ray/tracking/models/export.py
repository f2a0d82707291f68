"""The embedder of any weights as a folder that MLflow loads, for `pcl-ray export --to mlflow`."""

from __future__ import annotations

import logging
from pathlib import Path

from pcl_ray.embedding.embedder import Embedder
from pcl_ray.model.weights import check_folder, describe_export, read_weights, whole_folder
from pcl_ray.tracking import client
from pcl_ray.tracking.models import folders


def export_embedder(source: str, folder: Path) -> str:
    """Writes the momentum encoder of a source, with its head and prototypes where it has them, to a new
    folder, or over an earlier export; whole or not at all. Returns what the weights were recognised as.

    Raises as `model.weights.export` does.
    """
    check_folder(folder)
    client.set_defaults()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    embedder, weights = Embedder.open(source), read_weights(source, encoder="momentum")
    with whole_folder(folder) as partial:
        folders.save_embedder(embedder, partial)
        describe_export(partial, weights, source, "mlflow", "momentum", head=weights.has_head)
    return weights.note
