"""The same pictures as a folder, as tar shards and as Parquet files, for tests of several rooms."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

CLASSES = ("cat", "dog", "eel")


def encoded(number: int, side: int = 12, kind: str = "PNG") -> bytes:
    """A picture that tells which it is by its pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    pixels[0, 0] = number % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def class_of(number: int) -> int:
    return number % len(CLASSES)


def order(count: int) -> list[int]:
    """The numbers of pictures in the order that their class folders have."""
    return sorted(range(count), key=lambda number: (class_of(number), f"{number:04}"))


def write_folder(root: Path, numbers: Sequence[int]) -> Path:
    for number in numbers:
        path = root / CLASSES[class_of(number)] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return root


def write_tar(path: Path, samples: Sequence[dict[str, bytes]], keys: Sequence[str] | None = None) -> Path:
    """A tar file of samples: the content of each member by its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w"
    with tarfile.open(path, mode) as tar:
        for number, sample in enumerate(samples):
            key = keys[number] if keys is not None else f"{number:04}"
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: Sequence[int]) -> list[dict[str, bytes]]:
    """Samples with the class as a text in .cls."""
    return [{"png": encoded(number), "cls": CLASSES[class_of(number)].encode()} for number in numbers]


def hugging_face_schema(names: Sequence[str] = CLASSES) -> pyarrow.Schema:
    """image: a struct {bytes, path}; label: a ClassLabel; as `datasets` writes them."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write_parquet(path: Path, numbers: Sequence[int], *, row_group: int = 7, **columns: Any) -> Path:
    """As Hugging Face's data sets are stored. columns: lists of values, instead of these two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if columns:
        table = pyarrow.table(columns)
    else:
        images = [{"bytes": encoded(number), "path": f"{number:04}.png"} for number in numbers]
        labels = [class_of(number) for number in numbers]
        table = pyarrow.table({"image": images, "label": labels}, hugging_face_schema())
    parquet.write_table(table, path, row_group_size=row_group)
    return path
