"""Whether faiss is installed, and what it can use: for checks of a machine."""

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
    if not gpus:
        return f"faiss {faiss.__version__}, no GPU"
    return f"faiss {faiss.__version__}, {gpus} GPU{'s' if gpus > 1 else ''}"
