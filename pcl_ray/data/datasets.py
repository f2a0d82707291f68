"""Every data source as two `Images`: the training part and the held-out part.

`sizes` answers at once, for the checks before a run; `load` reads. The held-out part and `data.limit` are
fixed random choices that do not depend on the seed: runs with several seeds are measured on the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pcl_ray.config import DataConfig
from pcl_ray.data import array_sources, folders
from pcl_ray.data.folders import BadImage
from pcl_ray.data.images import NO_LABEL, ArrayImages, FileImages, Images, cut, decode_reduced, quiet
from pcl_ray.errors import DataError
from pcl_ray.support.machine import cores

_SPLIT_SEED, _TEST_SEED = 20210503, 20210504
_FILE_SOURCES = ("imagenet", "folder")


@dataclass(frozen=True)
class DataSplits:
    train: Images
    holdout: Images | None
    bad: tuple[BadImage, ...] = ()  # skipped files

    @property
    def num_holdout(self) -> int:
        return len(self.holdout) if self.holdout is not None else 0


def sizes(config: DataConfig) -> tuple[int, int]:
    """Numbers of training and held-out images, without decoding. Raises DataError where data are missing."""
    if config.source in _FILE_SOURCES:
        train_files, holdout_files = _file_parts(config)
        train, holdout = len(train_files), len(holdout_files or ())
    else:
        train, holdout = array_sources.sizes(config)
    if not holdout:
        holdout = _holdout_count(train, config.holdout)
        train -= holdout
    return min(train, config.limit or train), holdout


def load(
    config: DataConfig, *, cache_dir: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> DataSplits:
    """Reads the data set. Raises DataError with a full list of what is wrong.

    cache_dir: where checked files are remembered. progress: called with the numbers checked and of all.
    """
    bad: list[BadImage] = []
    train: Images
    holdout: Images | None
    if config.source in _FILE_SOURCES:
        train, holdout, bad = _files(config, cache_dir, progress)
    else:
        train, holdout = array_sources.load(config)
    if holdout is None:
        train, holdout = _split(train, config.holdout)
    if config.limit and config.limit < len(train):
        train = train.take(np.sort(_fixed_order(len(train))[: config.limit]))
    return DataSplits(train, holdout, tuple(bad))


def without_test_labels(splits: DataSplits, share: float) -> DataSplits:
    """The images with the labels of a random `share` of the held-out ones hidden: no figure may need them."""
    holdout = splits.holdout
    if holdout is None or holdout.labels is None or not share:
        return splits
    labels = np.where(is_test(len(holdout), share), NO_LABEL, holdout.labels)
    return replace(splits, holdout=holdout.with_labels(labels))


def only_test_labels(splits: DataSplits, share: float) -> DataSplits:
    """The complement of `without_test_labels`: only the test split keeps its labels."""
    holdout = splits.holdout
    if holdout is None or holdout.labels is None or not share:
        return splits
    labels = np.where(is_test(len(holdout), share), holdout.labels, NO_LABEL)
    return replace(splits, holdout=holdout.with_labels(labels))


def is_test(count: int, share: float) -> np.ndarray:
    """[count] bool: which held-out images are the test split."""
    test = np.zeros(count, dtype=bool)
    test[np.random.default_rng(_TEST_SEED).permutation(count)[: round(count * share)]] = True
    return test


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


# --- folders and ImageNet


def _file_parts(config: DataConfig) -> tuple[FileImages, FileImages | None]:
    root = array_sources.folder(config)
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
) -> tuple[FileImages, FileImages | None, list[BadImage]]:
    """Both parts without the files that do not decode, and those. Raises DataError."""
    train, holdout = _file_parts(config)
    if not config.check_images:
        return train, holdout, []
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
    return good, None if holdout is None else folders.without(holdout, bad), bad


# --- files, decoded into memory


def in_memory(
    splits: DataSplits, side: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> DataSplits:
    """The same images, of which those in files are decoded now, into one array: what `data.in_memory` does.

    A picture larger than needed becomes a square of `side` px, whatever its shape; crops and evaluation views
    are cut from the shape that it had. Pictures that all have one size, none above `side`, stay as they are.
    Raises DataError for a file that does not decode.
    """
    holdout = None if splits.holdout is None else _decoded(splits.holdout, side, progress)
    return replace(splits, train=_decoded(splits.train, side, progress), holdout=holdout)


def _decoded(images: Images, side: int, progress: Callable[[int, int], None]) -> Images:
    if not isinstance(images, FileImages) or not len(images):
        return images
    with quiet(), ThreadPoolExecutor(max_workers=cores()) as pool:  # decoding leaves Python's lock alone
        sizes = np.array(list(pool.map(images.size, range(len(images)))))
        unchanged = (sizes == sizes[0]).all() and sizes.max() <= side
        shape = tuple(sizes[0]) if unchanged else (min(side, int(sizes.max())),) * 2
        pixels = np.empty((len(images), *shape, images.channels), dtype=np.uint8)

        def scale(height: int, width: int) -> float:
            return min(1.0, max(shape) / max(min(height, width), 1))

        decode = images.decode

        def store(index: int) -> None:
            picture = decode_reduced(partial(decode, index), scale)
            if unchanged:
                pixels[index] = picture.pixels
            else:
                whole = np.array([0, 0, *picture.size]) / picture.reduced_by
                pixels[index] = cut(picture.pixels, whole, shape[0], within=False)

        for done, _ in enumerate(pool.map(store, range(len(images))), start=1):
            if done % 1000 == 0:
                progress(done, len(images))
    return ArrayImages(
        pixels,
        images.labels,
        images.class_names,
        sizes=None if unchanged else sizes,
        source_fingerprint=images.fingerprint,
    )
