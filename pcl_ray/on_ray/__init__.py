"""What puts a run on Ray: environment and connection, its turn on a shared cluster, workers and actors.

The submodules load Ray, and `launch` torch: whoever needs one imports it when it is needed.
"""

__all__ = [
    "connection",
    "current_job",
    "embedding",
    "environment",
    "launch",
    "local_head_record",
    "metrics",
    "neighbour_tasks",
    "node_checks",
    "processes",
    "reserving",
    "shared_memory",
    "starting",
]
