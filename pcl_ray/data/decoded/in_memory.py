"""Pictures in files, decoded into one array: what `data.in_memory` does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pcl_ray.data.decoded import decoded_cache
from pcl_ray.data.images import ArrayImages, EncodedImages, digest
from pcl_ray.data.pictures.decoding import cut, decode_reduced, quiet
from pcl_ray.support.machine import cores

_FORMAT = "decoded 1"


def decoded(
    images: EncodedImages, side: int, progress: Callable[[int, int], None], home: Path | None = None
) -> ArrayImages:
    """The same images in one array, no larger than `side` px.

    progress: called with the numbers decoded and of all. home: where arrays are kept for the next run; None:
    nowhere. Raises DataError for a file that does not decode.
    """
    key = _key(images, side)
    arrays = None if home is None else decoded_cache.find(home, key)
    if arrays is None or len(arrays.get("pixels", ())) != len(images):
        arrays = _decode_all(images, side, progress)
        if home is not None:
            decoded_cache.keep(home, key, arrays)
    return ArrayImages(
        arrays["pixels"],
        images.labels,
        images.class_names,
        sizes=arrays.get("sizes"),
        source_fingerprint=images.fingerprint,
        label_sets=images.label_sets,
        file_names=images.file_names,
    )


def _key(images: EncodedImages, side: int) -> str:
    """The same for the same files, decoded alike; labels do not count."""
    state = repr([_FORMAT, side, images.channels, images.options, images.content_state])
    return digest(state.encode(errors="surrogateescape"))


def _decode_all(
    images: EncodedImages, side: int, progress: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    """`pixels` [N, H, W, channels], and `sizes` [N, 2] where pictures were squeezed."""
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
            progress(done, len(images))
    return {"pixels": pixels} if unchanged else {"pixels": pixels, "sizes": sizes}
