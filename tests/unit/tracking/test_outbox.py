"""What the outbox sends, in which order, and what becomes of it while the server does not take it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcl_ray.tracking import pending
from pcl_ray.tracking.outbox import Outbox
from pcl_ray.tracking.pending import POINTS_A_REQUEST, Point, Unsent

HANG = 60  # seconds; a guard against hanging, nothing is timed


class Server:
    """Takes what it is sent while it is up, and writes down every request that it took."""

    name = "a server"

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.up = True
        self.hangs = threading.Event()
        self.hangs.set()

    def _take(self, kind: str, content: Any) -> None:
        assert self.hangs.wait(HANG)
        if not self.up:
            raise ConnectionRefusedError("refused")
        self.requests.append((kind, content))

    def open(self) -> list[str]:
        if not self.up:
            raise ConnectionRefusedError("refused")
        return []

    def send_points(self, points: list[Point]) -> None:
        self._take("points", [point.step for point in points])

    def send_tags(self, tags: dict[str, str]) -> None:
        self._take("tags", tags)

    def send_text(self, artifact: str, text: str) -> None:
        self._take("text", (artifact, text))

    def send_file(self, artifact: str, path: str) -> None:
        self._take("file", (artifact, path))

    def perform(self, task: dict[str, Any]) -> None:
        self._take("task", task)

    def set_status(self, status: str) -> None:
        self._take("status", status)

    def forget_unknown(self, error: Exception) -> bool:
        return isinstance(error, KeyError)


def points(*steps: int) -> Unsent:
    return Unsent([Point("loss", 0.5, step, 1000 + step) for step in steps])


def everything(path: Path) -> Unsent:
    unsent = points(1, 2)
    for kind, contents in (
        ("task", {"map@1": {"do": "image"}}),
        ("artifact", {"report.html": str(path)}),
        ("file", {"config.yaml": "seed: 0\n"}),
        ("tag", {"a": "1", "b": "2"}),
    ):
        unsent.add(Unsent.of(kind, contents))  # type: ignore[arg-type]
    return unsent


def wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "mlflow_pending.jsonl"


def outbox(server: Server, file: Path, first: Unsent | None = None, flush_s: float = 0.01) -> Any:
    messages: list[str] = []
    box: Any = Outbox(server, file, flush_s, first or Unsent(), messages.append)
    box.messages = messages
    return box


def test_everything_is_sent_in_one_order_and_the_run_is_closed_before_its_tasks(file: Path) -> None:
    server = Server()
    box = outbox(server, file, points(0), flush_s=HANG)
    wait_until(lambda: server.requests)
    box.put(everything(file))
    box.close("FINISHED", HANG)
    assert server.requests == [
        ("points", [0]),
        ("points", [1, 2]),
        ("tags", {"a": "1", "b": "2"}),
        ("text", ("config.yaml", "seed: 0\n")),
        ("file", ("report.html", str(file))),
        ("status", "FINISHED"),
        ("task", {"do": "image"}),
    ]
    assert not file.exists()
    assert box.messages == []


def test_an_announced_status_comes_before_what_waits(file: Path) -> None:
    server = Server()
    box = outbox(server, file, points(0), flush_s=HANG)
    wait_until(lambda: server.requests)
    box.put(points(1))
    box.announce("KILLED")
    wait_until(lambda: len(server.requests) == 3)
    assert server.requests == [("points", [0]), ("status", "KILLED"), ("points", [1])]
    box.close("KILLED", HANG)


def test_many_points_go_in_requests_of_a_size_that_the_server_takes(file: Path) -> None:
    server = Server()
    box = outbox(server, file, points(*range(2 * POINTS_A_REQUEST + 1)), flush_s=HANG)
    box.close("FINISHED", HANG)
    sizes = [len(steps) for kind, steps in server.requests if kind == "points"]
    assert sizes == [POINTS_A_REQUEST, POINTS_A_REQUEST, 1]


def test_of_a_name_only_the_newest_content_is_sent(file: Path) -> None:
    server = Server()
    box = outbox(server, file, Unsent.of("tag", {"state": "old", "other": "x"}), flush_s=HANG)
    wait_until(lambda: server.requests)
    for value in ("newer", "newest"):
        box.put(Unsent.of("tag", {"state": value}))
    box.close("FINISHED", HANG)
    assert server.requests == [
        ("tags", {"state": "old", "other": "x"}),
        ("tags", {"state": "newest"}),
        ("status", "FINISHED"),
    ]


def test_what_was_put_after_the_end_is_not_taken(file: Path) -> None:
    server = Server()
    box = outbox(server, file)
    box.close("FINISHED", HANG)
    box.put(points(1))
    box.close("FAILED", HANG)
    assert server.requests == [("status", "FINISHED")]
    assert not file.exists()


def test_an_outage_keeps_everything_for_the_next_outbox(file: Path) -> None:
    server = Server()
    server.up = False
    box = outbox(server, file, everything(file))
    wait_until(lambda: box.messages)
    box.put(points(3))
    box.close("FAILED", HANG)
    assert server.requests == []
    assert "cannot be reached" in box.messages[0]
    assert "Nothing is lost" in box.messages[-1]
    waiting = pending.read(file)
    assert [point.step for point in waiting.points] == [1, 2, 3]
    assert len(waiting.entries) == 5

    server.up = True
    box = outbox(server, file, points(4))
    box.put(Unsent.of("tag", {"a": "newer"}))
    box.close("FINISHED", HANG)
    assert [step for kind, steps in server.requests if kind == "points" for step in steps] == [1, 2, 3, 4]
    assert {
        name: value for kind, tags in server.requests if kind == "tags" for name, value in tags.items()
    } == {"a": "newer", "b": "2"}
    assert ("task", {"do": "image"}) in server.requests
    assert not file.exists()


def test_a_server_that_hangs_holds_nobody_up_and_what_it_took_late_is_sent_again(file: Path) -> None:
    server = Server()
    server.hangs.clear()
    box = outbox(server, file, points(1))
    before = time.monotonic()
    box.close("FINISHED", 0.5)
    assert time.monotonic() - before < HANG / 2
    assert [point.step for point in pending.read(file).points] == [1]
    written = file.read_bytes()
    server.hangs.set()  # the thread that was stuck touches nothing any more
    wait_until(lambda: threading.active_count() == 1 or server.requests)
    assert file.read_bytes() == written


# --- the file


WRITTEN_BEFORE = """\
{"key": "train/loss", "value": 1.5, "step": 50, "time": 1700000000000}

{"tag": "diverged", "value": "train/loss@50"}
{"file": "config.yaml", "text": "seed: 0\\n"}
{"artifact": "report.html", "path": "FOLDER/report.html"}
{"task": "map@50", "content": {"do": "image", "path": "FOLDER/pictures/map.png", "key": "map", "step": 50}}
{"key": "train/loss", "val"""


def test_a_file_of_an_earlier_version_is_read(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(WRITTEN_BEFORE.replace("FOLDER", str(file.parent)))
    waiting = pending.read(file)
    assert waiting.points == [Point("train/loss", 1.5, 50, 1700000000000)]
    assert waiting.entries == {
        ("tag", "diverged"): "train/loss@50",
        ("file", "config.yaml"): "seed: 0\n",
        ("artifact", "report.html"): f"{file.parent}/report.html",
        ("task", "map@50"): {
            "do": "image",
            "path": f"{file.parent}/pictures/map.png",
            "key": "map",
            "step": 50,
        },
    }


def test_what_is_appended_after_a_crash_is_read_whole(file: Path) -> None:
    pending.append(file, everything(file))
    whole = pending.read(file)
    with file.open("a") as cut:
        cut.write('{"key": "loss", "va')
    pending.append(file, points(3))
    again = pending.read(file)
    assert [point.step for point in again.points] == [1, 2, 3]
    assert again.entries == whole.entries == everything(file).entries


@pytest.mark.parametrize("occasion", ["release", "announce", "close", "time"])
def test_what_is_held_back_goes_out_on_each_occasion(tmp_path: Path, occasion: str) -> None:
    server = Server()
    hold_s = 0.01 if occasion == "time" else HANG
    outbox = Outbox(server, tmp_path / "pending", 0.01, points(1), print, hold_s=hold_s)
    if occasion != "time":
        outbox.put(points(2))
        time.sleep(0.1)  # many times as long as it sends after
        assert server.requests == []
    match occasion:
        case "release":
            outbox.release()
        case "announce":
            outbox.announce("KILLED")
        case "close":
            outbox.close("FINISHED", HANG)
    wait_until(lambda: server.requests)
    outbox.close("FINISHED", HANG)
    assert sum(len(content) for kind, content in server.requests if kind == "points") == 1 + (
        occasion != "time"
    )


def test_a_server_that_has_forgotten_the_run_is_told_all_of_it_again(tmp_path: Path) -> None:
    """What is sent first is sent again; a server that forgets and forgets is one that refuses."""

    class Forgetful(Server):
        forgets = 0

        def _take(self, kind: str, content: Any) -> None:
            if kind == "points" and self.forgets:
                self.forgets -= 1
                raise KeyError("no such run")
            super()._take(kind, content)

    server, warnings = Forgetful(), []
    first = Unsent.of("tag", {"a": "1"})
    outbox = Outbox(server, tmp_path / "pending", 0.01, first, warnings.append)
    wait_until(lambda: server.requests)
    server.forgets = 1
    outbox.put(points(1, 2))
    outbox.close("FINISHED", HANG)
    assert server.requests == [
        ("tags", {"a": "1"}),
        ("points", [1, 2]),
        ("tags", {"a": "1"}),
        ("status", "FINISHED"),
    ]
    assert warnings == ["a server does not know this run any more: it is recorded there anew"]

    server.forgets, again = 100, Outbox(server, tmp_path / "more", 0.01, first, warnings.append)
    again.put(points(3))
    again.close("FINISHED", HANG)
    assert sum("anew" in warning for warning in warnings) == 1 + 3
    assert "nothing is lost" in warnings[-2]
