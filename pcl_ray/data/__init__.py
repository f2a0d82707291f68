"""Data sets with a stable index per image, their random views, and the loaders."""

__all__ = [
    "colour",
    "datasets",
    "evaluation_view",
    "folders",
    "images",
    "loaders",
    "reading",
    "reference_views",
    "views",
]
