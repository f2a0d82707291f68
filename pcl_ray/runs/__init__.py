"""One run from request to result: its folder, its driver, what is shown of it, and what it leaves.

`request`, `folder` and `fork` need no torch before they train: a mistake shows within a second.
"""

__all__ = [
    "console",
    "driver",
    "evaluation",
    "event_router",
    "final_artifacts",
    "folder",
    "fork",
    "gallery",
    "preparation",
    "record_reader",
    "request",
    "storage_mirror",
    "upkeep",
]
