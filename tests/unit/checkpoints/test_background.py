"""Writing beside the training: one at a time, and what went wrong is learned where it is waited for."""

from __future__ import annotations

import signal
import threading
import time
from concurrent import futures

import pytest

from pcl_ray.checkpoints.background import BackgroundWriter
from pcl_ray.errors import RunFailed, Stopped
from pcl_ray.support import signals


def test_it_writes_beside_what_follows() -> None:
    writer, go_on, done = BackgroundWriter(), threading.Event(), []
    assert writer.is_safe
    writer.start(lambda: (go_on.wait(60), done.append(1))[1])
    assert not writer.is_safe
    assert done == []
    go_on.set()
    assert writer.wait() == ""
    assert writer.is_safe
    assert done == [1]
    assert writer.wait() == ""  # nothing is under way


def test_why_it_failed_is_told_once() -> None:
    def full() -> None:
        raise RunFailed("no space left")

    writer = BackgroundWriter()
    writer.start(full)
    assert writer._written is not None
    futures.wait([writer._written], 60)
    assert not writer.is_safe  # done, and not written
    assert writer.wait() == "no space left"
    assert writer.wait() == ""
    assert writer.is_safe


def test_a_mistake_of_ours_is_raised_as_it_is() -> None:
    writer = BackgroundWriter()
    writer.start(lambda: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        writer.wait()


def test_two_at_once_are_refused() -> None:
    writer, go_on = BackgroundWriter(), threading.Event()
    writer.start(lambda: go_on.wait(60) and None)
    with pytest.raises(AssertionError, match="is being written"):
        writer.start(lambda: None)
    go_on.set()
    writer.wait()


def test_a_signal_that_ends_the_wait_leaves_the_write_to_be_waited_for() -> None:
    writer, begun, go_on, done = BackgroundWriter(), threading.Event(), threading.Event(), []

    def write() -> None:
        begun.set()
        assert go_on.wait(60)
        done.append(1)

    def interrupt() -> None:
        assert begun.wait(60)
        time.sleep(0.2)  # the main thread waits by now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    writer.start(write)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped), signals.stopped_by_signals("mine"):
        writer.wait()
    assert not writer.is_safe
    threading.Timer(0.2, go_on.set).start()
    assert writer.wait() == ""
    assert done == [1]
    assert writer.is_safe
