"""Every data source as two `Images`: the training part and the held-out part.

`sizes` answers at once, for the checks before a run; `load` reads. The held-out part and `data.limit` are
fixed random choices that do not depend on the seed: runs with several seeds are measured on the same images.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcl_ray.config import DataConfig
from pcl_ray.data import folders
from pcl_ray.data.folders import BadImage
from pcl_ray.data.images import NO_LABEL, ArrayImages, FileImages, Images, to_channels
from pcl_ray.errors import DataError

_SPLIT_SEED, _TEST_SEED = 20210503, 20210504
_TORCHVISION_SIZES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "stl10": (5_000, 8_000)}
_STL10_UNLABELLED = 100_000


@dataclass(frozen=True)
class DataSplits:
    train: Images
    holdout: Images | None
    bad: tuple[BadImage, ...] = ()  # skipped files

    @property
    def num_holdout(self) -> int:
        return len(self.holdout) if self.holdout is not None else 0


def sizes(config: DataConfig) -> tuple[int, int]:
    """Numbers of training and held-out images, without decoding or importing much. Raises DataError where the
    data are missing.
    """
    match config.source:
        case "digits":
            train, holdout = len(_digits_table()), 0
        case "idx":
            train, holdout = _idx_sizes(_folder(config))
        case "cifar10" | "cifar100" | "stl10":
            _folder(config)
            train, holdout = _TORCHVISION_SIZES[config.source]
            train += _STL10_UNLABELLED if config.source == "stl10" and config.unlabelled else 0
        case "imagenet" | "folder":
            parts = _file_parts(config)
            train, holdout = len(parts[0]), len(parts[1]) if parts[1] is not None else 0
        case "arrays":
            arrays = _open_arrays(config)
            train, holdout = (
                len(arrays["images"]),
                (len(arrays["test_images"]) if "test_images" in arrays else 0),
            )
    if not holdout:
        holdout = _holdout_count(train, config.holdout)
        train -= holdout
    return min(train, config.limit or train), holdout


def load(
    config: DataConfig, *, cache_dir: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> DataSplits:
    """Reads the data set. `cache_dir`: where the outcome of checking files is kept. Raises DataError with a
    full list of what is wrong.
    """
    bad: list[BadImage] = []
    match config.source:
        case "digits":
            parts: tuple[Images, Images | None] = (_digits(config.channels), None)
        case "idx":
            parts = _idx(_folder(config), config.channels)
        case "cifar10" | "cifar100" | "stl10":
            parts = _torchvision(config)
        case "imagenet" | "folder":
            parts, bad = _files(config, cache_dir, progress)
        case "arrays":
            parts = _arrays(config)
    train, holdout = parts if parts[1] is not None else _split(parts[0], config.holdout)
    if config.limit and config.limit < len(train):
        train = train.take(np.sort(_fixed_order(len(train))[: config.limit]))
    return DataSplits(train, holdout, tuple(bad))


def without_test_labels(splits: DataSplits, share: float) -> DataSplits:
    """The same images with the labels of a fixed random `share` of the held-out ones hidden: no figure that
    needs labels can depend on them.
    """
    holdout = splits.holdout
    if holdout is None or holdout.labels is None or not share:
        return splits
    return replace(
        splits, holdout=holdout.with_labels(np.where(is_test(len(holdout), share), NO_LABEL, holdout.labels))
    )


def only_test_labels(splits: DataSplits, share: float) -> DataSplits:
    """The complement of `without_test_labels`."""
    holdout = splits.holdout
    if holdout is None or holdout.labels is None or not share:
        return splits
    return replace(
        splits, holdout=holdout.with_labels(np.where(is_test(len(holdout), share), holdout.labels, NO_LABEL))
    )


def is_test(count: int, share: float) -> np.ndarray:
    """[count] bool: which held-out images are the test split."""
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(_TEST_SEED).permutation(count)[: round(count * share)]] = True
    return chosen


def _split(images: Images, share: float) -> tuple[Images, Images | None]:
    count = _holdout_count(len(images), share)
    if not count:
        return images, None
    order = _fixed_order(len(images))
    return images.take(np.sort(order[count:])), images.take(np.sort(order[:count]))


def _holdout_count(count: int, share: float) -> int:
    return min(round(count * share), count - 1) if count else 0


def _fixed_order(count: int) -> np.ndarray:
    return np.random.default_rng(_SPLIT_SEED).permutation(count)


def _folder(config: DataConfig) -> Path:
    if not config.path:
        raise DataError(f"data.source = {config.source} needs data.path: the folder with the images")
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"data.path = {config.path!r} is not a folder"
            + (" (it does not exist)" if not folder.exists() else "")
        )
    return folder.absolute()


# --- digits


def _digits_table() -> np.ndarray:
    """[1797, 65]: 64 pixels in 0..16 and the digit. Read from scikit-learn's file without importing
    scikit-learn, which takes over a second.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "data.source = digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


def _digits(channels: int) -> ArrayImages:
    table = _digits_table()
    pixels = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return ArrayImages(to_channels(pixels, channels), table[:, 64].astype(np.int64), tuple("0123456789"))


# --- idx (MNIST, Fashion-MNIST)


def _idx(folder: Path, channels: int) -> tuple[ArrayImages, ArrayImages | None]:
    train = _idx_part(folder, "train", channels)
    assert train is not None
    return train, _idx_part(folder, "t10k", channels)


def _idx_part(folder: Path, prefix: str, channels: int) -> ArrayImages | None:
    path = _idx_file(folder, f"{prefix}-images", required=prefix == "train")
    if path is None:
        return None
    pixels = _read_idx(path, _idx_shape(path, images=True))
    labels_path = _idx_file(folder, f"{prefix}-labels", required=False)
    labels = None if labels_path is None else _read_idx(labels_path, _idx_shape(labels_path)).astype(np.int64)
    _same_length(labels, len(pixels), str(labels_path))
    return ArrayImages(
        to_channels(pixels, channels),
        labels,
        () if labels is None else tuple(map(str, range(labels.max(initial=-1) + 1))),
    )


def _idx_file(folder: Path, start: str, *, required: bool) -> Path | None:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.startswith(start) and "idx" in path.name and path.is_file()
    )
    if not found and required:
        raise DataError(
            f"no file {start}-idx3-ubyte(.gz) in {folder}; data.source = idx reads MNIST's file names"
        )
    return found[0] if found else None


def _idx_shape(path: Path, *, images: bool = False) -> tuple[int, ...]:
    """The header of an idx file: two zero bytes, type 8 (unsigned byte), the number of dimensions, their
    sizes (big-endian).
    """
    header = _idx_bytes(path, 4)
    if len(header) < 4 or header[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    header = _idx_bytes(path, 4 + 4 * header[3])[4:]
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4))
    if images and (len(shape) != 3 or not all(shape)):
        raise DataError(f"{path} holds an array of shape {shape}; images [N, H, W] are needed")
    return shape


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    values = np.frombuffer(_idx_bytes(path), dtype=np.uint8)[4 + 4 * len(shape) :]
    if len(values) != math.prod(shape):
        raise DataError(
            f"{path} holds {len(values)} values where its header announces {math.prod(shape)}: it is cut"
            " short or damaged"
        )
    return values.reshape(shape)


def _idx_bytes(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes, or all, of a file that is gzipped or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _idx_sizes(folder: Path) -> tuple[int, int]:
    train, holdout = (
        _idx_file(folder, "train-images", required=True),
        _idx_file(folder, "t10k-images", required=False),
    )
    assert train is not None
    return _idx_shape(train, images=True)[0], _idx_shape(holdout, images=True)[0] if holdout else 0


# --- CIFAR, STL-10


def _torchvision(config: DataConfig) -> tuple[ArrayImages, ArrayImages]:
    folder = _folder(config)
    import torchvision  # takes seconds, so only where it is needed

    try:
        if config.source == "stl10":
            train = torchvision.datasets.STL10(
                str(folder), split="train+unlabeled" if config.unlabelled else "train"
            )
            test = torchvision.datasets.STL10(str(folder), split="test")
            parts = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
        else:
            kind = (
                torchvision.datasets.CIFAR10 if config.source == "cifar10" else torchvision.datasets.CIFAR100
            )
            train, test = kind(str(folder), train=True), kind(str(folder), train=False)
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


# --- folders and ImageNet


def _file_parts(config: DataConfig) -> tuple[FileImages, FileImages | None]:
    root = _folder(config)
    train_folder, holdout_folder = folders.find_parts(root)
    if config.source == "imagenet" and holdout_folder is None:
        raise DataError(
            f"data.source = imagenet needs the folders train and val in {root}, each with one folder a class"
        )
    train = folders.find_images(train_folder, config.channels)
    if holdout_folder is None:
        return train, None
    return train, folders.find_images(holdout_folder, config.channels, train.class_names)


def _files(
    config: DataConfig, cache_dir: Path, progress: Callable[[int, int], None]
) -> tuple[tuple[FileImages, FileImages | None], list[BadImage]]:
    train, holdout = _file_parts(config)
    if not config.check_images:
        return (train, holdout), []
    bad = folders.find_bad(train, cache_dir, progress)
    if holdout is not None:
        bad += folders.find_bad(holdout, cache_dir, progress)
    if bad and config.on_bad_image == "fail":
        total = len(train) + (len(holdout) if holdout is not None else 0)
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        raise DataError(
            f"{len(bad)} of {total} images cannot be read; mend or remove them, or set"
            f" data.on_bad_image=skip:\n{listed}"
        )
    good = folders.without(train, bad)
    if not len(good):
        raise DataError(
            f"none of the {len(train)} images in {train.root!r} can be read; the first: {bad[0].file}:"
            f" {bad[0].reason}"
        )
    return (good, None if holdout is None else folders.without(holdout, bad)), bad


# --- .npy and .npz


def _arrays(config: DataConfig) -> tuple[ArrayImages, ArrayImages | None]:
    arrays = _open_arrays(config)
    names, numbers = _class_numbers([arrays[key] for key in ("labels", "test_labels") if key in arrays])
    train = ArrayImages(to_channels(np.asarray(arrays["images"]), config.channels))
    if "labels" in arrays:
        train = replace(train, labels=numbers.pop(0), class_names=names)
    if "test_images" not in arrays:
        return train, None
    holdout = ArrayImages(to_channels(np.asarray(arrays["test_images"]), config.channels))
    return train, (
        replace(holdout, labels=numbers.pop(0), class_names=names) if "test_labels" in arrays else holdout
    )


def _open_arrays(config: DataConfig) -> dict[str, np.ndarray]:
    """images, and where they are there labels, test_images, test_labels; their shapes checked, .npy files not
    read yet.
    """
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
    """The arrays of an .npz file by their names, or the one of an .npy file as `images`, not read yet. The
    content tells which it is.
    """
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
            members = {aliases.get(name, name): content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as {path.suffix or 'an array file'}: {' '.join(str(error).split())}"
        ) from None
    arrays = {name: array for name, array in members.items() if isinstance(array, np.ndarray)}
    if "images" not in arrays:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; 'images' is needed, 'labels',"
            " 'test_images' and 'test_labels' are optional"
        )
    return arrays


def _check_pixels(pixels: np.ndarray, what: str) -> None:
    fits = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] in (1, 3))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise DataError(
            f"{what} is {pixels.dtype} of shape {pixels.shape}; uint8 [N, H, W] or [N, H, W, 1 or 3] is"
            " needed"
        )


def _class_numbers(parts: list[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names and labels 0..classes−1; a negative number or NaN means that the image has none."""
    if not parts:
        return (), []
    everything = np.concatenate([np.asarray(part).ravel() for part in parts])
    numeric = np.issubdtype(everything.dtype, np.integer) or np.issubdtype(everything.dtype, np.floating)
    missing = ~(everything >= 0) if numeric else np.zeros(len(everything), dtype=bool)
    names, found = np.unique(everything[~missing], return_inverse=True)
    numbers = np.full(len(everything), NO_LABEL, dtype=np.int64)
    numbers[~missing] = found
    return tuple(map(str, names)), np.split(numbers, np.cumsum([len(part) for part in parts])[:-1])


def _same_length(labels: np.ndarray | None, count: int, what: str) -> None:
    if labels is not None and labels.shape != (count,):
        raise DataError(
            f"{what} has shape {labels.shape}, but there are {count} images: one label an image is needed"
        )
