"""The number of workers of a run that may have fewer: which one, after what, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from planned import config_of

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.errors import RunFailed
from pcl_ray.on_ray.reserving import elastic
from pcl_ray.on_ray.reserving.bundles import Bundle
from pcl_ray.on_ray.reserving.elastic import RayCluster, WorkersLost
from pcl_ray.training.events import Event


class Nodes(RayCluster):
    """Nodes with so many CPUs each, of which a worker that trains has one. A question takes a second."""

    def __init__(self, *cpus: int):
        self.cpus, self.workers = list(cpus), 0
        self.now = 0.0
        self.demands: list[int] = []

    def nodes(self) -> list[Mapping[str, float]]:
        return [{"CPU": float(cpus)} for cpus in self.cpus]

    def free(self) -> Mapping[str, float]:
        return {"CPU": float(sum(self.cpus) - self.workers)}

    def grants(self, bundles: Sequence[Bundle], wait_s: float) -> bool:
        self.now += 1
        return len(bundles) <= sum(self.cpus) - self.workers

    def demand(self, bundles: Sequence[Bundle]) -> int:
        self.demands.append(len(bundles))
        return len(bundles)

    def meets(self, demand: int, wait_s: float) -> bool:
        return demand <= sum(self.cpus) - self.workers

    def drop(self, demand: int) -> None:
        self.demands.remove(demand)

    def monotonic(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes(4, 4)
    monkeypatch.setattr(elastic.time, "monotonic", made.monotonic)
    monkeypatch.setattr(elastic, "LOOK_EVERY_S", 0.0)
    return made


EIGHT: RunConfig = config_of(resources__workers=[2, 8], train__batch_size=120, resources__max_failures=2)
Course = Callable[[int, Callable[[], bool]], bool]


def workers_of(nodes: Nodes, *courses: Course, config: RunConfig = EIGHT) -> tuple[list[int], list[str]]:
    """With how many workers each start trains, and what is said. A course: what happens in one."""
    starts, said, left = [], [], list(courses)

    def fit(workers: int, more_room: Callable[[], bool]) -> bool:
        starts.append(workers)
        nodes.workers = workers
        try:
            return left.pop(0)(workers, more_room)
        finally:
            nodes.workers = 0

    elastic.train(config, fit, lambda event: said.append(f"{event.kind}: {event.text}"), nodes)
    assert not left
    return starts, said


def ends(workers: int, more_room: Callable[[], bool]) -> bool:
    return True


def test_a_cluster_with_room_for_all_gives_all(nodes: Nodes) -> None:
    assert workers_of(nodes, ends) == ([8], [])


def test_only_numbers_that_divide_a_batch(nodes: Nodes) -> None:
    nodes.cpus = [4, 3]
    starts, said = workers_of(nodes, ends)
    assert starts == [6]  # of 120 images
    assert said == ["warning: room for 6 of 8 workers; more join at an epoch's end"]


def test_a_lost_node_takes_its_workers_and_a_new_one_brings_them_back(nodes: Nodes) -> None:
    def loses_a_node(workers: int, more_room: Callable[[], bool]) -> bool:
        nodes.cpus = [4]
        raise WorkersLost("worker 5 was lost\nand more")

    def gets_one(workers: int, more_room: Callable[[], bool]) -> bool:
        assert not more_room()
        nodes.cpus = [4, 4]
        assert more_room()
        return False

    starts, said = workers_of(nodes, loses_a_node, gets_one, ends)
    assert starts == [8, 4, 8]
    assert said == [
        "warning: worker 5 was lost; going on from the newest checkpoint",
        "warning: room for 4 of 8 workers; more join at an epoch's end",
        "warning: going on with 8 workers instead of 4",
    ]


def test_a_killed_worker_is_replaced_once_its_place_is_free(nodes: Nodes) -> None:
    """The number stays, though at first there is no room for it."""

    def is_killed(workers: int, more_room: Callable[[], bool]) -> bool:
        granted = nodes.grants
        late = [False, False]
        nodes.grants = lambda bundles, wait_s: late.pop() if late else granted(bundles, wait_s)  # type: ignore[method-assign]
        raise WorkersLost("worker 1 was killed")

    assert workers_of(nodes, is_killed, ends)[0] == [8, 8]


def test_too_many_failures_end_the_run(nodes: Nodes) -> None:
    def fails(workers: int, more_room: Callable[[], bool]) -> bool:
        raise WorkersLost(f"{workers} failed")

    with pytest.raises(WorkersLost, match="8 failed"):
        workers_of(nodes, fails, fails, fails)


def test_room_for_too_few_is_waited_for_and_then_given_up(nodes: Nodes) -> None:
    nodes.cpus = [1]
    with pytest.raises(RunFailed) as caught:
        workers_of(nodes, ends, config=config_of(resources__workers=[2, 4], resources__start_timeout_s=60))
    assert str(caught.value) == "no room for 2 workers (2 CPUs) within resources.start_timeout_s = 60 s"
    assert nodes.now > 60


def test_room_that_comes_while_it_is_waited_for(nodes: Nodes) -> None:
    nodes.cpus = [1]
    said: list[Event] = []

    def handle(event: Event) -> None:
        said.append(event)
        nodes.cpus = [1, 1]

    elastic.train(config_of(resources__workers=[2, 4]), ends, handle, nodes)
    assert [(event.kind, event.text) for event in said] == [
        ("waiting", "waiting for room for 2 workers (2 CPUs)"),
        ("waiting", ""),
        ("warning", "room for 2 of 4 workers; more join at an epoch's end"),
    ]


def test_an_autoscaler_is_told_what_is_missing_until_it_is_there(nodes: Nodes) -> None:
    nodes.cpus = [4]

    def waits(workers: int, more_room: Callable[[], bool]) -> bool:
        assert nodes.demands == [4]
        assert not more_room()
        nodes.cpus = [4, 4]
        assert more_room()
        return False

    def has_all(workers: int, more_room: Callable[[], bool]) -> bool:
        assert nodes.demands == []
        return True

    config = configs.with_overrides(EIGHT, {"resources.autoscaling": True})
    assert workers_of(nodes, waits, has_all, config=config)[0] == [4, 8]


@pytest.mark.parametrize(
    ("workers", "elastic_run"), [(0, False), (4, False), ([4, 4], False), ([3, 4], False), ([1, 4], True)]
)
def test_which_runs_are_elastic(workers: object, elastic_run: bool) -> None:
    assert elastic.is_elastic(config_of(resources__workers=workers)) is elastic_run
