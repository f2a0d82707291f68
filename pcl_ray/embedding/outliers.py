"""Outliers: images far from every prototype, or far from their own neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_ROWS = 1024  # queries at a time


def prototype_scores(distances_N: Sequence[np.ndarray]) -> np.ndarray:
    """[n] float32: the mean over the clusterings of the distance to the own prototype. Coarse clusterings see
    what is unlike all groups; in a fine one an odd image may have a prototype of its own.
    """
    return np.stack(distances_N).astype(np.float64).mean(axis=0).astype(np.float32)


def neighbour_scores(
    vectors_ND: np.ndarray, neighbours: int, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """[n] float32: the Euclidean distance to the k-th nearest other image (Ramaswamy et al., SIGMOD 2000), to
    the farthest one where there are fewer. vectors_ND: unit vectors. N² · D products.
    """
    import faiss

    size = len(vectors_ND)
    scores, count = np.zeros(size, np.float32), min(neighbours, size - 1)
    if not count:
        return scores
    for start in range(0, size, _ROWS):
        queries = np.ascontiguousarray(vectors_ND[start : start + _ROWS])
        cosines, _ = faiss.knn(queries, vectors_ND, count + 1, metric=faiss.METRIC_INNER_PRODUCT)
        # the image itself is the nearest, or one that is equal to it
        scores[start : start + len(queries)] = np.sqrt(np.maximum(2 - 2 * cosines[:, count], 0))
        if progress:
            progress(min(start + _ROWS, size), size)
    return scores
