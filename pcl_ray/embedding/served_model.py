"""The script that MLflow runs when it loads an `embedder`: the model's code, stored as code, so that nothing
has to be unpickled. Not to be imported.

Whatever MLflow and its servers make of a request ─→ a batch of images ─→ Embedder ─→ DataFrame

A server must not read its own files for strangers, nor tell them which there are. So there a text is base64
and never a path; `_paths_allowed`.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image

from pcl_ray.embedding.embedder import Embedder

COLUMN = "image"
PATHS = "PCL_RAY_EMBEDDER_PATHS"
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # set by MLflow's scoring server
_SERVERS = ("mlflow.pyfunc.scoring_server.app", "mlflow.pyfunc.stdin_server", "mlserver")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class EmbedderModel(PythonModel):
    """Images to `embedding`, and `prototype_0`, `distance_0`, … for each clustering."""

    def load_context(self, context: Any) -> None:
        self.embedder = Embedder.load(
            Path(context.artifacts["embedder"]), "cuda" if torch.cuda.is_available() else "cpu"
        )

    # A hint that MLflow neither checks nor warns of: arrays, lists and single images come as they are.
    def predict(  # pyrefly: ignore[bad-override]
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        try:
            result = self.embedder.embed(batch_of(model_input))
        # DataError too. Of other errors a server's clients learn nothing but that there was one
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        columns: dict[str, Any] = {"embedding": result.embeddings.tolist()}
        for m, (prototypes, distances) in enumerate(zip(result.prototypes, result.distances, strict=True)):
            columns |= {f"prototype_{m}": prototypes, f"distance_{m}": distances}
        index = model_input.index if isinstance(model_input, pd.DataFrame | pd.Series) else None
        return pd.DataFrame(columns, index=index)


def batch_of(images: Any) -> Any:
    """Turns into what `Embedder.embed` takes: a DataFrame, a record or a column `image`, an array, a list,
    nested lists of numbers, or one image alone.
    """
    if isinstance(images, pd.DataFrame):
        images = images[_column(list(images.columns))]
    if isinstance(images, Mapping):
        images = images[_column(list(images))]
    if isinstance(images, pd.Series):
        return [_image(item, number) for number, item in enumerate(images.tolist())]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        return _as_bytes(images, "the images") if images.size else []
    if isinstance(images, np.ndarray):
        images = images.tolist()  # of texts, or of arrays of different sizes; 0-d: one
    if isinstance(images, list | tuple) and images and all(isinstance(row, list | tuple) for row in images):
        try:
            return _as_bytes(np.array(images), "the images")
        except ValueError:  # images of different sizes
            pass
    items = images if isinstance(images, list | tuple) else [images]
    return [_image(item, number) for number, item in enumerate(items)]


def _column(names: list[Any]) -> Any:
    if COLUMN in names:
        return COLUMN
    if len(names) == 1:
        return names[0]
    raise ValueError(f"a column {COLUMN!r} is needed, there are: {', '.join(map(str, names))}")


def _image(item: Any, number: int) -> Any:
    """One image as `Embedder.embed` takes it. Raises ValueError, naming it by its number."""
    if isinstance(item, Mapping):  # one record of a list
        item = item[_column(list(item))]
    if isinstance(item, np.ndarray) and item.ndim == 0:
        item = item.item()
    if isinstance(item, str):
        return _of_text(item, number)
    if isinstance(item, list | tuple):
        item = np.array(item)
    if isinstance(item, np.ndarray):
        return _as_bytes(item, f"image {number}")
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Path | Image.Image):
        return item
    raise ValueError(
        f"image {number} is {item!r:.60}; allowed: an array, base64 text or bytes of an encoded image, a"
        " path, a Pillow image"
    )


def _as_bytes(pixels: np.ndarray, called: str) -> np.ndarray:
    """Whole numbers out of JSON as uint8; `called`: what error messages call them."""
    nested = pixels.dtype == object and pixels.size
    if nested and all(isinstance(row, np.ndarray | list | tuple) for row in pixels.flat):
        pixels = np.array(pixels.tolist())  # rows of a table format: arrays of arrays
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "iu":
        raise ValueError(f"{called} must be whole numbers from 0 to 255, not {pixels.dtype}")
    if pixels.size and (pixels.min() < 0 or pixels.max() > 255):
        raise ValueError(
            f"{called} must be whole numbers from 0 to 255; they go from {pixels.min()} to {pixels.max()}"
        )
    return pixels.astype(np.uint8)


def _of_text(text: str, number: int) -> bytes | Path:
    """The bytes or path in a text: base64 of an encoded image, `data:image/…;base64,…`, a path if allowed."""
    is_data = text.startswith("data:")
    try:
        encoded = text.partition(",")[2] if is_data else text
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not _paths_allowed():
        if not content:
            raise ValueError(
                f"image {number} is no base64 of an encoded image; a server reads no files unless it is"
                f" started with {PATHS}=1"
            )
        return content
    return content if content and (is_data or content.startswith(_MAGIC)) else Path(text)


def _paths_allowed() -> bool:
    """Whether a text may be a path: a server needs to be started so, elsewhere it must not be forbidden."""
    setting = os.environ.get(PATHS)
    if setting is not None:
        return setting.strip().lower() in ("1", "true", "yes")
    return os.environ.get(_SERVING, "").lower() not in ("1", "true") and not any(
        name in sys.modules for name in _SERVERS
    )


set_model(EmbedderModel())
