"""Every data source as two `Images`: the training part and the held-out part.

`sizes` answers at once, for the checks before a run; `load` reads. The held-out part and `data.limit` are
fixed random choices that do not depend on the seed: runs with several seeds are measured on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcl_ray.config import DataConfig
from pcl_ray.data import folders
from pcl_ray.data.decoded.in_memory import decoded
from pcl_ray.data.images import NO_LABEL, EncodedImages, FileImages, Images, SeenFiles, digest
from pcl_ray.data.inspection import looks_cache, splitting
from pcl_ray.data.inspection import summary as summaries
from pcl_ray.data.inspection.headers import read_headers
from pcl_ray.data.inspection.looks_cache import Looks
from pcl_ray.data.inspection.summary import DataSummary, summary_of
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.data.pictures.looks import BadImage
from pcl_ray.data.sources import arrays, files, shard_parts
from pcl_ray.data.sources.parts import EncodedParts
from pcl_ray.errors import DataError
from pcl_ray.plan import FILE_SOURCES, SHARD_SOURCES
from pcl_ray.support import text

_SPLIT_SEED, _TEST_SEED = 20210503, 20210504
_SIDES = 100  # files whose headers say how large pictures are

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DataSplits:
    train: Images
    holdout: Images | None
    bad: tuple[BadImage, ...] = ()  # skipped files
    notes: tuple[str, ...] = ()  # what is worth saying of the data, one sentence each
    summary: DataSummary | None = None  # of images that are decoded
    content: str = ""  # a hash of what is in all files; "" where they were not looked at

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
    if config.source in FILE_SOURCES:
        return _load_encoded(config, cache_dir, progress, shards)
    train, holdout = arrays.load(config)
    if holdout is None:
        train, holdout = _split(train, config.holdout)
    if config.limit and config.limit < len(train):
        train = train.take(np.sort(_fixed_order(len(train))[: config.limit]))
    return DataSplits(train, holdout)


def typical_side(config: DataConfig) -> int | None:
    """The shorter side in pixels that half of some files have at least; None for other sources, and where no
    file can be read.
    """
    if config.source != "folder":
        return None
    train = files.parts(config).train
    picks = np.linspace(0, len(train) - 1, min(len(train), _SIDES)).astype(np.int64)
    sizes = (
        read_headers(train.take(picks), compared=False).sizes
        if isinstance(train, FileImages)
        else np.empty((0, 2))
    )
    return int(np.median(sizes.min(axis=1))) if len(sizes) else None


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


@dataclass(frozen=True)
class _EncodedPart:
    """The images of one part, and what was found when they were looked at."""

    images: EncodedImages
    looks: Looks | None = None

    def take(self, indices: np.ndarray) -> _EncodedPart:
        looks = None if self.looks is None else self.looks.take(indices)
        return _EncodedPart(self.images.take(indices), looks)


def encoded_parts(config: DataConfig, shards: Progress = lambda done, total: None) -> EncodedParts:
    """The images of both parts, before any is decoded. Raises DataError."""
    is_sharded = config.source in SHARD_SOURCES
    parts = shard_parts.parts(config, shards) if is_sharded else files.parts(config)
    return parts.with_options(DecodingOptions.of(config))


def _load_encoded(config: DataConfig, cache_dir: Path, progress: Progress, shards: Progress) -> DataSplits:
    parts = encoded_parts(config, shards)
    train, holdout, bad = _readable(parts, config, cache_dir, progress)
    reunited = 0
    if holdout is None and (wanted := _holdout_count(len(train.images), config.holdout)):
        order = _fixed_order(len(train.images))
        held = np.isin(np.arange(len(order)), order[:wanted])
        if config.split == "content" and train.looks is not None:
            group = splitting.groups_of(train.looks)
            reunited = splitting.separated(held, group)
            held = splitting.holdout_of(order, wanted, group)
        train, holdout = train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
    if config.limit and config.limit < len(train.images):
        train = train.take(np.sort(_fixed_order(len(train.images))[: config.limit]))
    held_images = holdout.images if holdout is not None and len(holdout.images) else None
    summary = _summary(train, holdout, reunited)
    return DataSplits(train.images, held_images, tuple(bad), parts.notes, summary, _content(train, holdout))


def _content(train: _EncodedPart, holdout: _EncodedPart | None) -> str:
    """A hash of the content of all files, in their order; "" where they were not looked at."""
    looks = [part.looks for part in (train, holdout) if part is not None and part.looks is not None]
    return digest(*(each.content_hashes.tobytes() for each in looks)) if looks else ""


def _summary(train: _EncodedPart, holdout: _EncodedPart | None, reunited: int) -> DataSummary:
    held_images = held_looks = looks = group = None
    if holdout is not None:
        held_images, held_looks = holdout.images, holdout.looks
    if train.looks is not None:
        looks = train.looks, held_looks
        every = train.looks if held_looks is None else train.looks.with_those_of(held_looks)
        group = splitting.groups_of(every)
    return summary_of(train.images, held_images, looks, group, reunited)


def preview(config: DataConfig, cache_dir: Path, num_clusters: Sequence[int] = ()) -> list[str]:
    """What is seen of pictures in seconds, a line each: of those that were looked at before, all; of others
    the classes, and the headers of as many files as a few seconds allow. num_clusters: of the run.

    Raises DataError with the files that cannot be read, where a run stops for them, and where they are known
    to be copies of too few.
    """
    if config.source not in FILE_SOURCES:
        return []
    parts = encoded_parts(config)
    sides = [side for side in (parts.train, parts.holdout) if side is not None]
    if config.check_images and all(looks_cache.earlier_inspection(side, cache_dir) for side in sides):
        splits = load(config, cache_dir=cache_dir)
        assert splits.summary is not None
        if why := summaries.too_few_different(splits.summary, num_clusters):
            raise DataError(why)
        lines = [*summaries.lines(splits.summary), *summaries.cautions(splits.summary)]
        return lines + [f"{entry.file} cannot be read: {entry.reason}" for entry in splits.bad]
    lines = summaries.lines(summary_of(parts.train, parts.holdout, None, None, 0))
    bad = list(parts.damaged)
    for side in sides:
        if isinstance(side, FileImages):
            headers = read_headers(side)
            bad += headers.bad
            lines += headers.lines()
    if config.check_images:
        refuse_bad(bad, sum(map(len, sides)), config)
    return lines + [f"{entry.file} cannot be read: {entry.reason}" for entry in bad]


def _readable(
    parts: EncodedParts, config: DataConfig, cache_dir: Path, progress: Progress
) -> tuple[_EncodedPart, _EncodedPart | None, list[BadImage]]:
    """Both parts without the images that do not decode, and those. Raises DataError."""
    train, holdout, bad = parts.train, parts.holdout, list(parts.damaged)
    if not config.check_images:
        return _EncodedPart(train), None if holdout is None else _EncodedPart(holdout), bad
    total = len(train) + (len(holdout) if holdout is not None else 0)
    inspections = [looks_cache.inspect(train, cache_dir, lambda done, _: progress(done, total))]
    if holdout is not None:
        before = len(train)
        inspections.append(
            looks_cache.inspect(holdout, cache_dir, lambda done, _: progress(before + done, total))
        )
    bad += [entry for inspection in inspections for entry in inspection.bad]
    refuse_bad(bad, total, config)
    good = folders.without(train, bad)
    if not len(good):
        where = train.root if isinstance(train, FileImages) else config.path
        raise DataError(
            f"none of the {len(train)} images in {where!r} can be read; the first: {bad[0].file}:"
            f" {bad[0].reason}"
        )
    held = None
    if holdout is not None:
        held = _seen(folders.without(holdout, bad), inspections[1].looks)
    return _seen(good, inspections[0].looks), held, bad


def _seen(images: EncodedImages, looks: looks_cache.Looks) -> _EncodedPart:
    """The part, whose files, if any, must stay as they are."""
    if isinstance(images, FileImages):
        paths = map(images.path, range(len(images)))
        images = replace(images, seen=SeenFiles.of(paths, looks.content_hashes))
    return _EncodedPart(images, looks)


def refuse_bad(bad: Sequence[BadImage], total: int, config: DataConfig) -> None:
    """Raises DataError with all files that cannot be read, where a run stops for them. total: all files."""
    if not bad or config.on_bad_image != "fail":
        return
    listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
    raise DataError(
        f"{len(bad)} of {text.count(total, 'image')} cannot be read; mend or remove them, or set"
        f" data.on_bad_image=skip:\n{listed}"
    )


# --- files, decoded into memory


def in_memory(
    splits: DataSplits, side: int, progress: Progress = lambda done, total: None, home: Path | None = None
) -> DataSplits:
    """The same images, of which those in files are decoded now, into one array: what `data.in_memory` does.

    A picture larger than needed becomes a square of `side` px, whatever its shape; crops and evaluation views
    are cut from the shape that it had. Pictures that all have one size, none above `side`, stay as they are.
    home: the arrays are kept below it for the next run. Raises DataError for a file that does not decode.
    """
    total = len(splits.train) + splits.num_holdout

    def part(images: Images, done_before: int) -> Images:
        if not isinstance(images, EncodedImages) or not len(images):
            return images
        return decoded(images, side, lambda done, _: progress(done_before + done, total), home)

    holdout = None if splits.holdout is None else part(splits.holdout, len(splits.train))
    return replace(splits, train=part(splits.train, 0), holdout=holdout)
