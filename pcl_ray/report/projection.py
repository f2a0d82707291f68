"""Projects features to the two dimensions of a map: by UMAP where it is installed, else by t-SNE; to the
first principal components where there are too few for either.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

_FEWEST = 12
_FIRST_PASSES, _NEXT_PASSES = 500, 300  # a map that goes on from the last one is nearly there
_SPREAD = 1e-4  # of the coordinates to begin with, as t-SNE wants them


def project(features_nC: np.ndarray, before: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """[n, 2] float32 and the method's name. before: another epoch's coordinates to start from, to compare."""
    features = np.nan_to_num(features_nC.astype(np.float32))
    start = before if before is not None and before.shape == (len(features), 2) else None
    components = _components(features)
    if len(features) < _FEWEST or not components.any():
        return components, "PCA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads and randomness, which are as wanted
        if importlib.util.find_spec("umap") is not None:
            return _umap(features, start), "UMAP"
        return _t_sne(features, start, components), "t-SNE"


def _components(features: np.ndarray) -> np.ndarray:
    """[n, 2]: the first principal components."""
    centred = features - features.mean(axis=0) if len(features) else features
    if min(centred.shape) < 2:
        return np.zeros((len(features), 2), np.float32)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return (left[:, :2] * values[:2]).astype(np.float32)


def _t_sne(features: np.ndarray, start: np.ndarray | None, components: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    first = components if start is None else start
    init = (first / max(float(first[:, 0].std()), 1e-12) * _SPREAD).astype(np.float32)
    passes = _FIRST_PASSES if start is None else _NEXT_PASSES
    method = TSNE(
        2, perplexity=min(30.0, (len(features) - 1) / 3), init=init, max_iter=passes, random_state=0, n_jobs=1
    )
    # of this thread: its helpers would wait for cores that training has
    with threadpool_limits(1, user_api="openmp"):
        return method.fit_transform(features)


def _umap(features: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    import umap  # pyrefly: ignore[missing-import]

    init = "spectral" if start is None else start
    return umap.UMAP(
        n_neighbors=min(15, len(features) - 1), metric="cosine", init=init, random_state=0, n_jobs=1
    ).fit_transform(features)
