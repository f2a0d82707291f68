"""Pictures in files, decoded once and kept in one array: what `data.in_memory` does for folders.

A picture larger than needed is kept as a square of `side` pixels, whatever its shape; crops and evaluation
views are cut from the shape that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import ArrayImages, FileImages, Images, cut, quiet, reduction
from pcl_ray.support.machine import cores


def in_memory(
    splits: DataSplits, side: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> DataSplits:
    """The same images, of which those in files are decoded now. Raises DataError for a file that does not
    decode.

    side: the largest side that is kept, in px. Pictures that all have one size, none above it, are kept as
    they are.
    """
    holdout = None if splits.holdout is None else _decoded(splits.holdout, side, progress)
    return replace(splits, train=_decoded(splits.train, side, progress), holdout=holdout)


def _decoded(images: Images, side: int, progress: Callable[[int, int], None]) -> Images:
    if not isinstance(images, FileImages) or not len(images):
        return images
    with quiet(), ThreadPoolExecutor(max_workers=cores()) as pool:  # decoding leaves Python's lock alone
        sizes = np.array(list(pool.map(images.size, range(len(images)))))
        as_they_are = (sizes == sizes[0]).all() and sizes.max() <= side
        shape = tuple(sizes[0]) if as_they_are else (min(side, int(sizes.max())),) * 2
        pixels = np.empty((len(images), *shape, images.channels), dtype=np.uint8)

        def keep(index: int) -> None:
            decoded = images.decode(
                index, lambda height, width: min(1.0, max(shape) / max(min(height, width), 1))
            )
            if as_they_are:
                pixels[index] = decoded
            else:
                whole = np.array([0, 0, *sizes[index]]) / reduction(sizes[index][0], decoded)
                pixels[index] = cut(decoded, whole, shape[0], within=False)

        for done, _ in enumerate(pool.map(keep, range(len(images))), start=1):
            if done % 1000 == 0:
                progress(done, len(images))
    return ArrayImages(
        pixels, images.labels, images.class_names, None if as_they_are else sizes, images.fingerprint
    )
