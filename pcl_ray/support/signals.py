"""Ctrl-C at a terminal, and SIGTERM from `ray job stop` and from whoever shuts a machine down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pcl_ray.errors import Stopped


@contextmanager
def stopped_by_signals(name: str, on_stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `on_stop` and then end the block with Stopped, which tells how to go on with
    run `name`. In another thread than the main one, which alone may listen for signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        on_stop()
        raise Stopped(name, number)

    earlier_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)
