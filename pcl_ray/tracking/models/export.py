"""The embedder of any weights as a folder that MLflow loads, for `pcl-ray export --to mlflow`."""

from __future__ import annotations

import shutil
from pathlib import Path

from pcl_ray.embedding.embedder import Embedder
from pcl_ray.errors import ConfigError
from pcl_ray.model.weights import check_folder, describe_export, read_weights
from pcl_ray.tracking.models import folders


def export_embedder(source: str, folder: Path) -> str:
    """Writes the momentum encoder of a source, with its head and prototypes where it has them, to a new
    folder, or over an earlier export; whole or not at all. Returns what the weights were recognised as.

    Raises as `model.weights.export` does.
    """
    check_folder(folder)
    embedder, weights = Embedder.open(source), read_weights(source, encoder="momentum")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folders.save_embedder(embedder, partial)
        describe_export(partial, weights, source, "mlflow", "momentum", head=weights.has_head)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); give another --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return weights.note
