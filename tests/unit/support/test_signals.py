from __future__ import annotations

import os
import signal
import threading

import pytest

from pcl_ray.errors import Stopped
from pcl_ray.support.signals import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_first_and_then_ends_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    calls: list[str] = []
    with (
        pytest.raises(Stopped, match="pcl-ray train --resume one") as stopped,
        stopped_by_signals("one", lambda: calls.append("told")),
    ):
        os.kill(os.getpid(), number)
    assert calls == ["told"]
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_block_that_ends_by_itself_leaves_the_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals("one", pytest.fail):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_than_the_main_one_listens_for_nothing() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def block() -> None:
        with stopped_by_signals("one"):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join(30)
    assert during == [before]
