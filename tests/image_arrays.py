"""Arrays of small images whose first pixel is their number, and MNIST's files of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import Images


def pixels(n: int, side: int = 4) -> np.ndarray:
    """[n, side, side] uint8; the first pixel is the image's number."""
    values = np.random.default_rng(n).integers(0, 256, (n, side, side), dtype=np.uint8)
    values[:, 0, 0] = np.arange(n)
    return values


def numbers(images: Images) -> list[int]:
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


def idx(values: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([values.ndim])
        + b"".join(size.to_bytes(4, "big") for size in values.shape)
        + values.astype(np.uint8).tobytes()
    )


def idx_folder(folder: Path, *, zipped: bool = False, **parts: np.ndarray | bytes) -> Path:
    """train_images=…, t10k_labels=…: arrays, or the file's bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in parts.items():
        raw = content if isinstance(content, bytes) else idx(content)
        file = folder / (
            name.replace("_", "-")
            + ("-idx3-ubyte" if "images" in name else "-idx1-ubyte")
            + (".gz" if zipped else "")
        )
        file.write_bytes(gzip.compress(raw) if zipped and not isinstance(content, bytes) else raw)
    return folder


def load(source: str, path: Path | None = None, **knobs: object) -> DataSplits:
    config = DataConfig(source=source, path=path and str(path), **knobs)
    return datasets.load(config, cache_dir=path.parent / "cache" if path else Path("unused"))
