"""pcl_ray: Prototypical Contrastive Learning on Ray.

    import pcl_ray

    run = pcl_ray.train("digits", {"loss.temperature": 0.1}, name="mine")
    run = pcl_ray.open_run("mine")

docs/api.md has the rest. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pcl_ray.support.machine import let_idle_threads_sleep

if TYPE_CHECKING:
    from pcl_ray.api import Run, RunClustering, fork, open_run, resume, train

let_idle_threads_sleep()  # in every process, before it loads torch

__version__ = "0.1.0"
__all__ = ["Run", "RunClustering", "__version__", "fork", "open_run", "resume", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name == "sweep":  # a room that is called like a function: see its __init__
        return importlib.import_module("pcl_ray.sweep")
    if name in __all__:
        return getattr(importlib.import_module("pcl_ray.api"), name)
    raise AttributeError(f"module 'pcl_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
