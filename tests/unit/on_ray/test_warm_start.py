"""Workers that are forked from a warm process: what they have, and that they end with their clients."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pcl_ray.config import ResourcesConfig
from pcl_ray.on_ray.processes import warm_client, warm_start

LIMIT_S = 300  # a guard against hanging, nothing is timed
WORKER = """
import json, os, random, sys, time, uuid
import numpy
print(json.dumps({
    "pid": os.getpid(), "group": os.getpgid(0), "name": __name__, "argv": sys.argv, "folder": os.getcwd(),
    "path": sys.path[0], "set": os.environ.get("OF_THE_CLIENT"), "threads": os.environ.get("OMP_NUM_THREADS"),
    "modules": [name for name in ("torch", "pcl_ray.training.loop", "ray") if name in sys.modules],
    "drawn": [numpy.random.random(), random.random(), uuid.uuid4().hex],
}), flush=True)
if "stay" in sys.argv:
    time.sleep(300)
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.fixture(scope="module")
def py_executable() -> Iterator[list[str]]:
    with warm_start.warm_parent() as command:
        words = shlex.split(command)
        deadline = time.monotonic() + LIMIT_S
        while not Path(words[-1]).exists():  # until it listens, a worker starts without it
            assert time.monotonic() < deadline, "the warm process does not listen"
            time.sleep(0.02)
        yield words


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker ü.py"
    path.write_text(WORKER)
    return path


def started(command: list[str], script: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OF_THE_CLIENT": "yes"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [*command, str(script), *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=script.parent
    )


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} has not ended"
        time.sleep(0.02)


def test_a_worker_is_the_script_that_was_to_run_with_torch_loaded_and_no_ray(
    py_executable: list[str], script: Path
) -> None:
    with started(py_executable, script, "a word", "--option=ü") as client:
        told = said(client)
        assert client.wait(LIMIT_S) == 0
    assert told["modules"] == ["torch", "pcl_ray.training.loop"]
    assert told["name"] == "__main__"
    assert told["argv"] == [str(script), "a word", "--option=ü"]
    assert (told["folder"], told["path"]) == (str(script.parent), str(script.parent))
    assert (told["set"], told["threads"]) == ("yes", None)
    assert told["pid"] != client.pid
    assert told["group"] == told["pid"], "whoever ends its group would end others"


def test_workers_draw_different_numbers(py_executable: list[str], script: Path) -> None:
    drawn = []
    for _ in range(2):
        with started(py_executable, script) as client:
            drawn.append(said(client)["drawn"])
    assert all(one != other for one, other in zip(*drawn, strict=True))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_client(
    py_executable: list[str], script: Path, number: signal.Signals
) -> None:
    with started(py_executable, script, "stay") as client:
        worker = said(client)["pid"]
        client.send_signal(number)
        client.wait(LIMIT_S)
        wait_for_end(worker)


def test_a_client_ends_with_its_worker(py_executable: list[str], script: Path) -> None:
    with started(py_executable, script, "stay") as client:
        os.kill(said(client)["pid"], signal.SIGKILL)
        client.wait(LIMIT_S)


def test_where_nobody_forks_the_process_becomes_the_worker(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-E", warm_client.__file__, str(tmp_path / "nobody")]
    with started(command, script, "fail") as client:
        told = said(client)
        assert client.wait(LIMIT_S) == 7
    assert (told["pid"], told["modules"], told["argv"]) == (client.pid, [], [str(script), "fail"])


def test_the_warm_process_ends_with_the_block(script: Path) -> None:
    with warm_start.warm_parent() as command:
        address = shlex.split(command)[-1]
        (parent,) = [
            process
            for process in psutil.Process().children()
            if process.cmdline() and process.cmdline()[-1] == address
        ]
    assert not parent.is_running()
    assert not Path(address).parent.exists()


def test_it_is_for_a_ray_of_our_own_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(warm_start.SWITCH, raising=False)
    assert warm_start.is_possible(ResourcesConfig()) == (sys.platform == "linux")
    for knobs in ({"gpus_per_worker": 1}, {"e_step_gpus": 1}, {"e_step_cpus": 2}):
        assert not warm_start.is_possible(ResourcesConfig(**knobs))
    for name, value in (("RAY_ADDRESS", "127.0.0.1:6379"), (warm_start.SWITCH, "0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not warm_start.is_possible(ResourcesConfig())


def test_a_warm_process_may_load_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that the run takes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children())
    with warm_start.ahead(ResourcesConfig(workers=2)):
        (early,) = set(psutil.Process().children()) - before
    assert early.is_running()
    with warm_start.warm_parent():
        assert set(psutil.Process().children()) - before == {early}
    assert set(psutil.Process().children()) - before == set()


def test_what_fails_before_the_run_ends_the_warm_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children())
    with pytest.raises(ValueError, match="no data"), warm_start.ahead(ResourcesConfig(workers=2)):
        raise ValueError("no data")
    assert set(psutil.Process().children()) - before == set()


@pytest.mark.parametrize("resources", [{"workers": 0}, {"workers": 2, "gpus_per_worker": 1.0}])
def test_a_run_that_takes_none_starts_none(resources: dict[str, Any]) -> None:
    before = set(psutil.Process().children())
    with warm_start.ahead(ResourcesConfig(**resources)):
        assert set(psutil.Process().children()) == before
