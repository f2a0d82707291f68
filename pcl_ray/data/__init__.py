"""Data sets with a stable index per image, their random views, and the loaders."""
