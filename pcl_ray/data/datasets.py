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
from pcl_ray.data import folders
from pcl_ray.data.folders import BadImage
from pcl_ray.data.images import (
    NO_LABEL,
    ArrayImages,
    EncodedImages,
    FileImages,
    Images,
    cut,
    decode_reduced,
    quiet,
)
from pcl_ray.data.sources import arrays, files, shard_parts
from pcl_ray.data.sources.parts import EncodedParts
from pcl_ray.errors import DataError
from pcl_ray.plan import FILE_SOURCES, SHARD_SOURCES
from pcl_ray.support import text
from pcl_ray.support.machine import cores

_SPLIT_SEED, _TEST_SEED = 20210503, 20210504

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DataSplits:
    train: Images
    holdout: Images | None
    bad: tuple[BadImage, ...] = ()  # skipped files
    notes: tuple[str, ...] = ()  # what is worth saying of the data, one sentence each

    @property
    def num_holdout(self) -> int:
        return len(self.holdout) if self.holdout is not None else 0


def sizes(config: DataConfig) -> tuple[int, int]:
    """Numbers of training and held-out images, without decoding. Raises DataError where data are missing."""
    if config.source in SHARD_SOURCES:
        train, holdout = shard_parts.counts(config)
    elif config.source in FILE_SOURCES:
        train, holdout = files.parts(config).counts
    else:
        train, holdout = arrays.sizes(config)
    if not holdout:
        holdout = _holdout_count(train, config.holdout)
        train -= holdout
    return min(train, config.limit or train), holdout


def load(
    config: DataConfig,
    *,
    cache_dir: Path,
    progress: Progress = lambda done, total: None,
    shards: Progress = lambda done, total: None,
) -> DataSplits:
    """Reads the data set. Raises DataError with a full list of what is wrong.

    cache_dir: where checked files are remembered. progress: called with the numbers checked and of all.
    shards: the same for shards that are fetched, packed and indexed.
    """
    bad: list[BadImage] = []
    train: Images
    holdout: Images | None
    notes: tuple[str, ...] = ()
    if config.source in FILE_SOURCES:
        parts = _encoded_parts(config, shards)
        train, holdout, bad = _readable(parts, config, cache_dir, progress)
        notes = parts.notes
    else:
        train, holdout = arrays.load(config)
    if holdout is None:
        train, holdout = _split(train, config.holdout)
    if config.limit and config.limit < len(train):
        train = train.take(np.sort(_fixed_order(len(train))[: config.limit]))
    return DataSplits(train, holdout, tuple(bad), notes)


def fetch(splits: DataSplits, progress: Progress = lambda done, total: None) -> None:
    """Copies to this node what images are read from and what it lacks. Raises DataError."""
    for images in (splits.train, splits.holdout):
        if isinstance(images, EncodedImages):
            images.fetch(progress)


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


# --- images that are decoded


def _encoded_parts(config: DataConfig, shards: Progress = lambda done, total: None) -> EncodedParts:
    if config.source in SHARD_SOURCES:
        return shard_parts.parts(config, shards)
    return files.parts(config)


def _readable(
    parts: EncodedParts, config: DataConfig, cache_dir: Path, progress: Progress
) -> tuple[EncodedImages, EncodedImages | None, list[BadImage]]:
    """Both parts without the images that do not decode, and those. Raises DataError."""
    train, holdout, bad = parts.train, parts.holdout, list(parts.damaged)
    if not config.check_images:
        return train, holdout, bad
    bad += folders.find_bad(train, cache_dir, progress)
    if holdout is not None:
        bad += folders.find_bad(holdout, cache_dir, progress)
    if bad and config.on_bad_image == "fail":
        total = len(train) + (len(holdout) if holdout is not None else 0)
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        raise DataError(
            f"{len(bad)} of {text.count(total, 'image')} cannot be read; mend or remove them, or set"
            f" data.on_bad_image=skip:\n{listed}"
        )
    good = folders.without(train, bad)
    if not len(good):
        where = train.root if isinstance(train, FileImages) else config.path
        raise DataError(
            f"none of the {len(train)} images in {where!r} can be read; the first: {bad[0].file}:"
            f" {bad[0].reason}"
        )
    return good, None if holdout is None else folders.without(holdout, bad), bad


# --- files, decoded into memory


def in_memory(splits: DataSplits, side: int, progress: Progress = lambda done, total: None) -> DataSplits:
    """The same images, of which those in files are decoded now, into one array: what `data.in_memory` does.

    A picture larger than needed becomes a square of `side` px, whatever its shape; crops and evaluation views
    are cut from the shape that it had. Pictures that all have one size, none above `side`, stay as they are.
    Raises DataError for a file that does not decode.
    """
    holdout = None if splits.holdout is None else _decoded(splits.holdout, side, progress)
    return replace(splits, train=_decoded(splits.train, side, progress), holdout=holdout)


def _decoded(images: Images, side: int, progress: Progress) -> Images:
    if not isinstance(images, EncodedImages) or not len(images):
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
        label_sets=images.label_sets,
    )
