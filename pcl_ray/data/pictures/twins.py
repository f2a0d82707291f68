"""Which of many pictures are copies of each other: byte for byte, or the same picture saved anew, scaled, on
another margin.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BITS = 2  # of 64, in which the difference hashes of two copies may differ
_MEAN, _MOST = 3.0, 32  # of 255, by which their miniatures may differ: on average, anywhere
_SHAPE = 0.05  # by which the shapes of their contents may
_FLAT = 24  # contrast below which a picture has too little to be told from others
_BANDS, _BAND_BITS = 4, 16  # more than _BITS bands: one of them is equal in two copies
_NEIGHBOURS = 64
_PIECE = 4096  # pairs


def groups(
    content_hashes: np.ndarray,
    difference_hashes: np.ndarray | None,
    miniatures: np.ndarray,
    shapes: np.ndarray,
    contrasts: np.ndarray,
) -> np.ndarray:
    """[N] int64: pictures with equal numbers are copies, directly or by way of others.

    content_hashes: [N] bytes. difference_hashes: [N] uint64, None where bytes alone are compared; the others
    are then not needed. See `looks.Look`.
    """
    # half a second, which runs on other data need not wait for
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(content_hashes)
    pairs = [_equal(content_hashes)]
    if difference_hashes is not None and count:
        candidates = np.concatenate([np.empty((0, 2), np.int64), *_candidates(difference_hashes)])
        candidates = np.stack(divmod(np.unique(candidates @ (count, 1)), count), axis=1)
        pairs.append(candidates[_alike(candidates, miniatures, shapes, contrasts)])
    first, second = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _equal(values: np.ndarray) -> np.ndarray:
    """[p, 2]: each value's first position and that of every further one like it."""
    _, first, number = np.unique(values, return_index=True, return_inverse=True)
    pairs = np.stack([first[number], np.arange(len(values))], axis=1).reshape(-1, 2)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _candidates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """[p, 2]: pairs of which 16 bits in a row are equal and at most _BITS differ. Of more than _NEIGHBOURS
    with the same 16 bits each is compared with those next to it in the order of their hashes.
    """
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(_BAND_BITS * band)) & np.uint64(2**_BAND_BITS - 1)
        order = np.lexsort((hashes, keys))
        keys, sorted_hashes = keys[order], hashes[order]
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            same = keys[:-step] == keys[step:]
            if not same.any():
                break
            same &= np.bitwise_count(sorted_hashes[:-step] ^ sorted_hashes[step:]) <= _BITS
            yield np.sort(np.stack([order[:-step][same], order[step:][same]], axis=1), axis=1)


def _alike(
    pairs: np.ndarray, miniatures: np.ndarray, shapes: np.ndarray, contrasts: np.ndarray
) -> np.ndarray:
    """[p] bool: which of the pairs are copies."""
    first, second = pairs.T
    alike = np.minimum(contrasts[first], contrasts[second]) >= _FLAT
    alike &= np.abs(shapes[first] / shapes[second] - 1) <= _SHAPE
    rows = np.flatnonzero(alike)
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        apart = np.abs(miniatures[first[piece]].astype(np.int16) - miniatures[second[piece]])
        apart = apart.reshape(len(piece), -1)
        alike[piece] = (apart.mean(axis=1) <= _MEAN) & (apart.max(axis=1) <= _MOST)
    return alike
