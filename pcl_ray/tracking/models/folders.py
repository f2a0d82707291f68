"""The two models of a run as folders in MLflow's form, before sending. As a program, exports an encoder."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import pcl_ray
from pcl_ray.embedding.embedder import Embedder

_EMBEDDER_NEEDS = (
    "mlflow",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
)
_ENCODER_NEEDS = ("mlflow", "torch", "numpy")
_EXPORT_TIMEOUT_S = 900


class NotExported(Exception):
    """The graph of an encoder could not be exported; says why in one line."""


def export_apart(served: Embedder, folder: Path) -> None:
    """`save_encoder` in a process of its own: while torch exports, other threads compute differently, and a
    training would not be repeatable any more.

    Raises NotExported.
    """
    package = Path(pcl_ray.__file__).parent
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="pcl_ray_export_") as stage:
        served.save(Path(stage))
        command = [sys.executable, "-m", "pcl_ray.tracking.models.folders", stage, str(folder)]
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        try:
            ended = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_EXPORT_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotExported(f"not done after {_EXPORT_TIMEOUT_S} s") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line and not line[0].isspace()]
        raise NotExported(
            lines[-1].removeprefix("NotExported: ") if lines else f"its process ended with {ended.returncode}"
        )


def save_encoder(served: Embedder, folder: Path) -> None:
    """The momentum encoder as a graph: normalised float32 views [n, channels, S, S] to unit vectors [n, C],
    for any n. Raises what torch.export raises.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, dim = served.augment.image_size, served.settings["encoder"]["dim"]
    number, shape = np.dtype(np.float32), (served.channels, size, size)
    mlflow.pytorch.save_model(
        served.encoder,
        str(folder),
        # names would make dictionaries of them
        signature=ModelSignature(
            Schema([TensorSpec(number, (-1, *shape))]), Schema([TensorSpec(number, (-1, dim))])
        ),
        input_example=np.zeros((2, *shape), np.float32),  # 2: a batch of one would be exported as always one
        pip_requirements=_requirements(_ENCODER_NEEDS, served),
        metadata=_description(served),
        serialization_format="pt2",
    )


def save_embedder(served: Embedder, folder: Path) -> None:
    """The embedder with its code, this whole package: so it loads where pcl_ray is not installed."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    package = Path(pcl_ray.__file__).parent
    outputs: list[ColSpec | TensorSpec] = [ColSpec(Array(DataType.double), "embedding")]
    for m in range(len(served.clusterings)):
        outputs += [ColSpec(DataType.long, f"prototype_{m}"), ColSpec(DataType.float, f"distance_{m}")]
    with tempfile.TemporaryDirectory(prefix="pcl_ray_embedder_") as stage:
        served.save(Path(stage, "embedder"))
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(package / "embedding" / "served_model.py"),
            artifacts={"embedder": str(Path(stage, "embedder"))},
            # not only the modules needed: a part of a package would hide an installed one
            code_paths=[str(package)],
            # of the input none: no schema of MLflow's takes arrays, files and bytes alike
            signature=ModelSignature(outputs=Schema(outputs)),
            input_example=pd.DataFrame({"image": [_grey_picture(served)]}),
            pip_requirements=_requirements(_EMBEDDER_NEEDS, served),
            metadata=_description(served),
            uv_project_path=stage,  # else MLflow takes what lies in the working directory
        )


def _grey_picture(served: Embedder) -> str:
    """Base64 of a PNG file."""
    from PIL import Image

    file = BytesIO()
    Image.new("L", (served.augment.image_size,) * 2, 128).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _requirements(names: tuple[str, ...], served: Embedder) -> list[str]:
    """The versions installed here, without the build (+cpu, +cu130), which no public index has."""
    if served.settings["encoder"]["backbone"].startswith("timm:") and names is _EMBEDDER_NEEDS:
        names = (*names, "timm")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _description(served: Embedder) -> dict[str, Any]:
    """What the MLmodel file says of the model."""
    clusterings = [
        {
            "num_clusters": len(c.prototypes),
            "with_images": int(c.valid.sum()),
            "mean_concentration": float(c.concentration.mean()),
        }
        for c in served.clusterings
    ]
    return {
        "pcl_ray": {
            "version": pcl_ray.__version__,
            "epochs": served.settings.get("epoch"),  # none of weights of others
            **served.settings["view"],
            "clusterings": clusterings,
        }
    }


def main(stage: str, folder: str) -> None:
    """Exports the encoder of the embedder in `stage` to `folder`; exits with 1 and a reason if it cannot."""
    try:
        save_encoder(Embedder.load(Path(stage)), Path(folder))
    # torch.export has many kinds of its own, and backbones fail it in as many ways
    except Exception as error:
        print(
            f"NotExported: {(str(error).strip().splitlines() or [type(error).__name__])[0]}", file=sys.stderr
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
