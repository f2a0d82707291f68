"""`pcl-ray export`: an encoder for other programs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pcl_ray.cli.verb import Verb
from pcl_ray.errors import ConfigError

_TARGETS = ("torchvision", "timm", "safetensors", "onnx", "torch-export", "reference", "mlflow")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="RUN", help="name or folder of a run, a checkpoint, or any weights file"
    )
    parser.add_argument(
        "--to",
        choices=_TARGETS,
        required=True,
        dest="target",
        help=(
            "torchvision: a state dict of its names; timm: a folder as on a model hub; safetensors: our"
            " names, any backbone; onnx and torch-export: graphs for any number of images; reference: a"
            " checkpoint of the authors' code, both encoders and the queue; mlflow: a model that takes"
            " pictures and gives embeddings and prototypes"
        ),
    )
    parser.add_argument(
        "--head",
        action="store_true",
        help="with the projection head: unit vectors in the prototypes' space, not the backbone's features",
    )
    parser.add_argument(
        "--encoder",
        choices=("query", "momentum"),
        help=(
            "query: what one transfers (where it is left out); momentum: what the prototypes are made with,"
            " and what mlflow always takes"
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder, or that of an earlier export; left out: exports/RUN-TARGET under PCL_RAY_HOME",
    )


def _export(arguments: argparse.Namespace) -> int:
    from pcl_ray.runs import storage_mirror
    from pcl_ray.support.paths import home

    source = arguments.source
    storage_mirror.fetch_source(source)
    path = Path(source)
    stem = (path.name.partition(".")[0] if path.expanduser().is_file() else path.name) or "weights"
    folder = arguments.out or home() / "exports" / f"{stem}-{arguments.target}"
    folder = Path(os.path.abspath(folder.expanduser()))
    if arguments.target == "mlflow":
        if arguments.head or arguments.encoder == "query":
            raise ConfigError(
                "a model of mlflow gives backbone, head and prototypes of the momentum encoder; leave out"
                f" {'--head' if arguments.head else '--encoder query'}"
            )
        from pcl_ray.tracking.models.export import export_embedder

        note = export_embedder(source, folder)
    else:
        from pcl_ray.model import weights

        note = weights.export(
            source, arguments.target, folder, head=arguments.head, encoder=arguments.encoder or "query"
        )
    print(f"weights     {note}")
    print(f"export      {folder}")
    return 0


EXPORT = Verb(
    "export", "write an encoder for torchvision, timm, ONNX, MLflow or others", _add_arguments, _export
)
