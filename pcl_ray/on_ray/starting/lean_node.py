"""What is other in nodes of Ray that we start: where their workers come from, and that a Ray of our own has
three helpers less, each a Python process that loads for half a second to a second beside what the run waits
for, and that wakes up while it trains:

log monitor       carries what workers print to the driver, which shows nothing of it
dashboard's head  serves Ray's pages, for which nobody has the token; `ray.init` waits for it, too
monitor           asks an autoscaler for nodes: this machine does not grow

Of a Ray whose inside is another one, all are started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pcl_ray.on_ray.starting import warm_client

_HELPERS = ("start_log_monitor", "start_api_server", "start_monitor")  # methods of Ray's Node
# Parameters of a node: the scripts that its workers are started by, and by what these are replaced.
_SCRIPTS = {
    "worker_path": (warm_client.RAYS_SCRIPT, warm_client.SCRIPT),
    "setup_worker_path": (warm_client.RAYS_SETUP, warm_client.SETUP),
}


@contextmanager
def without_unused_helpers() -> Iterator[None]:
    """A block in which `ray.init` starts a Ray that ends with this process."""
    from ray._private.node import Node

    methods = {name: getattr(Node, name) for name in _HELPERS if callable(getattr(Node, name, None))}
    try:
        for name in methods:
            setattr(Node, name, _start_nothing)
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


@contextmanager
def workers_forked(folder: str | None) -> Iterator[None]:
    """A block in which a node of Ray that is started here starts its workers by `warm_client`, in the folder
    of the warm process; None: by its own script.

    Ray's setting for that, `py_executable` of a runtime environment, has a Python load half of Ray before
    each of them.
    """
    from ray._private.node import Node

    original: Any = getattr(Node, "start_raylet", None)
    if folder is None or original is None:
        yield
        return

    def start_raylet(node: Any, *words: Any, **options: Any) -> Any:
        parameters: Any = getattr(node, "_ray_params", None)
        if all(getattr(parameters, name, None) for name in _SCRIPTS):
            for name, (rays, ours) in _SCRIPTS.items():
                os.symlink(getattr(parameters, name), os.path.join(folder, rays))
                setattr(parameters, name, os.path.join(folder, ours))
        return original(node, *words, **options)

    Node.start_raylet = start_raylet  # type: ignore[method-assign]
    try:
        yield
    finally:
        Node.start_raylet = original  # type: ignore[method-assign]


def _start_nothing(node: Any, *_: Any, **__: Any) -> None:
    node._webui_url = ""  # which Ray asks every node for
