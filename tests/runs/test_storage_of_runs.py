"""Whole runs whose checkpoints and results lie on another storage: a folder, and a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import free_port
from storages import STORAGE, TINY, leased_run

from pcl_ray import cli
from pcl_ray.checkpoints import remote, run_state
from pcl_ray.errors import RunFailed, Stopped
from pcl_ray.runs import driver, lease, request
from pcl_ray.runs.console import Display
from pcl_ray.support import storage
from pcl_ray.training.events import Event


def home() -> Path:
    return Path(os.environ["PCL_RAY_HOME"])


def folder(name: str) -> Path:
    return home() / "runs" / name


def train(*words: str) -> int:
    return cli.main(["train", "digits", *TINY, *words])


def weights(name: str, epoch: int = 4) -> dict[str, Any]:
    state = run_state.load(folder(name) / f"checkpoints/epoch_{epoch:05d}.pt")
    assert state.clusters is not None
    learnt = {
        **state.learner["model"],
        "queue": state.learner["queue"]["keys"],
        "prototypes": state.clusters.clusterings[1].prototypes,
    }
    return {name: value for name, value in learnt.items() if isinstance(value, torch.Tensor)}


class InterruptingDisplay(Display):
    """Does something at the first step of an epoch."""

    def __init__(self, epoch: int, action: Callable[[], None]) -> None:
        super().__init__()
        self._epoch, self._action = epoch, action
        self._done = False

    def handle(self, event: Event) -> None:
        if event.kind == "epoch" and event.epoch == self._epoch - 1 and not self._done:
            self._done = True
            self._action()


def train_with(action: Callable[[], None], epoch: int, name: str, uri: object) -> None:
    """Trains a run on this storage; once the checkpoint before the epoch is safe, the action."""
    checked = request.check("digits", [*TINY, STORAGE.format(uri)])
    driver.start(checked, name=name, display=InterruptingDisplay(epoch, action))


def stopped_in(epoch: int, name: str, uri: str) -> None:
    def stop() -> None:
        raise Stopped("cut", signal.SIGTERM)

    with pytest.raises(Stopped):
        train_with(stop, epoch, name, uri)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights of a run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCL_RAY_HOME", str(tmp_path_factory.mktemp("whole")))
        assert train() == 0
        (only,) = (home() / "runs").iterdir()
        return weights(only.name)


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("storage_uri", [pytest.param("path", marks=pytest.mark.slow), "s3"], indirect=True)
def test_a_run_goes_on_from_its_storage_where_everything_else_is_lost(
    storage_uri: str,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_in(2, "cut", storage_uri)
    began = json.loads((folder("cut") / "state.json").read_text())["began_at"]
    run_storage = storage.of_run(storage_uri, "cut")
    assert remote.names(run_storage) == ["epoch_00001.pt", "epoch_00002.pt"]
    assert {"config.yaml", "state.json", "report.html", "figures.csv"} <= run_storage.list_objects().keys()
    assert lease.FILE not in run_storage.list_objects()
    shutil.rmtree(home())
    assert cli.main(["train", "--resume", "cut"]) == 2
    assert "there is no run 'cut'" in capsys.readouterr().err
    monkeypatch.setenv(storage.VARIABLE, storage_uri)
    assert cli.main(["train", "--resume", "cut", "--result", str(tmp_path / "result.json")]) == 0
    assert "going on with epoch 3/4" in capsys.readouterr().out
    assert_same(whole, weights("cut"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoint"] == str(folder("cut") / "checkpoints/epoch_00004.pt")
    state = json.loads(run_storage.read("state.json") or b"")
    assert (state["state"], state["began_at"]) == ("finished", began)
    assert remote.names(run_storage) == ["epoch_00003.pt", "epoch_00004.pt"]
    shutil.rmtree(home())  # an export fetches it, and a new run that begins with its weights
    assert cli.main(["export", "cut", "--to", "torch-export", "--out", str(tmp_path / "exported")]) == 0
    assert "after 4 epochs" in capsys.readouterr().out
    shutil.rmtree(home())
    assert train("encoder.init_from=cut", "--dry-run") == 0
    shutil.rmtree(home())  # of a finished run, going on brings it here
    assert cli.main(["train", "--resume", "cut"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert_same(whole, weights("cut"))
    assert (folder("cut") / "report.html").is_file()


def test_a_run_moves_to_a_storage_when_it_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    stopped_in(2, "one", "null")
    shared = tmp_path / "shared"
    assert cli.main(["train", "--resume", "one", STORAGE.format(shared)]) == 0
    assert_same(whole, weights("one"))
    assert (shared / "runs/one/checkpoints/epoch_00004.pt").read_bytes() == (
        folder("one") / "checkpoints/epoch_00004.pt"
    ).read_bytes()


@pytest.mark.slow
def test_a_run_that_went_on_elsewhere_is_caught_up_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = STORAGE.format(tmp_path / "shared")
    assert train("--name", "one", "train.epochs=2", shared) == 0
    own_home = os.environ["PCL_RAY_HOME"]
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "other machine"))
    assert cli.main(["train", "--resume", "one", "train.epochs=3", shared]) == 0
    learnt_elsewhere = weights("one", 3)
    monkeypatch.setenv("PCL_RAY_HOME", own_home)
    capsys.readouterr()
    assert cli.main(["train", "--resume", "one"]) == 0
    assert "has finished all its 3 epochs" in capsys.readouterr().out
    assert_same(learnt_elsewhere, weights("one", 3))


def test_a_storage_that_does_not_answer_is_refused_before_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a file").write_text("")
    nobody = f"s3://bucket/path?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=x"
    for written, reason in (
        (nobody, "connect"),
        (tmp_path / "a file", "exists"),
        (home(), "PCL_RAY_HOME, where everything is already"),
    ):
        assert train("--name", "one", STORAGE.format(written)) == 2
        assert reason in capsys.readouterr().err
    assert not folder("one").exists()


def test_a_storage_that_goes_away_ends_the_run_and_nothing_is_lost(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TRIES", 1)
    shared, away = tmp_path / "shared", tmp_path / "away"

    def unplug() -> None:
        shared.rename(away)
        shared.write_text("not a folder any more")

    with pytest.raises(RunFailed) as failure:
        train_with(unplug, 2, "one", shared)
    message = str(failure.value)
    assert "the checkpoint after epoch 3 is in" in message
    assert "The last good one there is epoch_00002.pt" in message
    assert "go on with: pcl-ray train --resume one" in message
    shared.unlink()
    away.rename(shared)
    assert cli.main(["train", "--resume", "one"]) == 0
    assert_same(whole, weights("one"))
    assert remote.newest(storage.of_run(str(shared), "one")) == "epoch_00004.pt"


def test_leftovers_of_another_run_of_that_name_are_no_checkpoints(tmp_path: Path) -> None:
    stale = folder("one") / "checkpoints"
    stale.mkdir(parents=True)
    (stale / "epoch_00200.pt").write_bytes(b"of a node that trained another run")
    assert train("--name", "one", "train.epochs=2", STORAGE.format(tmp_path / "shared")) == 0
    assert remote.newest(storage.of_run(str(tmp_path / "shared"), "one")) == "epoch_00002.pt"
    assert not (stale / "epoch_00200.pt").exists()


def test_a_name_is_taken_where_the_storage_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.of_run(str(tmp_path / "shared"), "one").write("config.yaml", b"seed: 1")
    assert train("--name", "one", STORAGE.format(tmp_path / "shared")) == 2
    assert "exists already in the storage" in capsys.readouterr().err
    assert not folder("one").exists()


def test_a_run_that_another_machine_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "shared"))
    file = leased_run(tmp_path / "shared", host="elsewhere", pid=12, machine="another")
    before = file.read_text()
    assert cli.main(["train", "--resume", "one"]) == 2
    assert "process 12 on elsewhere" in capsys.readouterr().err
    assert file.read_text() == before
    old = time.time() - 2 * lease.FRESH_S
    os.utime(file, (old, old))  # it has not been heard of since
    assert cli.main(["train", "--resume", "one"]) == 0
    assert not file.exists()


def test_a_run_that_was_taken_over_ends_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.02)
    owner = tmp_path / "shared/runs/one/owner.json"

    def take_over() -> None:
        seen = owner.stat().st_mtime_ns
        while owner.stat().st_mtime_ns == seen:  # it is kept fresh
            time.sleep(0.01)
        other = owner.with_name("other")
        other.write_text(json.dumps({"host": "elsewhere"}))
        other.rename(owner)
        time.sleep(1.0)

    with pytest.raises(RunFailed, match="another process has taken the run over"):
        train_with(take_over, 1, "one", tmp_path / "shared")
    assert json.loads(owner.read_text()) == {"host": "elsewhere"}


def test_sweeps_say_that_they_have_no_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "alpha", STORAGE.format(tmp_path / "shared"), "--dry-run"]) == 2
    assert "resources.storage" in capsys.readouterr().err


@pytest.mark.slow
def test_an_s3_server_that_is_killed_ends_the_run(bucket: str, s3_server: int) -> None:
    """The server that goes away is a relay in front of the real one."""
    relay = _Relay(s3_server)
    with pytest.raises(RunFailed, match="The last good one there is epoch_00002.pt"):
        train_with(relay.close, 2, "one", bucket.replace(str(s3_server), str(relay.port)))
    assert remote.names(storage.of_run(bucket, "one")) == ["epoch_00001.pt", "epoch_00002.pt"]
    assert cli.main(["train", "--resume", "one", STORAGE.format(bucket)]) == 0
    assert remote.newest(storage.of_run(bucket, "one")) == "epoch_00004.pt"


class _Relay:
    """Passes connections on to another port of this machine until it is closed."""

    def __init__(self, to: int) -> None:
        self._to, self._open = to, True
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                target.sendall(piece)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._open = False
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
