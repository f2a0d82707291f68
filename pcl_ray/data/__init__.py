"""Data sets with a stable index per image, their random views, and the loaders."""

__all__ = [
    "colour",
    "datasets",
    "evaluation_view",
    "folders",
    "images",
    "label_sets",
    "loaders",
    "reading",
    "reference_views",
    "sources",
    "views",
]
