"""The errors that reach a user as one plain message; everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake in a request: which knob, the value given, and what to do about it."""

    name: str  # dotted name of the knob, e.g. "loss.temperature"
    value: object
    message: str  # what is allowed, or the way out; one sentence

    def __str__(self) -> str:
        value = repr(self.value)
        shown = value if len(value) <= 80 else value[:77] + "..."
        return f"{self.name} = {shown}: {self.message}"


class ConfigError(ValueError):
    """The request was wrong (exit code 2). `problems` lists every mistake found, not only the first."""

    def __init__(self, problems: Sequence[Problem] | str):
        self.problems = () if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, problems)))


class DataError(ValueError):
    """The data are missing, unreadable or do not fit together (exit code 2)."""


class RunFailed(RuntimeError):
    """A run that had started could not go on (exit code 1). The message says where, why, and what is kept."""


class NotFinite(RunFailed):
    """Loss or weights are not finite: going on from here is of no use, from an earlier state perhaps."""


class OutOfMemory(RunFailed):
    """The memory of one worker was not enough: the others do not know of it, and may have had enough."""


class Stopped(Exception):
    """A command was told to stop by Ctrl-C or SIGTERM; what it had written stands. how_to_go_on: ends the
    sentence that the user reads.
    """

    def __init__(self, how_to_go_on: str, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped; {how_to_go_on}")
