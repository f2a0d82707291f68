"""Data sets with a stable index per image, their random views, and the loaders."""

__all__ = [
    "colour",
    "datasets",
    "decoded",
    "evaluation_view",
    "folders",
    "images",
    "inspection",
    "label_sets",
    "loaders",
    "pictures",
    "reading",
    "reference_views",
    "sources",
    "views",
]
