"""Being told to stop: Ctrl-C at a terminal, SIGTERM from `ray job stop` and from whoever shuts a machine
down.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """The run or sweep was told to stop (Ctrl-C, SIGTERM); its last checkpoint stands."""

    def __init__(self, name: str, signal_number: int, verb: str = "train"):
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped; go on with: pcl-ray {verb} --resume {name}")


@contextmanager
def stopped_by_signals(name: str, told: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with Stopped (only the main thread may listen for signals); `told`
    hears of it first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        told()
        raise Stopped(name, number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
