from __future__ import annotations

import threading

from pcl_ray.training.events import Event, EventBoard, OnceSafe


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


class Safety:
    """What says whether the last checkpoint is safe."""

    def __init__(self) -> None:
        self.safe = True

    def __call__(self) -> bool:
        return self.safe


def kept_in_order() -> tuple[OnceSafe, Safety, list[tuple[str, int]]]:
    posted: list[tuple[str, int]] = []
    safety = Safety()
    return OnceSafe(lambda event: posted.append((event.kind, event.step)), safety), safety, posted


def test_an_epoch_and_what_follows_wait_for_its_checkpoint() -> None:
    post, safety, posted = kept_in_order()
    post(Event("step", step=1))
    safety.safe = False
    post(Event("step", step=2))  # of the epoch that is trained: its checkpoint is not yet there
    post(Event("epoch", step=3))
    post(Event("step", step=4))
    post(Event("alive", step=4))
    post(Event("phase", step=4))
    post.release()
    assert posted == [("step", 1), ("step", 2), ("alive", 4), ("phase", 4)]
    safety.safe = True
    post.release()
    assert posted[4:] == [("epoch", 3), ("step", 4)]
    post(Event("epoch", step=5))
    assert posted[-1] == ("epoch", 5)


def test_a_picture_that_cannot_be_shown_is_a_warning_even_if_it_waited() -> None:
    posted: list[Event] = []

    def refusing(event: Event) -> None:
        if event.kind == "views":
            raise OSError("no place")
        posted.append(event)

    safety = Safety()
    post = OnceSafe(refusing, safety)
    safety.safe = False
    post(Event("epoch"))
    post(Event("views"))
    safety.safe = True
    post.release()
    assert [event.kind for event in posted] == ["epoch", "warning"]
    assert posted[1].text == "something could not be shown (OSError: no place); training goes on"


def test_a_pause_that_is_asked_for_is_taken_once() -> None:
    board = EventBoard()
    assert not board.take_pause()
    board.ask_to_pause()
    assert board.take_pause()
    assert not board.take_pause()
