"""What lies on disks of runs and sweeps: deleted, cleared of what nobody needs, archived in one file; and who
looks after a run whose driver is gone.
"""

__all__ = ["archive", "clearing", "deletion", "disk", "guardian"]
