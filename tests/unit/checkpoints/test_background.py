"""Writing beside the training: one at a time, and what went wrong is learned where it is waited for."""

from __future__ import annotations

import threading

import pytest

from pcl_ray.checkpoints.background import BackgroundWriter
from pcl_ray.errors import RunFailed


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
    while writer._thread is not None and writer._thread.is_alive():
        pass
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
