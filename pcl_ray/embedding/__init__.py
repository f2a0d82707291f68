"""An encoder in use: pictures in, embeddings and nearest prototypes out; collections of embeddings, and what
they are good for: searching, near-duplicates, outliers, samples to label, spreading labels.
"""

__all__ = [
    "collection",
    "duplicates",
    "embedder",
    "given_images",
    "index",
    "inputs",
    "job",
    "labelling",
    "memberships",
    "outliers",
    "parts",
    "served_model",
]
