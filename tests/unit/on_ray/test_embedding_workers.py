"""Workers for embedding: what each reserves, and how long their parts are waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.on_ray.embedding import WorkerShape, _queued, worker_shape


@pytest.mark.parametrize(
    ("resources", "parts", "workers", "expected"),
    [
        ({"CPU": 8, "memory": 1e11}, 100, None, WorkerShape(8, 1, 0.0)),
        ({"CPU": 64, "memory": 6e9}, 100, None, WorkerShape(4, 16, 0.0)),  # as many as fit into memory
        ({"CPU": 8, "memory": 1e11}, 2, None, WorkerShape(2, 4, 0.0)),
        ({"CPU": 2, "memory": 1e11}, 100, 4, WorkerShape(4, 0.5, 0.0)),
        ({"CPU": 16, "GPU": 4, "memory": 1e9}, 100, None, WorkerShape(4, 4, 1.0)),
        ({"CPU": 16, "GPU": 1}, 100, 2, WorkerShape(2, 8, 0.5)),
        ({"CPU": 1, "GPU": 2}, 1, None, WorkerShape(1, 1, 1.0)),
    ],
)
def test_every_worker_has_its_share(
    resources: dict[str, float], parts: int, workers: int | None, expected: WorkerShape
) -> None:
    assert worker_shape([resources], parts, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "parts", "workers", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 8}], 1, None, WorkerShape(1, 8, 0.0)),
        ([{"CPU": 8}, {"CPU": 8}], 100, 2, WorkerShape(2, 8, 0.0)),
        ([{"CPU": 16}, {"CPU": 4}], 100, 2, WorkerShape(2, 4, 0.0)),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 1}], 100, None, WorkerShape(1, 8, 1.0)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 1}], 100, None, WorkerShape(5, 2, 1.0)),
        ([{}, {"CPU": 8}], 100, None, WorkerShape(8, 1.0, 0.0)),
    ],
)
def test_no_worker_asks_for_more_than_a_node_has(
    nodes: list[dict[str, float]], parts: int, workers: int | None, expected: WorkerShape
) -> None:
    assert worker_shape(nodes, parts, workers) == expected


def test_parts_are_not_waited_for_for_ever() -> None:
    end, lines = threading.Event(), []

    def hanging() -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        end.wait(30)

    rows = _queued(hanging, lines.append, stall_s=0.2)
    assert next(rows) == {"number": 1}
    with pytest.raises(RunFailed, match="no part has come"):
        next(rows)
    end.set()


def test_errors_of_the_thread_reach_the_caller() -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        raise ConnectionError("the node has gone\nfor good")

    rows = _queued(failing, print)
    next(rows)
    with pytest.raises(RunFailed, match="the workers failed: for good"):
        next(rows)


def test_who_stops_early_ends_the_thread_that_waits_for_ray() -> None:
    told, left = threading.Event(), threading.Event()

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield {"number": 0}
            assert told.wait(60)
        finally:
            left.set()

    with closing(_queued(rows, print, told.set)) as parts:
        assert next(parts) == {"number": 0}
        assert not left.is_set()
    assert left.is_set()


def test_who_has_all_rows_ends_nothing() -> None:
    def end() -> None:
        raise AssertionError("there is nothing to end")

    assert list(_queued(lambda: iter([{"number": 0}]), print, end)) == [{"number": 0}]
