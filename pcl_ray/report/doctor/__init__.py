"""What the curves of a run mean, in plain words, and what to try: one rule looks at one thing."""

__all__ = ["diagnosis"]
