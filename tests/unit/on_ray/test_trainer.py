"""The trainer of a run: the lean one, and Ray's own where Ray's inside is not the one that is known."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_training import SmallTraining

from pcl_ray.errors import Stopped
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from pcl_ray.on_ray import launch  # noqa: E402
from pcl_ray.on_ray.processes.worker_input import WorkerInput  # noqa: E402
from pcl_ray.support import signals  # noqa: E402


@pytest.fixture
def worker_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerInput:
    for name in ("HEALTH_CHECK_INTERVAL_S", "WORKER_GROUP_START_TIMEOUT_S", "COLLECTIVE_TIMEOUT_S"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}", "30")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    small = SmallTraining.of("resources.workers=2")
    nothing: Any = None
    return WorkerInput(small.task(tmp_path), nothing, nothing, nothing, tmp_path, ())


def test_the_helpers_that_a_run_has_no_use_for_are_left_out(worker_input: WorkerInput) -> None:
    alone, shared = (launch._trainer(worker_input, 2, shared=shared) for shared in (False, True))
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    for trainer, missing in ((alone, left_out), (shared, {"DatasetsCallback"})):
        every = {type(made).__name__ for made in super(type(trainer), trainer)._create_default_callbacks()}
        own = {type(made).__name__ for made in trainer._create_default_callbacks()}
        assert every - own == missing & every
        assert "DatasetsCallback" in every


def test_a_ray_with_another_inside_has_all_its_helpers(
    worker_input: WorkerInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.torch import TorchTrainer

    monkeypatch.setitem(sys.modules, "pcl_ray.on_ray.processes.trainer", None)
    assert isinstance(launch._trainer(worker_input, 2, shared=False), TorchTrainer)


class WaitingTrainer:
    """Trains until it is ended, as far as the thread can tell that waits for it."""

    def __init__(self) -> None:
        self.began, self.told, self.left = threading.Event(), threading.Event(), threading.Event()

    def fit(self) -> None:
        self.began.set()
        assert self.told.wait(60)
        self.left.set()
        raise RuntimeError("the controller is gone")

    def end(self) -> None:
        self.told.set()


@pytest.mark.parametrize("while_it_waits", [True, False])
def test_a_run_that_is_stopped_leaves_no_thread_that_waits_for_ray(
    while_it_waits: bool, worker_input: WorkerInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's library is shut down next, and would free what such a thread reads."""
    trainer, checked = WaitingTrainer(), threading.Event()

    def check() -> None:
        assert trainer.began.wait(60)
        checked.set()
        if not while_it_waits:
            signal.raise_signal(signal.SIGTERM)

    def send() -> None:
        assert checked.wait(60)
        time.sleep(0.1)  # the main thread is in its wait by now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    actors, fake = SimpleNamespace(check=check), SimpleNamespace
    monkeypatch.setattr(launch, "_handle_events", lambda board, handle: True)
    if while_it_waits:
        threading.Thread(target=send, daemon=True).start()
    arguments: Any = (trainer, fake(task=worker_input.task, board=None, positions=None), actors)
    with pytest.raises(Stopped), signals.stopped_by_signals("mine"):
        launch._fit(*arguments, lambda event: None, lambda: False)
    assert trainer.left.is_set()
