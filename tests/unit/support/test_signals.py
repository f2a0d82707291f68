from __future__ import annotations

import os
import signal
import threading

import pytest

from pcl_ray.errors import Stopped
from pcl_ray.support.signals import heard_as_before, stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_first_and_then_ends_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    calls: list[str] = []
    with (
        pytest.raises(Stopped, match="^stopped; go on with: this$") as stopped,
        stopped_by_signals("go on with: this", lambda: calls.append("told")),
    ):
        os.kill(os.getpid(), number)
    assert calls == ["told"]
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_block_that_ends_by_itself_leaves_the_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals("go on", pytest.fail):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_than_the_main_one_listens_for_nothing() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def block() -> None:
        with stopped_by_signals("go on"):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join(30)
    assert during == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_second_signal_does_not_cut_off_what_the_first_has_begun_and_a_third_does(
    number: signal.Signals, times: int
) -> None:
    reached: list[int] = []

    def ends_in_the_end() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            for further in range(times):
                os.kill(os.getpid(), number)
                reached.append(further)

    with pytest.raises(Stopped), stopped_by_signals("go on"):
        ends_in_the_end()
    assert reached == [0]


def test_after_a_stop_signals_are_not_heard_until_all_is_done() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with heard_as_before():
        with pytest.raises(Stopped), stopped_by_signals("go on", then_deaf=True):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # between two blocks
        with pytest.raises(Stopped), stopped_by_signals("go on", then_deaf=True):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
