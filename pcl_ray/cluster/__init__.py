"""What a user starts and asks on a cluster: the local head, jobs, their status, the machine check.

The commands import the submodule that they need: each loads other libraries.
"""

__all__ = ["head_processes", "local_head", "machine_check", "ray_api", "status", "submit"]
