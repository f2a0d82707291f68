from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from small import DIGITS_RUN

from pcl_ray import plan as plans
from pcl_ray.config import load
from pcl_ray.config.figures import EPOCH_SECONDS, KNN_TOP1, LOSS
from pcl_ray.runs import event_router
from pcl_ray.runs.console import Display
from pcl_ray.runs.event_router import EventRouter
from pcl_ray.runs.folder import RunFolder
from pcl_ray.tracking import WAITS_TAG
from pcl_ray.training.events import Event

CONFIG = load("digits", DIGITS_RUN)
PLAN = plans.make(CONFIG, 300, 60)


class RecordingTracker:
    """An MLflow run that gets its number when it is given one."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.dropped = 0
        self.logged: list[tuple[dict[str, float], int]] = []
        self.tags: dict[str, str] = {}
        self.announced = ""
        self.released = False

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((metrics, step))

    def tag(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def link(self) -> str:
        return "http://server/run"

    def announce(self, state: str) -> None:
        self.announced = state

    def release(self) -> None:
        self.released = True


class RecordingGallery:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def handle(self, event: Event) -> None:
        self.kinds.append(event.kind)


@pytest.fixture
def folder() -> Iterator[RunFolder]:
    with RunFolder.create("one", CONFIG) as folder:
        yield folder


@pytest.fixture
def parts(folder: RunFolder) -> tuple[EventRouter, Any, Any, io.StringIO]:
    """A router, and its tracker, gallery and screen."""
    tracker, gallery, out = RecordingTracker(), RecordingGallery(), io.StringIO()
    display = Display(out)
    display.begin(PLAN)
    router = EventRouter(tracker, display, folder, PLAN, gallery)  # type: ignore[arg-type]
    return router, tracker, gallery, out


def test_figures_go_to_the_tracker_and_progress_to_the_state(parts: Any, folder: RunFolder) -> None:
    router, tracker, gallery, _ = parts
    metrics = {LOSS.name: 2.0, KNN_TOP1.name: 0.5, "perf/epoch_seconds": 3.0}
    for event in (Event("step", 0, 1, {LOSS.name: 3.0}), Event("epoch", 0, 3, metrics), Event("alive")):
        router.handle(event)
    assert tracker.logged == [({LOSS.name: 3.0}, 1), (metrics, 3)]
    assert gallery.kinds == ["step", "epoch", "alive"]
    progress = folder.read_state()["progress"]
    assert (progress["epoch"], progress["epochs"], progress["left_s"]) == (1, 4, 9.0)
    assert (progress["figure"], progress["value"]) == (KNN_TOP1.name, 0.5)


def test_mlflow_begins_with_the_first_step_whose_time_is_written_down(parts: Any, folder: RunFolder) -> None:
    router, tracker, _, _ = parts
    events = [Event("phase", text="Ray to start"), Event("start"), Event("alive"), Event("alive")]
    for event in events[:2]:
        router.handle(event)
    assert not tracker.released
    for event in events[2:]:
        router.handle(event)
    assert tracker.released
    written = {"Ray to start": events[0].at, "training": events[1].at, "first step": events[2].at}
    assert folder.read_state()["start"] == written


def test_a_run_that_waits_for_its_turn_is_in_mlflow(parts: Any) -> None:
    router, tracker, _, _ = parts
    router.handle(Event("waiting", text="waiting for 2 GPUs"))
    assert tracker.released


def test_without_labels_progress_shows_the_loss() -> None:
    assert event_router.progress(Event("epoch", 0, 3, {LOSS.name: 2.0}), PLAN)["figure"] == LOSS.name


def test_what_a_run_does_is_written_down_when_it_changes(parts: Any, folder: RunFolder) -> None:
    router = parts[0]
    seen = []
    for event in (
        Event("phase", text="2 workers to start"),
        Event("start"),
        Event("phase", text="features"),
        Event("phase", text="clustering"),
        Event("alive"),
        Event("epoch", 0, 3, {LOSS.name: 2.0, EPOCH_SECONDS.name: 1.0}),
    ):
        router.handle(event)
        seen.append(folder.read_state()["phase"])
    assert seen == ["starting", "training", "features", "clustering", "training", "training"]


def test_waiting_is_recorded_until_it_is_over(parts: Any, folder: RunFolder) -> None:
    router, tracker, _, out = parts
    router.handle(Event("waiting", text="waiting for 2 GPUs"))
    since = folder.read_state()["waits_since"]
    router.handle(Event("waiting", text="waiting for 2 GPUs; 1 min so far"))
    state = folder.read_state()
    assert (state["waits_for"], state["waits_since"]) == ("waiting for 2 GPUs; 1 min so far", since)
    assert tracker.tags == {WAITS_TAG: "waiting for 2 GPUs; 1 min so far"}
    router.handle(Event("waiting", text=""))
    assert folder.read_state()["waits_since"] is None
    assert out.getvalue().splitlines()[-1] == "there is room now"


def test_the_number_of_the_run_is_recorded_as_soon_as_there_is_one(parts: Any, folder: RunFolder) -> None:
    router, tracker, _, out = parts
    router.handle(Event("alive"))
    assert "mlflow_run_id" not in folder.read_state()
    tracker.run_id = "abc"
    for _ in range(2):
        router.handle(Event("alive"))
    assert folder.read_state()["mlflow_run_id"] == "abc"
    assert out.getvalue().count("dashboard  http://server/run") == 1


def test_workers_that_were_replaced_are_told(parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    router, *_ = parts
    router.handle(Event("start", 0))
    assert capsys.readouterr().err == ""
    router.handle(Event("start", 2))
    assert "workers were lost and replaced; going on from epoch 3" in capsys.readouterr().err


def test_a_stop_is_said_at_once(parts: Any, folder: RunFolder) -> None:
    router, tracker, *_ = parts
    router.announce_stop()
    assert folder.read_state()["state"] == "stopped"
    assert tracker.announced == "stopped"
