"""Whether faiss is here, and what it can use: for checks of a machine."""

from __future__ import annotations


def faiss_state() -> str:
    """`faiss 1.15.1, 1 GPU`, `…, no GPU` where it finds none, or `…, CPU only` where it is built without.
    Raises ImportError where it cannot be imported.
    """
    import faiss

    count = getattr(faiss, "get_num_gpus", None)
    if not hasattr(faiss, "StandardGpuResources") or count is None:
        return f"faiss {faiss.__version__}, CPU only"
    gpus = count()
    return f"faiss {faiss.__version__}, {f'{gpus} GPU' + 's' * (gpus > 1) if gpus else 'no GPU'}"
