"""How a sweep is ended before its trials have."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pcl_ray.sweep.interruption import Interrupter, Interruption


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that Tune would have heard; what was set before a test is set after it."""
    numbers = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield []
    for number, handler in before.items():
        signal.signal(number, handler)


def listen_as_tune(heard: list[int]) -> None:
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))


def test_failures_end_the_loop_once_and_are_its_reason(heard: list[int]) -> None:
    with Interrupter(None) as interrupter:
        assert interrupter.first is None
        listen_as_tune(heard)
        interrupter.fail("4 trials failed")
        interrupter.fail("later")
    assert heard == [signal.SIGUSR1] * 2
    assert interrupter.first == Interruption("failures: 4 trials failed")
    assert interrupter.first.by_failures
    assert interrupter.first.failures == "4 trials failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_a_second_one_everything(number: int, heard: list[int]) -> None:
    with Interrupter(None) as interrupter:
        listen_as_tune(heard)
        os.kill(os.getpid(), number)
        assert interrupter.first == Interruption("stopped", number)
        assert not interrupter.first.by_failures
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert heard == [signal.SIGUSR1]


def test_what_came_before_tune_listened_is_repeated(heard: list[int]) -> None:
    with Interrupter(None) as interrupter:
        interrupter.repeat()  # nothing to repeat
        interrupter.fail("early")  # nobody listens, and the process goes on
        listen_as_tune(heard)
        interrupter.repeat()
    assert heard == [signal.SIGUSR1]


def test_a_spent_budget_ends_the_loop(heard: list[int]) -> None:
    with Interrupter(0.05) as interrupter:
        listen_as_tune(heard)
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
    assert interrupter.first == Interruption("the budget is spent")


def test_afterwards_signals_do_what_they_did(heard: list[int]) -> None:
    def before(number: int, frame: Any) -> None:
        heard.append(-number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, before)
    with Interrupter(60):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [-signal.SIGTERM, -signal.SIGUSR1]


def test_outside_of_the_main_thread_an_interruption_is_noted_only(heard: list[int]) -> None:
    listen_as_tune(heard)
    found: list[Interruption | None] = []

    def run() -> None:
        with Interrupter(None) as interrupter:
            interrupter.fail("many")
            interrupter.repeat()
            found.append(interrupter.first)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert found == [Interruption("failures: many")]
    assert heard == []
