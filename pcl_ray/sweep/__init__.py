"""Sweeps: Ray Tune over the knobs of a run."""
