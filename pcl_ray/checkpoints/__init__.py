"""Checkpoints: what is in one (`run_state`, the only module here that needs torch), which files there are,
and the storages that hold them beside the folder of a run.
"""

__all__ = ["epoch_files", "remote", "run_state", "storage", "storage_address"]
