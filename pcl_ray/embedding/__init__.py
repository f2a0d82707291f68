"""An encoder in use: pictures in, embeddings and nearest prototypes out; collections of embeddings, and what
they are good for: searching, near-duplicates, outliers, samples to label, spreading labels.
"""

__all__ = [
    "collection",
    "conversion",
    "duplicates",
    "embedder",
    "index",
    "inputs",
    "job",
    "labelling",
    "memberships",
    "outliers",
    "parts",
    "served_model",
]
