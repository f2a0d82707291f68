"""Pictures decoded into one array, and the arrays that are kept for the next run."""

__all__ = ["decoded_cache", "in_memory"]
