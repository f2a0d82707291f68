"""Epochs that another thread trains."""

from __future__ import annotations

import threading

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.sweep.trials.epoch_thread import EpochThread
from pcl_ray.training.events import Event, Post


def test_epochs_in_a_thread_come_one_by_one_and_bring_the_failure() -> None:
    seen: list[Event] = []

    def train(put: Post) -> None:
        for epoch in range(2):
            put(Event("step", epoch))
            put(Event("epoch", epoch))
        raise RunFailed("over")

    epochs_done = EpochThread(train, seen.append, limit_s=30)
    assert [next(epochs_done), next(epochs_done)] == [1, 2]
    with pytest.raises(RunFailed, match="over"):
        next(epochs_done)
    assert [event.kind for event in seen] == ["step", "epoch"] * 2


def test_epochs_in_a_thread_that_say_nothing_do_not_hang() -> None:
    never = threading.Event()
    epochs_done = EpochThread(lambda put: never.wait(60) and None, lambda event: None, limit_s=0.2)
    with pytest.raises(RunFailed, match="no sign of life"):
        next(epochs_done)
    never.set()


def test_an_iteration_ends_with_the_training() -> None:
    epochs_done = EpochThread(lambda put: put(Event("epoch", 4)), lambda event: None, limit_s=30)
    assert list(epochs_done) == [5]
