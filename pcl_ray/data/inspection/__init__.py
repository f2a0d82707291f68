"""All pictures of a data set, looked at before a run: which decode, which are copies, how large they are, how
little is to be seen on some.
"""

__all__ = ["headers", "looks_cache", "splitting", "summary"]
