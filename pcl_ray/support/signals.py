"""Ctrl-C at a terminal, and SIGTERM from `ray job stop` and from whoever shuts a machine down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pcl_ray.errors import Stopped

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_INSISTING = 3  # signals


@contextmanager
def stopped_by_signals(
    how_to_go_on: str, on_stop: Callable[[], None] = lambda: None, *, then_deaf: bool = False
) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `on_stop` and then end the block with Stopped, which says how to go
    on. A second one changes nothing: what the first has begun, such as the end of Ray, is not to be
    cut off. A third ends that as well. In another thread than the main one, which alone may listen for
    signals, this does nothing.

    then_deaf: after a block that was ended so, signals are not heard, until `heard_as_before` ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def stop(number: int, _: Any) -> None:
        nonlocal count
        count += 1
        if count == 1:
            on_stop()
        if count in (1, _INSISTING):
            raise Stopped(how_to_go_on, number)

    earlier_handlers = {number: signal.signal(number, stop) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, signal.SIG_IGN if then_deaf and count else handler)


@contextmanager
def heard_as_before() -> Iterator[None]:
    """Gives signals their handlers back at the end of the block, whatever it has put in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier_handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def ignore() -> None:
    """What ends this process is not cut off by another signal."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
