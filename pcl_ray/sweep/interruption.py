"""How a sweep is ended before all of its trials have: by a signal, by its budget, by too many failures."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interruption:
    """Why Tune came back before every trial had ended. signal_number: of the signal that did it, else 0."""

    reason: str
    signal_number: int = 0

    @property
    def by_failures(self) -> bool:
        return self.reason.startswith(_FAILURES)

    @property
    def failures(self) -> str:
        """What failed, where that was the cause."""
        return self.reason.removeprefix(_FAILURES)


_FAILURES = "failures: "


class Interrupter:
    """Inside of a `with` block, ends Tune's loop in a way that it can be resumed from: after the budget, on
    Ctrl-C and SIGTERM, or by `fail`. Tune listens to SIGUSR1 for that; a second Ctrl-C or SIGTERM ends the
    block at once by KeyboardInterrupt.

    Only the main thread can receive signals: in another one, nothing is ended, but still noted.
    """

    def __init__(self, budget_s: float | None):
        self._interruptions: list[Interruption] = []
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._handlers_before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        if budget_s:
            self._timer = threading.Timer(budget_s, self._end, (Interruption("the budget is spent"),))
            self._timer.daemon = True

    @property
    def first(self) -> Interruption | None:
        """What ended the loop; None where it came to its own end."""
        return self._interruptions[0] if self._interruptions else None

    def fail(self, reason: str) -> None:
        """Ends the loop because of failures."""
        self._end(Interruption(f"{_FAILURES}{reason}"))

    def repeat(self) -> None:
        """Sends Tune the signal once more where the end is wanted already: a signal that came before Tune
        listened was not heard.
        """
        if self._interruptions:
            self._signal_tune()

    def __enter__(self) -> Interrupter:
        if self._in_main_thread:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._listen(number, self._on_signal)
            # Tune replaces this handler by its own; until then the signal must not end the process.
            self._listen(signal.SIGUSR1, lambda number, frame: None)
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _listen(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self._handlers_before[number] = signal.signal(number, handler)

    def _on_signal(self, number: int, _: Any) -> None:
        if any(interruption.signal_number for interruption in self._interruptions):
            raise KeyboardInterrupt
        self._end(Interruption("stopped", number))

    def _end(self, interruption: Interruption) -> None:
        self._interruptions.append(interruption)
        self._signal_tune()

    def _signal_tune(self) -> None:
        if self._in_main_thread:
            os.kill(os.getpid(), signal.SIGUSR1)
