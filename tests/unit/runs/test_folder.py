from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.config import RunConfig, load
from pcl_ray.errors import ConfigError
from pcl_ray.runs.folder import RunFolder
from pcl_ray.support import machine
from pcl_ray.support.paths import home

CONFIG = load(
    "digits", ["loss.temperature=0.35", "data.path=/somewhere/ä b", "e_step.num_clusters=[10,0.25]"]
)
ODD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "-rf",
    "_a",
    "a/b",
    "../a",
    "/a",
    "a b",
    "a\n",
    "ä",
    "a\0",
    "a*",
    "x" * 101,
]


def test_home_is_absolute_and_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for value, expected in [
        ("/a/b", Path("/a/b")),
        ("c", tmp_path / "c"),
        ("~/d", tmp_path / "me/d"),
        ("", tmp_path / "me/.pcl_ray"),
    ]:
        monkeypatch.setenv("PCL_RAY_HOME", value)
        assert home() == expected
    monkeypatch.delenv("PCL_RAY_HOME")
    assert home() == tmp_path / "me/.pcl_ray"


def test_a_new_run_has_its_configuration_and_state() -> None:
    with RunFolder.create("first", CONFIG) as folder:
        assert folder.path == home() / "runs" / "first"
        assert folder.read_config() == CONFIG
        state = folder.read_state()
        assert (state["state"], state["phase"], state["machine"]) == (
            "running",
            "starting",
            machine.identity(),
        )
        assert 0 <= time.time() - state["began_at"] < 600
        assert sorted(entry.name for entry in folder.path.iterdir()) == ["config.yaml", "lock", "state.json"]


def test_what_was_written_is_there_for_the_next_process() -> None:
    with RunFolder.create("first", CONFIG) as folder:
        folder.write_state(mlflow_run_id="abc", fingerprint="f00")
        folder.write_state(state="failed", error="ü: no\nspace")
    with RunFolder.open("first") as folder:
        assert folder.name == "first"
        state = folder.read_state()
        written = {"state": "failed", "mlflow_run_id": "abc", "fingerprint": "f00", "error": "ü: no\nspace"}
        assert {name: state[name] for name in written} == written
        assert folder.read_config() == CONFIG
        folder.write_config(RunConfig())
        folder.write_state(state="running", error=None)
    with RunFolder.open("first") as folder:
        assert folder.read_config() == RunConfig()
        assert folder.read_state()["error"] is None
        assert not list(folder.path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["", "{", "\0\0"])
def test_a_damaged_state_is_as_none(damage: str) -> None:
    with RunFolder.create("first", CONFIG) as folder:
        (folder.path / "state.json").write_text(damage)
        assert folder.read_state() == {}
        folder.write_state(state="running")
        assert folder.read_state() == {"state": "running"}
        (folder.path / "state.json").unlink()
        assert folder.read_state() == {}


def test_a_write_that_fails_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder.create("first", CONFIG) as folder:
        monkeypatch.setattr(os, "replace", full)
        folder.write_state(state="finished")  # must not end a run
        with pytest.raises(ConfigError, match="No space"):
            folder.write_config(CONFIG)
        assert folder.read_state()["state"] == "running"


@pytest.mark.parametrize("held", [True, False])
def test_a_name_is_taken_once(held: bool) -> None:
    folder = RunFolder.create("first", CONFIG)
    if not held:
        folder.lock.release()
    with pytest.raises(
        ConfigError,
        match=r"run 'first' exists already; go on with it by --resume first, or choose another --name",
    ):
        RunFolder.create("first", RunConfig())
    assert folder.read_config() == CONFIG
    folder.lock.release()


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("use", [lambda name: RunFolder.create(name, CONFIG), RunFolder.open])
def test_odd_names_are_refused(name: str, use: Callable[[str], RunFolder]) -> None:
    with pytest.raises(ConfigError, match="is not allowed: letters, digits"):
        use(name)
    assert not home().exists()


@pytest.mark.parametrize("name", ["a", "9", "A.b-c_d", "x" * 100, "run.yaml", "a..b"])
def test_usual_names_are_fine(name: str) -> None:
    with RunFolder.create(name, CONFIG) as folder:
        assert folder.path.parent == home() / "runs"


def test_an_unknown_run_is_refused_with_the_nearest_name() -> None:
    for name in ("digits-first", "stl"):
        RunFolder.create(name, CONFIG).lock.release()
    (home() / "runs" / "digits-fist").mkdir()  # no run: it has no configuration
    with pytest.raises(
        ConfigError, match=r"there is no run 'digits-fisrt' under .*; did you mean 'digits-first'\?"
    ):
        RunFolder.open("digits-fisrt")
    with pytest.raises(
        ConfigError, match=r"there is no run 'digits-fist' under .*; did you mean 'digits-first'\?"
    ):
        RunFolder.open("digits-fist")
    with pytest.raises(ConfigError, match=r"there is no run 'zzz' under [^;]*$"):
        RunFolder.open("zzz")


def test_nothing_is_made_for_an_unknown_run() -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        RunFolder.open("zzz")
    assert not home().exists()


def test_a_lock_that_is_a_folder_and_a_lost_configuration_are_one_sentence() -> None:
    RunFolder.create("mine", load("digits")).lock.release()
    path = RunFolder.path_of("mine")
    (path / "config.yaml").write_text("")
    with RunFolder.open("mine") as folder, pytest.raises(ConfigError, match=r"config\.yaml is empty"):
        folder.read_config()
    (path / "lock").unlink()
    (path / "lock").mkdir()
    with pytest.raises(ConfigError, match=r"mine/lock is a folder"):
        RunFolder.open("mine")


def test_a_run_is_held_once() -> None:
    with RunFolder.create("first", CONFIG):
        for _ in range(2):  # a refusal takes no hold either
            with pytest.raises(ConfigError, match="run 'first' is being trained by another process"):
                RunFolder.open("first")
    with RunFolder.open("first"), pytest.raises(ConfigError, match="another process"):
        RunFolder.open("first")
    RunFolder.open("first").lock.release()


def test_a_run_is_held_against_other_processes_and_let_go_when_they_die(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = (
        "from pcl_ray.runs.folder import RunFolder; import os; print(RunFolder.open('first').name,"
        " flush=True); os._exit(9)"
    )
    with RunFolder.create("first", CONFIG):
        held = run_python(script)
        assert "is being trained by another process" in held.stderr
        assert held.stdout == ""
    killed = run_python(script)
    assert (killed.stdout.strip(), killed.returncode) == ("first", 9), killed.stderr
    RunFolder.open("first").lock.release()


def test_runs_are_held_each_for_itself() -> None:
    with RunFolder.create("first", CONFIG), RunFolder.create("second", CONFIG):
        assert sorted(entry.name for entry in (home() / "runs").iterdir()) == ["first", "second"]


@given(st.text(max_size=120))
def test_a_free_name_is_always_allowed(stem: str) -> None:
    name = RunFolder.free_name(stem, "20260102-030405")
    assert name.endswith("-20260102-030405")
    with RunFolder.create(f"{name}", CONFIG) as folder:
        following = RunFolder.free_name(stem, "20260102-030405")
        assert following == f"{name}-2"
        (folder.path.parent / following).mkdir()
        assert RunFolder.free_name(stem, "20260102-030405") == f"{name}-3"
        (folder.path.parent / following).rmdir()
        for entry in folder.path.iterdir():
            entry.unlink()
        folder.path.rmdir()


def test_the_state_is_plain_json() -> None:
    with RunFolder.create("first", CONFIG) as folder:
        assert json.loads((folder.path / "state.json").read_text())["state"] == "running"


def test_a_folder_left_empty_by_a_killed_process_does_not_take_the_name() -> None:
    (home() / "runs" / "half").mkdir(parents=True)
    with RunFolder.create("half", RunConfig()) as folder:
        assert folder.read_state()["state"] == "running"
