"""Checkpoints: what is in one (`run_state`, the only module here that needs torch), which files there are,
and how they come into the storage of a run and back.
"""

__all__ = ["epoch_files", "remote", "run_state"]
