"""An encoder in use: pictures in, embeddings and nearest prototypes out; collections of embeddings, and what
they are good for: searching, near-duplicates, outliers, samples to label, spreading labels.
"""

__all__ = ["collection", "embedder", "given_images", "inputs", "job", "parts", "served_model"]
