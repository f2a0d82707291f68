"""Checkpoints: what is in one (`run_state`, the only module here that needs torch), which files there are,
how they come into the storage of a run and back, and who writes them beside the training.
"""

__all__ = ["background", "epoch_files", "remote", "run_state"]
