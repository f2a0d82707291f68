"""The embedder: pictures in, embeddings and nearest prototypes out, as MLflow serves it."""

__all__ = ["embedder", "served_model"]
