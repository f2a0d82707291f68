"""Workers that are forked from a warm process: what they have, and that they end with their clients."""

from __future__ import annotations

import json
import os
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
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LOOPBACK, LocalHead, Ports
from pcl_ray.on_ray.starting import warm_client, warm_start
from pcl_ray.on_ray.starting.warm_start import COLD, WarmStart

LIMIT_S = 100  # a guard against hanging, nothing is timed
WORKER = """
import json, os, random, sys, time, uuid
import numpy
print(json.dumps({
    "pid": os.getpid(), "group": os.getpgid(0), "name": __name__, "argv": sys.argv, "folder": os.getcwd(),
    "path": sys.path[:2], "set": os.environ.get("OF_THE_CLIENT"),
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "modules": [name for name in ("torch", "pcl_ray.training.loop", "ray") if name in sys.modules],
    "drawn": [numpy.random.random(), random.random(), uuid.uuid4().hex],
}), flush=True)
if "stay" in sys.argv:
    time.sleep(300)
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.fixture(scope="module")
def run_folder() -> Iterator[Path]:
    """Of the warm process of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with warm_start.of_run(ResourcesConfig()) as start:
            yield listening(start)


@pytest.fixture(scope="module")
def head_folder() -> Iterator[Path]:
    """Of that of a head."""
    with warm_start.of_head() as start:
        yield listening(start)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker ü.py"
    path.write_text(WORKER)
    return path


def listening(start: WarmStart) -> Path:
    assert start.folder is not None
    deadline = time.monotonic() + LIMIT_S
    while not Path(start.folder, warm_client.SOCKET).exists():  # until then a worker starts without it
        assert time.monotonic() < deadline, "the warm process does not listen"
        time.sleep(0.02)
    return Path(start.folder)


def started(
    folder: Path, script: Path, *words: str, by: str = warm_client.SCRIPT, **variables: str
) -> subprocess.Popen[str]:
    """A client in this folder, as Ray starts it, where `script` is Ray's own script for workers."""
    (folder / warm_client.RAYS_SCRIPT).unlink(missing_ok=True)
    (folder / warm_client.RAYS_SCRIPT).symlink_to(script)
    environment = {**os.environ, "OF_THE_CLIENT": "yes", **variables}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, str(folder / by), *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=script.parent,
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
    run_folder: Path, script: Path
) -> None:
    with started(run_folder, script, "a word", "--option=ü", PYTHONPATH="/of/the/job") as client:
        told = said(client)
        assert client.wait(LIMIT_S) == 0
    assert told["modules"] == ["torch", "pcl_ray.training.loop"]
    assert told["name"] == "__main__"
    assert told["argv"] == [str(script), "a word", "--option=ü"]
    assert (told["folder"], told["path"]) == (str(script.parent), [str(script.parent), "/of/the/job"])
    assert (told["set"], told["threads"]) == ("yes", None)
    assert told["pid"] != client.pid
    assert told["group"] == told["pid"], "whoever ends its group would end others"


def test_on_a_head_jobs_bring_our_modules_along(head_folder: Path, script: Path) -> None:
    with started(head_folder, script) as client:
        assert said(client)["modules"] == ["torch"]


def setup_words(folder: Path, language: str = "PYTHON", **context: Any) -> list[str]:
    """As the raylet starts a worker with an environment of its own."""
    defaults = {"command_prefix": [], "env_vars": {}, "py_executable": sys.executable, "java_jars": []}
    words = [str(folder / warm_client.SCRIPT), "a word", f"--language={language}"]
    return [*words, f"--serialized-runtime-env-context={json.dumps({**defaults, **context})}"]


def test_a_workers_own_variables_are_set(run_folder: Path, script: Path) -> None:
    words = setup_words(run_folder, env_vars={"OF_THE_CLIENT": "its own"})
    with started(run_folder, script, *words, by=warm_client.SETUP) as client:
        told = said(client)
    assert (told["set"], told["argv"]) == ("its own", [str(script), "a word"])
    assert told["pid"] != client.pid


@pytest.mark.parametrize(
    "context",
    [
        {"command_prefix": ["cd", "/", "&&"]},
        {"py_executable": "/another/python"},
        {"env_vars": {"OF_THE_CLIENT": "${HOME}"}},
        {"language": "JAVA"},
    ],
)
def test_what_is_more_than_variables_is_left_to_ray(
    run_folder: Path, script: Path, context: dict[str, Any]
) -> None:
    link = run_folder / warm_client.RAYS_SETUP
    link.unlink(missing_ok=True)
    link.symlink_to(script)
    words = setup_words(run_folder, **context)
    with started(run_folder, script, *words, by=warm_client.SETUP) as client:
        told = said(client)
    assert (told["pid"], told["argv"]) == (client.pid, [str(script), *words])


def test_workers_draw_different_numbers(run_folder: Path, script: Path) -> None:
    drawn = []
    for _ in range(2):
        with started(run_folder, script) as client:
            drawn.append(said(client)["drawn"])
    assert all(one != other for one, other in zip(*drawn, strict=True))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_client(run_folder: Path, script: Path, number: signal.Signals) -> None:
    with started(run_folder, script, "stay") as client:
        worker = said(client)["pid"]
        client.send_signal(number)
        client.wait(LIMIT_S)
        wait_for_end(worker)


def test_a_client_ends_with_its_worker(run_folder: Path, script: Path) -> None:
    with started(run_folder, script, "stay") as client:
        os.kill(said(client)["pid"], signal.SIGKILL)
        client.wait(LIMIT_S)


def test_where_nobody_forks_the_process_becomes_the_worker(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nobody"
    folder.mkdir()
    (folder / warm_client.SCRIPT).symlink_to(warm_client.__file__)
    check_it_is_the_worker_itself(folder, script)


def test_a_worker_that_is_to_load_by_itself_is_not_forked(run_folder: Path, script: Path) -> None:
    check_it_is_the_worker_itself(run_folder, script, **{warm_client.SWITCH: "0"})


def test_a_python_with_other_packages_is_not_forked(run_folder: Path, script: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(Path(sys.executable).resolve())
    (tmp_path / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (run_folder / warm_client.RAYS_SCRIPT).unlink(missing_ok=True)
    script.write_text("import os; print(os.getpid(), flush=True)")
    (run_folder / warm_client.RAYS_SCRIPT).symlink_to(script)
    command = [str(tmp_path / "bin/python"), str(run_folder / warm_client.SCRIPT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.communicate(timeout=LIMIT_S)[0] == f"{client.pid}\n"


def check_it_is_the_worker_itself(folder: Path, script: Path, **variables: str) -> None:
    with started(folder, script, "fail", **variables) as client:
        told = said(client)
        assert client.wait(LIMIT_S) == 7
    assert (told["pid"], told["modules"], told["argv"]) == (client.pid, [], [str(script), "fail"])


def test_the_warm_process_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with warm_start.of_run(ResourcesConfig()) as start:
        folder = listening(start)
        (parent,) = [one for one in psutil.Process().children() if str(folder) in one.cmdline()]
    assert not parent.is_running()
    assert not folder.exists()


def test_one_whose_starter_was_killed_ends_and_leaves_nothing(tmp_path: Path) -> None:
    code = """if True:
        import time
        from pcl_ray.on_ray.starting import warm_start
        with warm_start.of_head() as start:
            print(start.folder, flush=True)
            time.sleep(300)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        folder = listening(WarmStart(starter.stdout.readline().strip()))
        (parent,) = psutil.Process(starter.pid).children()
        starter.kill()
    wait_for_end(parent.pid)
    assert not folder.exists()


def test_it_is_for_this_machine_alone_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(warm_client.SWITCH, raising=False)
    assert warm_start.is_possible(ResourcesConfig()) == (sys.platform == "linux")
    for knobs in ({"gpus_per_worker": 1}, {"e_step_gpus": 1}, {"e_step_cpus": 2}):
        assert not warm_start.is_possible(ResourcesConfig(**knobs))
        with warm_start.of_run(ResourcesConfig(**knobs)) as start:
            assert start == COLD
    for name, value in (("RAY_ADDRESS", "127.0.0.1:6379"), (warm_client.SWITCH, "0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not warm_start.is_possible(ResourcesConfig())


@pytest.mark.parametrize("host", [LOOPBACK, "0.0.0.0"])
def test_the_head_that_no_other_machine_can_join_has_one_for_all(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    local_head_record.folder().mkdir()
    local_head_record.write(LocalHead(host, Ports(), mlflow_uri=""))
    monkeypatch.setenv("RAY_ADDRESS", f"{host}:6379")
    before = set(psutil.Process().children())
    resources = ResourcesConfig(workers=2)
    with warm_start.ahead(resources), warm_start.of_run(resources) as start:
        assert start == (WarmStart(by_head=True) if host == LOOPBACK else COLD)
        assert set(psutil.Process().children()) == before


def test_a_warm_process_may_load_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that the run takes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children())
    with warm_start.ahead(ResourcesConfig(workers=2)):
        (early,) = set(psutil.Process().children()) - before
    assert early.is_running()
    with warm_start.of_run(ResourcesConfig(workers=2)):
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
