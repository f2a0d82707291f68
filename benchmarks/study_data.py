"""The data sets of the study as .npz files: downloaded or drawn, cut to fixed parts, with a checksum.

    python benchmarks/study_data.py                          # all of them, into PCL_RAY_HOME/data
    python benchmarks/study_data.py kanji --folder /data     # one, elsewhere
    python benchmarks/study_data.py --tuning                 # other images, to choose settings on

Each file has `images`, `labels`, `test_images` and `test_labels`, so that a run takes it too:

    pcl-ray train fashion_mnist data.source=arrays data.path=/data/kanji.npz

fashion_mnist            20,000 + 10,000 grey 28 × 28, 10 classes; Debian's dataset-fashion-mnist
fashion_mnist_long_tail  7,199 of 30,000, class by class fewer, a hundredth at last; the same test images
animal_mnist             8,000 + 2,000 grey 28 × 28, 10 classes; PyPI's animal-mnist 0.4 (MIT)
kanji                    600 characters × (20 + 10) drawings, grey 28 × 28; PyPI's kanjivg (CC BY-SA 3.0)
emoji                    5,262 + 1,311 in colour, 32 × 32, by four hands, 58 groups of meaning; no emoji is in
                         both parts; npm's emoji-datasource-* 16.0.0

Nothing is random but by fixed seeds. What is chosen by figures (learning rates, augmentations, counts) is
chosen on the tuning sets: other images, or for animal_mnist and emoji a part of the training images.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import study_rendering
from PIL import Image

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.errors import DataError
from pcl_ray.support import paths

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
_SEED = 20211017
_DOWNLOAD_S = 600.0
_IMBALANCE = 100.0
_LARGEST_CLASS = 2900
_CHARACTERS, _TUNING_CHARACTERS, _DRAWINGS, _TEST_DRAWINGS = 600, 300, 20, 10
_EMOJI_HANDS = ("apple", "facebook", "google", "twitter")
_EMOJI_A_CLASS, _EMOJI_SIDE = 10, 32


@dataclass(frozen=True)
class Arrays:
    """A data set with its own test part. Pixels uint8 [N, H, W] or [N, H, W, 3], labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def checksum(self) -> str:
        """The same for the same pixels and labels in the same order."""
        digest = hashlib.sha256()
        for array in vars(self).values():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: makes the reported or the tuning images, with what lies in a folder."""

    make: Callable[[Path, bool], Arrays]


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)} (default: all)")
    options.add_argument("--folder", type=Path, help="where to write (default: PCL_RAY_HOME/data)")
    options.add_argument("--tuning", action="store_true", help="the images to choose settings on")
    arguments = options.parse_args()
    try:
        for name in arguments.names or SOURCES:
            path = file_of(name, tuning=arguments.tuning, folder=arguments.folder)
            made = read(path)
            print(
                f"{name:24s} {len(made.images):6d} + {len(made.test_images):5d} images"
                f" {'×'.join(map(str, made.images.shape[1:])):9s} {len(np.unique(made.labels)):4d} classes "
                f" {made.checksum}  {path}",
                flush=True,
            )
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def file_of(name: str, *, tuning: bool = False, folder: Path | None = None) -> Path:
    """The .npz of a data set, made where it is missing. Raises DataError where it cannot be had."""
    sources = SOURCES | EXTRAS
    if name not in sources:
        raise DataError(f"{name!r} is no data set of the study; there are {', '.join(SOURCES)}")
    folder = (folder or paths.home() / "data").expanduser().absolute()
    path = folder / f"{name}{'_tuning' if tuning else ''}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = sources[name].make(folder / "downloads", tuning)
        part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        np.savez_compressed(part, **vars(made))
        part.replace(path)
    return path


def read(path: Path) -> Arrays:
    """The arrays of such a file. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return Arrays(**{name: content[name] for name in Arrays.__dataclass_fields__})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no data set of the study ({error}); remove it to make it anew") from None


# --- Fashion-MNIST


def _fashion_mnist(folder: Path, tuning: bool) -> Arrays:
    """The first 20,000 training images and the test images; for tuning the next 20,000, and 10,000 after."""
    images, labels, test_images, test_labels = vars(_whole_fashion_mnist()).values()
    if tuning:
        return Arrays(images[20000:40000], labels[20000:40000], images[40000:50000], labels[40000:50000])
    return Arrays(images[:20000], labels[:20000], test_images, test_labels)


def _quick(folder: Path, tuning: bool) -> Arrays:
    """A few of Fashion-MNIST's images, to see in a minute that everything runs."""
    whole = _fashion_mnist(folder, tuning)
    return Arrays(whole.images[:1280], whole.labels[:1280], whole.test_images[:500], whole.test_labels[:500])


def _long_tail(folder: Path, tuning: bool) -> Arrays:
    """Class c has n · 100^(−c/9) training images, as in CIFAR-LT of LDAM (Cao et al., NeurIPS 2019); the test
    part is balanced.
    """
    whole = _whole_fashion_mnist()
    rows = np.arange(20000, 40000) if tuning else np.r_[0:20000, 50000:60000]
    largest = _LARGEST_CLASS * len(rows) // 30000
    draw = np.random.default_rng(_SEED)
    kept = []
    for number in range(10):
        of_class = draw.permutation(rows[whole.labels[rows] == number])
        kept.append(of_class[: round(largest * _IMBALANCE ** (-number / 9))])
    rows = np.sort(np.concatenate(kept))
    test = _fashion_mnist(folder, tuning)
    return Arrays(whole.images[rows], whole.labels[rows], test.test_images, test.test_labels)


def _whole_fashion_mnist() -> Arrays:
    path = os.environ.get("PCL_RAY_TEST_FASHION_MNIST") or FASHION_MNIST
    try:
        splits = datasets.load(DataConfig(source="idx", path=path, channels=1), cache_dir=Path(path))
    except DataError as error:
        raise DataError(f"{error}; install Debian's package dataset-fashion-mnist") from None
    train: Any = splits.train
    test: Any = splits.holdout
    if test is None or len(train) != 60000 or len(test) != 10000:
        raise DataError(f"{path} does not hold Fashion-MNIST's 60,000 training and 10,000 test images")
    return Arrays(train.pixels[..., 0], train.labels, test.pixels[..., 0], test.labels)


# --- animal-mnist


def _animal_mnist(folder: Path, tuning: bool) -> Arrays:
    """8,000 training and 2,000 test images; for tuning 6,400 and 1,600 of the training images."""
    wheel = _from_pypi("animal-mnist", "0.4", folder)
    with zipfile.ZipFile(wheel) as content:
        part = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
        pixels, labels = (
            _unpickled(gzip.decompress(content.read(part.format(kind)))) for kind in ("data", "label")
        )
    if pixels.shape != (10000, 28, 28) or pixels.dtype != np.uint8 or labels.shape != (10000,):
        raise DataError(f"{wheel} holds arrays {pixels.shape} and {labels.shape}, not animal-mnist's")
    return _random_split(pixels, labels.astype(np.int64), tuning)


class _ArraysOnly(pickle.Unpickler):
    """A pickle may name any function of any module; here it may name those that make up a numpy array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickled(content: bytes) -> np.ndarray:
    """The array in a pickle. Raises DataError where it holds anything else."""
    try:
        value = _ArraysOnly(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"a pickle that should hold an array alone is not read: {error}") from None
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        raise DataError(f"a pickle that should hold an array holds a {type(value).__name__}")
    return value


def _random_split(images: np.ndarray, labels: np.ndarray, tuning: bool) -> Arrays:
    """A fifth for the test; for tuning a fifth of the rest, and its other images."""
    order = np.random.default_rng(_SEED).permutation(len(images))
    test, rest = np.split(order, [len(order) // 5])
    if tuning:
        test, rest = np.split(rest, [len(rest) // 5])
    test, rest = np.sort(test), np.sort(rest)
    return Arrays(images[rest], labels[rest], images[test], labels[test])


# --- KanjiVG


def _kanji(folder: Path, tuning: bool) -> Arrays:
    """Drawings of 600 characters, or for tuning of 300 others."""
    wheel = _from_pypi("kanjivg", "20260714", folder)
    with zipfile.ZipFile(wheel) as content:
        files = sorted(name for name in content.namelist() if _is_ideograph(name))
        order = np.random.default_rng(_SEED).permutation(len(files))
        part = slice(_CHARACTERS, _CHARACTERS + _TUNING_CHARACTERS) if tuning else slice(_CHARACTERS)
        characters = [
            study_rendering.strokes_of(content.read(files[number]).decode()) for number in order[part]
        ]
    train, test = [], []
    for number, strokes in enumerate(characters):
        for drawing in range(_DRAWINGS + _TEST_DRAWINGS):
            draw = np.random.default_rng([_SEED, int(tuning), number, drawing])
            (train if drawing < _DRAWINGS else test).append(study_rendering.drawing(strokes, 28, draw))
    numbers = np.arange(len(characters), dtype=np.int64)
    return Arrays(np.stack(train), numbers.repeat(_DRAWINGS), np.stack(test), numbers.repeat(_TEST_DRAWINGS))


def _is_ideograph(name: str) -> bool:
    """Whether a file of KanjiVG is the usual form of a character of Unicode's main block."""
    code = re.fullmatch(r"kanji/([0-9a-f]{5})\.svg", name)
    return code is not None and 0x4E00 <= int(code[1], 16) <= 0x9FFF


# --- emoji


def _emoji(folder: Path, tuning: bool) -> Arrays:
    """Emoji as four hands draw them, on white, by Unicode's groups of meaning that have ten or more. A test
    part has emoji of its own, in all their drawings.
    """
    archives = {hand: _from_npm(f"emoji-datasource-{hand}", "16.0.0", folder) for hand in _EMOJI_HANDS}
    with tarfile.open(archives[_EMOJI_HANDS[0]]) as content:
        table = json.load(content.extractfile("package/emoji.json") or io.BytesIO(b"[]"))
    sizes = Counter(entry["subcategory"] for entry in table)
    groups = sorted(group for group, size in sizes.items() if size >= _EMOJI_A_CLASS)
    entries = [entry for entry in table if entry["subcategory"] in groups]
    wanted = {entry["image"]: row for row, entry in enumerate(entries)}
    pixels, rows = [], []
    for hand, archive in archives.items():
        with tarfile.open(archive) as content:
            for member in content:
                row = wanted.get(member.name.removeprefix(f"package/img/{hand}/64/"))
                file = content.extractfile(member) if row is not None else None
                if file is not None:
                    pixels.append(_on_white(file.read()))
                    rows.append(row)
    order = np.lexsort((np.arange(len(rows)), rows))
    images, emoji = np.stack(pixels)[order], np.array(rows)[order]
    labels = np.array([groups.index(entry["subcategory"]) for entry in entries], dtype=np.int64)
    parts = _random_split(np.arange(len(entries)), labels, tuning)
    train, test = (np.flatnonzero(np.isin(emoji, part)) for part in (parts.images, parts.test_images))
    return Arrays(images[train], labels[emoji[train]], images[test], labels[emoji[test]])


def _on_white(content: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    whole = Image.alpha_composite(white, picture).convert("RGB")
    return np.asarray(whole.resize((_EMOJI_SIDE,) * 2, Image.Resampling.BOX))


# --- packages


def _from_pypi(package: str, version: str, folder: Path) -> Path:
    """The wheel of a package, downloaded once by pip; nothing of it is run. Raises DataError."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "--dest", str(folder), f"{package}=={version}"),
    ]
    return _downloaded(f"PyPI's package {package} {version}", pattern, command, folder)


def _from_npm(package: str, version: str, folder: Path) -> Path:
    """The archive of a package, downloaded once by npm; nothing of it is run. Raises DataError."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package}@{version}"]
    return _downloaded(f"npm's package {package} {version}", f"{package}-{version}.tgz", command, folder)


def _downloaded(what: str, pattern: str, command: list[str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    if not list(folder.glob(pattern)):
        if shutil.which(command[0]) is None:
            reason = f": there is no {command[0]}"
        else:
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_DOWNLOAD_S, cwd=folder
                )
                reason = f": {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
            except subprocess.TimeoutExpired:
                reason = f": it took longer than {_DOWNLOAD_S:g} s"
    files = sorted(folder.glob(pattern))
    if not files:
        raise DataError(
            f"{what} is needed and could not be downloaded{reason}; or put {pattern} into {folder}"
        )
    return files[0]


SOURCES = {
    "fashion_mnist": Source(_fashion_mnist),
    "fashion_mnist_long_tail": Source(_long_tail),
    "animal_mnist": Source(_animal_mnist),
    "kanji": Source(_kanji),
    "emoji": Source(_emoji),
}
EXTRAS = {"quick": Source(_quick)}


if __name__ == "__main__":
    sys.exit(main())
