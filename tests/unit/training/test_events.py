from __future__ import annotations

import threading

from pcl_ray.training.events import Event, EventBoard


def test_events_are_taken_once_in_the_order_of_their_posts() -> None:
    board = EventBoard()
    board.post(Event("start", epoch=2))
    board.post(Event("step", step=7))
    assert [event.kind for event in board.take()] == ["start", "step"]
    assert board.take() == []
    board.post(Event("epoch"))
    assert [event.kind for event in board.take()] == ["epoch"]


def test_no_event_is_lost_while_several_post_and_one_takes() -> None:
    board, taken = EventBoard(), []
    threads = [
        threading.Thread(target=lambda: [board.post(Event("step", step=s)) for s in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += board.take()
    taken += board.take()
    assert sorted(event.step for event in taken) == sorted(list(range(500)) * 4)
