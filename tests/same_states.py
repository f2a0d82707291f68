"""Whether two states of a run are the same, bit by bit, but for what a clock measured."""

from __future__ import annotations

from typing import Any

import torch

_OF_A_CLOCK = ("seconds", "per_second", "minutes", "share", "memory", "perf/", "waited", "data_")


def assert_equal(a: Any, b: Any, at: str = "") -> None:
    """at: where in the states, for the message."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        names = [name for name in a if not _is_of_a_clock(name)]
        others = {name for name in b if not _is_of_a_clock(name)}
        assert set(names) == others, f"{at}: {set(names) ^ others}"
        for name in names:
            assert_equal(a[name], b[name], f"{at}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{at}[{number}]")
    else:
        assert a == b, at


def _is_of_a_clock(name: object) -> bool:
    return isinstance(name, str) and any(word in name for word in _OF_A_CLOCK)
