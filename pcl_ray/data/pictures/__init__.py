"""One picture: decoded, its margins cut, looked at, compared with others. None of it needs torch."""

__all__ = ["decoding", "looks", "margins", "twins"]
