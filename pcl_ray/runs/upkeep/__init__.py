"""What lies on disks of runs and sweeps: deleted, cleared of what nobody needs, archived in one file."""

__all__ = ["archive", "clearing", "deletion", "disk"]
