"""Data sets that are arrays: scikit-learn's digits, MNIST's files, what torchvision lays out, .npy and .npz.

Of each source: how many images, without reading much, and the images themselves.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from pcl_ray.config import DataConfig
from pcl_ray.data.images import NO_LABEL, ArrayImages, to_channels
from pcl_ray.errors import DataError
from pcl_ray.support.storage_address import without_secrets
from pcl_ray.support.text import gigabytes

_TORCHVISION_SIZES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "stl10": (5_000, 8_000)}
_STL10_UNLABELLED = 100_000
_PIECE, _LOOK = 1 << 20, 1 << 28  # bytes: read at a time; after which the free memory is looked at


def sizes(config: DataConfig) -> tuple[int, int]:
    """The numbers of images in the source's own training and test part (0: it has none).

    Raises DataError where the data are missing.
    """
    match config.source:
        case "digits":
            return len(_digits_table()), 0
        case "idx":
            return _idx_sizes(folder(config))
        case "arrays":
            arrays = _open_arrays(config)
            return len(arrays["images"]), len(arrays.get("test_images", ()))
        case _:
            folder(config)
            train, test = _TORCHVISION_SIZES[config.source]
            if config.source == "stl10" and config.unlabelled:
                train += _STL10_UNLABELLED
            return train, test


def load(config: DataConfig) -> tuple[ArrayImages, ArrayImages | None]:
    """The source's own training and test part. Raises DataError."""
    match config.source:
        case "digits":
            return _digits(config.channels), None
        case "idx":
            return _idx(folder(config), config.channels)
        case "arrays":
            return _arrays(config)
        case _:
            return _torchvision(config)


def folder(config: DataConfig) -> Path:
    """The folder of `data.path`. Raises DataError where there is none."""
    if not config.path:
        raise DataError(f"data.source = {config.source} needs data.path: the folder with the images")
    if "://" in config.path:
        raise DataError(
            f"data.path = {without_secrets(config.path)!r}: data.source = {config.source} reads a folder of"
            " this machine; from object storage parquet and webdataset are read"
        )
    path = Path(config.path).expanduser()
    if not path.is_dir():
        reason = "" if path.exists() else " (it does not exist)"
        raise DataError(f"data.path = {config.path!r} is not a folder{reason}")
    return path.absolute()


# --- scikit-learn's digits


def _digits_table() -> np.ndarray:
    """The table [1797, 65]: 64 pixels in 0..16 and the digit. Read from scikit-learn's file without importing
    scikit-learn, which takes over a second.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            "data.source = digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


def _digits(channels: int) -> ArrayImages:
    table = _digits_table()
    pixels = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return ArrayImages(to_channels(pixels, channels), table[:, 64].astype(np.int64), tuple("0123456789"))


# --- idx (MNIST, Fashion-MNIST)


def _idx(root: Path, channels: int) -> tuple[ArrayImages, ArrayImages | None]:
    train = _idx_part(root, "train", channels)
    assert train is not None
    return train, _idx_part(root, "t10k", channels)


def _idx_part(root: Path, prefix: str, channels: int) -> ArrayImages | None:
    path = _idx_file(root, f"{prefix}-images", required=prefix == "train")
    if path is None:
        return None
    pixels = _read_idx(path, _idx_shape(path, images=True))
    labels_path = _idx_file(root, f"{prefix}-labels", required=False)
    labels = None if labels_path is None else _read_idx(labels_path, _idx_shape(labels_path)).astype(np.int64)
    _same_length(labels, len(pixels), str(labels_path))
    if labels is None:
        return ArrayImages(to_channels(pixels, channels))
    class_names = tuple(map(str, range(labels.max(initial=-1) + 1)))
    return ArrayImages(to_channels(pixels, channels), labels, class_names)


def _idx_file(root: Path, start: str, *, required: bool) -> Path | None:
    files = sorted(
        path
        for path in root.iterdir()
        if path.name.startswith(start) and "idx" in path.name and path.is_file()
    )
    if not files and required:
        raise DataError(
            f"no file {start}-idx3-ubyte(.gz) in {root}; data.source = idx reads MNIST's file names"
        )
    return files[0] if files else None


def _idx_shape(path: Path, *, images: bool = False) -> tuple[int, ...]:
    """The idx header: two zero bytes, type 8 (unsigned byte), number of dimensions, big-endian sizes."""
    header = _idx_bytes(path, 4)
    if len(header) < 4 or header[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    header = _idx_bytes(path, 4 + 4 * header[3])[4:]
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4))
    if images and (len(shape) != 3 or not all(shape)):
        raise DataError(f"{path} holds an array of shape {shape}; images [N, H, W] are needed")
    if not images and len(shape) != 1:
        raise DataError(f"{path} holds an array of shape {shape}; labels [N] are needed")
    return shape


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    start, size = 4 + 4 * len(shape), math.prod(shape)
    values = np.frombuffer(_idx_bytes(path, start + size + 1), dtype=np.uint8)[start:]
    if len(values) != size:
        count = f"{len(values)} values" if len(values) < size else "more values"
        raise DataError(f"{path} holds {count} where its header announces {size}: it is cut short or damaged")
    return values.reshape(shape)


def _idx_bytes(path: Path, count: int) -> bytearray:
    """The first `count` bytes of a file that is gzipped or not, or all where it has fewer."""
    content = bytearray()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # in pieces: `count` is what a header says, and memory would be taken for all of it
            while len(content) < count and (piece := file.read(min(_PIECE, count - len(content)))):
                content += piece
                if not len(content) % _LOOK:
                    _check_memory(path, _LOOK)  # a small .gz may unpack to anything
            return content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _idx_sizes(root: Path) -> tuple[int, int]:
    train = _idx_file(root, "train-images", required=True)
    test = _idx_file(root, "t10k-images", required=False)
    assert train is not None
    return _idx_shape(train, images=True)[0], _idx_shape(test, images=True)[0] if test else 0


# --- CIFAR, STL-10


def _torchvision(config: DataConfig) -> tuple[ArrayImages, ArrayImages]:
    root = str(folder(config))
    from torchvision import datasets  # takes seconds, so only where it is needed

    try:
        if config.source == "stl10":
            train = datasets.STL10(root, split="train+unlabeled" if config.unlabelled else "train")
            test = datasets.STL10(root, split="test")
            parts = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
        else:
            kind = datasets.CIFAR10 if config.source == "cifar10" else datasets.CIFAR100
            train, test = kind(root, train=True), kind(root, train=False)
            parts = [(part.data, part.targets) for part in (train, test)]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"data.path = {config.path!r} does not hold {config.source} as torchvision lays it out:"
            f" {str(error).splitlines()[0]}"
        ) from None
    first, second = (
        ArrayImages(
            to_channels(np.asarray(pixels), config.channels),
            np.asarray(labels, dtype=np.int64),
            tuple(getattr(train, "classes", ())),
        )
        for pixels, labels in parts
    )
    return first, second


# --- .npy and .npz


def _arrays(config: DataConfig) -> tuple[ArrayImages, ArrayImages | None]:
    arrays = _open_arrays(config)
    names, numbers = _class_numbers([arrays[key] for key in ("labels", "test_labels") if key in arrays])
    train = ArrayImages(to_channels(np.asarray(arrays["images"]), config.channels))
    if "labels" in arrays:
        train = replace(train, labels=numbers.pop(0), class_names=names)
    if "test_images" not in arrays:
        return train, None
    test = ArrayImages(to_channels(np.asarray(arrays["test_images"]), config.channels))
    if "test_labels" in arrays:
        test = replace(test, labels=numbers.pop(0), class_names=names)
    return train, test


def _open_arrays(config: DataConfig) -> dict[str, np.ndarray]:
    """The arrays images, labels, test_images, test_labels, if present; shapes checked, .npy not read yet."""
    if not config.path:
        raise DataError("data.source = arrays needs data.path: a .npy or .npz file")
    path = Path(config.path).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"data.path = {config.path!r} is not a file")
    arrays = _read_arrays(path)
    beside = path.with_name(f"{path.stem}_labels.npy")
    if path.suffix == ".npy" and beside.is_file():
        arrays["labels"] = _read_arrays(beside)["images"]
    for part in ("images", "test_images"):
        if part in arrays:
            _check_pixels(arrays[part], f"{part} in {path}")
            labels = "labels" if part == "images" else "test_labels"
            _same_length(arrays.get(labels), len(arrays[part]), f"{labels} in {path}")
    return arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, or that of an .npy as `images`, unread. The content tells the kind."""
    aliases = {
        "x": "images",
        "y": "labels",
        "x_test": "test_images",
        "y_test": "test_labels",
        "x_train": "images",
        "y_train": "labels",
    }
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"images": content}
        with content:
            _check_memory(path, sum(member.file_size for member in content.zip.infolist()))
            members = {aliases.get(name, name): content[name] for name in content.files}
    except DataError:
        raise
    except Exception as error:  # numpy's readers raise many kinds for damaged headers
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} cannot be read: it holds Python objects, which may be code; save plain arrays, texts"
                " as labels.astype(str)"
            ) from None
        raise DataError(
            f"{path} cannot be read as {path.suffix or 'an array file'}:"
            f" {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    arrays = {name: array for name, array in members.items() if isinstance(array, np.ndarray)}
    if "images" not in arrays:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; 'images' is needed, 'labels',"
            " 'test_images' and 'test_labels' are optional"
        )
    return arrays


def _check_memory(path: Path, size: int) -> None:
    """Raises DataError where so many bytes more do not fit: a small file may unpack to a very large one."""
    if size > (free := psutil.virtual_memory().available):
        raise DataError(
            f"{path} takes {gigabytes(size)} and more, and this machine has {gigabytes(free)} of free memory;"
            " save images as .npy, which is read from the disk"
        )


def _check_pixels(pixels: np.ndarray, what: str) -> None:
    fits = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] in (1, 3))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise DataError(
            f"{what} is {pixels.dtype} of shape {pixels.shape}; uint8 [N, H, W] or [N, H, W, 1 or 3] is"
            " needed"
        )


def _class_numbers(parts: list[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names and labels 0..classes−1; a negative number, NaN or an empty text means that the image has
    none.
    """
    if not parts:
        return (), []
    everything = np.concatenate([np.asarray(part).ravel() for part in parts])
    numeric = np.issubdtype(everything.dtype, np.integer) or np.issubdtype(everything.dtype, np.floating)
    missing = ~(everything >= 0) if numeric else np.char.str_len(np.char.strip(everything.astype(str))) == 0
    names, positions = np.unique(everything[~missing], return_inverse=True)
    numbers = np.full(len(everything), NO_LABEL, dtype=np.int64)
    numbers[~missing] = positions
    return tuple(map(str, names)), np.split(numbers, np.cumsum([len(part) for part in parts])[:-1])


def _same_length(labels: np.ndarray | None, count: int, what: str) -> None:
    if labels is not None and labels.shape != (count,):
        raise DataError(
            f"{what} has shape {labels.shape}, but there are {count} images: one label an image is needed"
        )
