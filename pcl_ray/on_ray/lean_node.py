"""A Ray of our own without three of its helpers, each a Python process that loads for half a second to a
second beside what the run waits for, and that wakes up while it trains:

log monitor       carries what workers print to the driver, which shows nothing of it
dashboard's head  serves Ray's pages, for which nobody has the token; `ray.init` waits for it, too
monitor           asks an autoscaler for nodes: this machine does not grow

Of a Ray whose inside is another one, all are started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HELPERS = ("start_log_monitor", "start_api_server", "start_monitor")  # methods of Ray's Node


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


def _start_nothing(node: Any, *_: Any, **__: Any) -> None:
    node._webui_url = ""  # which Ray asks every node for
