"""Sweeps: Ray Tune over the knobs of a run. `space` says what is searched, `trials` runs in the process of
each trial, `results` is what a sweep ends with.
"""

__all__ = ["driver", "dry_run", "request", "results", "space", "trials", "tune_run"]
