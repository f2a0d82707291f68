"""Runs whose checkpoints and results lie on another storage: a folder, and a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import free_port
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.checkpoints import remote, run_state, storage
from pcl_ray.errors import ConfigError, RunFailed, Stopped
from pcl_ray.runs import driver, lease, request, storage_mirror
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import Busy, RunFolder
from pcl_ray.training.events import Event

TINY = ("resources.workers=0", *DIGITS_RUN, "tracking.report=true")
_PLACE = "resources.storage={}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an S3 server of this machine."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture
def bucket(s3_server: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of an empty bucket."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{s3_server}/{name}", method="PUT"), timeout=20
    ).close()
    return f"s3://{name}/results/of%20all?endpoint_override=127.0.0.1:{s3_server}&scheme=http"


@pytest.fixture(params=["path", "file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "path":
            return str(tmp_path / "shared")
        case "file":
            return f"file://{tmp_path}/shared"
    return request.getfixturevalue("bucket")


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


class At(Display):
    """Does something at the first step of an epoch."""

    def __init__(self, epoch: int, what: Any) -> None:
        super().__init__()
        self._epoch, self._what = epoch, what

    def handle(self, event: Event) -> None:
        if event.kind == "alive" and event.epoch == self._epoch and self._what is not None:
            what, self._what = self._what, None
            what()


def _stop() -> None:
    raise Stopped("cut", signal.SIGTERM)


def stopped_in(epoch: int, name: str, uri: str) -> None:
    with pytest.raises(Stopped):
        driver.start(
            request.check("digits", [*TINY, _PLACE.format(uri)]), name=name, display=At(epoch, _stop)
        )


# The place itself.


@pytest.mark.parametrize(
    ("written", "way_out"),
    [
        ("shared/folder", "absolute"),
        ("~/shared", "absolute"),
        ("ftp://host/path", "s3://"),
        ("file://shared/folder", "file:///path"),
        ("s3:///path", "names no bucket"),
        ("s3://bucket/path?endpoint=host", "endpoint_override"),
        ("s3://KEYID:hush@bucket/path", "AWS_ACCESS_KEY_ID"),
        ("s3://hush@bucket/path", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/path?secret_key=hush&access_key=hush", "AWS_ACCESS_KEY_ID"),
        ("abfs://box:hush@account.dfs.core.windows.net/path", "environment"),
        ("s3://[bucket/path", "s3://bucket/path"),
    ],
)
def test_a_storage_that_cannot_be_meant_is_refused_without_showing_secrets(
    written: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert way_out in (storage.problem(written) or "")
    assert train(_PLACE.format(written)) == 2
    said = capsys.readouterr().err
    assert "resources.storage = " in said
    assert way_out in said
    assert "hush" not in said
    assert not (home() / "runs").exists() or not list((home() / "runs").iterdir())


def test_addresses_that_are_fine() -> None:
    for written in (
        "/shared",
        "file:///shared",
        "s3://bucket",
        "s3://bucket/a/b?endpoint_override=host:9000&scheme=http&region=x",
        "gs://b/p",
        "hdfs://u@h:1/p",
    ):
        assert storage.problem(written) is None
        assert storage.shown(written).startswith(written[:4])


def test_what_is_put_comes_back_whole(uri: str, tmp_path: Path) -> None:
    assert storage.reachable(uri) is None
    place = storage.of_run(uri, "one")
    file = tmp_path / "a file"
    file.write_bytes(os.urandom(20 << 20))  # several parts
    assert place.listed("checkpoints") == {}
    entry = place.put(file, "checkpoints/a file")
    assert entry.is_of(file)
    assert place.listed("checkpoints") == {"a file": entry}
    assert list(place.listed()) == []
    copy = tmp_path / "new folder" / "copy"
    assert place.get("checkpoints/a file", copy).is_of(copy)
    assert copy.read_bytes() == file.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    place.write("note", b"one")
    place.write("note", b"another")
    assert place.read("note") == b"another"
    for _ in range(2):
        place.remove("note")
    assert place.read("note") is None
    with pytest.raises(RunFailed, match="note.*not there"):
        place.get("note", copy)
    assert copy.read_bytes() == file.read_bytes()


def test_half_of_an_object_is_never_there(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = storage.of_run(uri, "one")
    file = tmp_path / "epoch_00001.pt"
    file.write_bytes(os.urandom(9 << 20))
    monkeypatch.setattr(storage, "_PIECE", 1 << 20)
    monkeypatch.setattr(storage, "_TRIES", 1)
    real = Path.open

    class Breaks:
        def __init__(self, inner: Any):
            self.inner, self.left = inner, 3

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.close()

        def read(self, size: int) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError(5, "Input/output error")
            return self.inner.read(size)

    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *words, **more: (
            Breaks(real(self, *words, **more)) if self == file else real(self, *words, **more)
        ),
    )
    with pytest.raises(RunFailed, match="could not be put there .*Input/output error"):
        place.put(file, "checkpoints/epoch_00001.pt")
    assert place.listed("checkpoints") == {}


def test_a_storage_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "_HURRIED_S", 0.2)
    monkeypatch.setattr(storage, "_write", lambda *_: time.sleep(2))
    assert "no answer" in (storage.reachable(str(tmp_path)) or "")


def test_another_try_where_that_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, left = storage._write, [2]

    def sometimes(*words: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("SLOW_DOWN")
        return real(*words)

    monkeypatch.setattr(storage, "_write", sometimes)
    monkeypatch.setattr(storage, "_BETWEEN_S", 0.01)
    storage.Storage(str(tmp_path)).write("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_checkpoint_is_fetched_again_only_where_it_is_another(tmp_path: Path) -> None:
    place, first, second = (
        storage.of_run(str(tmp_path / "shared"), "one"),
        tmp_path / "here",
        tmp_path / "there",
    )
    first.mkdir()
    for epoch, content in ((1, b"one"), (2, b"two"), (10, b"ten")):
        path = first / f"epoch_{epoch:05d}.pt"
        path.write_bytes(content)
        remote.put(place, path, keep=2)
    assert remote.names(place) == ["epoch_00002.pt", "epoch_00010.pt"]
    assert remote.newest(place) == "epoch_00010.pt"
    fetched = remote.fetch(place, "epoch_00010.pt", second, keep=2)
    number = fetched.stat().st_ino
    assert remote.fetch(place, "epoch_00010.pt", second, keep=2).stat().st_ino == number
    fetched.write_bytes(b"TEN")  # of as many bytes, from another time
    os.utime(fetched, (1_000_000_000, 1_000_000_000))
    assert remote.fetch(place, "epoch_00010.pt", second, keep=2).read_bytes() == b"ten"
    (second / "epoch_00011.pt").write_bytes(b"of another run of this name")
    remote.forget_newer(second, "epoch_00010.pt")
    assert [path.name for path in run_state.complete(second)] == ["epoch_00010.pt"]


# Runs.


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


@pytest.mark.parametrize("uri", [pytest.param("path", marks=pytest.mark.slow), "s3"], indirect=True)
def test_a_run_goes_on_from_its_storage_where_everything_else_is_lost(
    uri: str,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_in(2, "cut", uri)
    began = json.loads((folder("cut") / "state.json").read_text())["began_at"]
    place = storage.of_run(uri, "cut")
    assert remote.names(place) == ["epoch_00001.pt", "epoch_00002.pt"]
    assert {"config.yaml", "state.json", "report.html", "figures.csv"} <= place.listed().keys()
    assert lease.FILE not in place.listed()
    shutil.rmtree(home())
    assert cli.main(["train", "--resume", "cut"]) == 2
    assert "there is no run 'cut'" in capsys.readouterr().err
    monkeypatch.setenv(storage.VARIABLE, uri)
    assert cli.main(["train", "--resume", "cut", "--result", str(tmp_path / "result.json")]) == 0
    assert "going on with epoch 3/4" in capsys.readouterr().out
    assert_same(whole, weights("cut"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoint"] == str(folder("cut") / "checkpoints/epoch_00004.pt")
    state = json.loads(place.read("state.json") or b"")
    assert (state["state"], state["began_at"]) == ("finished", began)
    assert remote.names(place) == ["epoch_00003.pt", "epoch_00004.pt"]
    shutil.rmtree(home())  # of a finished run, going on brings it here
    assert cli.main(["train", "--resume", "cut"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert_same(whole, weights("cut"))
    assert (folder("cut") / "report.html").is_file()


def test_the_environment_names_the_storage_and_the_run_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "shared"))
    config = request.check("digits", TINY).config
    assert config.resources.storage == str(tmp_path / "shared")
    assert request.check(
        "digits", [*TINY, _PLACE.format(tmp_path / "other")]
    ).config.resources.storage == str(tmp_path / "other")
    monkeypatch.delenv(storage.VARIABLE)
    assert request.changed(config, []) == config
    assert request.changed(config, ["resources.storage=null"]).resources.storage is None
    monkeypatch.setenv(storage.VARIABLE, "not/absolute")
    with pytest.raises(ConfigError, match="PCL_RAY_STORAGE = 'not/absolute'"):
        request.check("digits", TINY)


def test_a_run_moves_to_a_storage_when_it_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    stopped_in(2, "one", "null")
    shared = tmp_path / "shared"
    assert cli.main(["train", "--resume", "one", _PLACE.format(shared)]) == 0
    assert_same(whole, weights("one"))
    assert (shared / "runs/one/checkpoints/epoch_00004.pt").read_bytes() == (
        folder("one") / "checkpoints/epoch_00004.pt"
    ).read_bytes()


@pytest.mark.slow
def test_a_run_that_went_on_elsewhere_is_caught_up_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = _PLACE.format(tmp_path / "shared")
    assert train("--name", "one", "train.epochs=2", place) == 0
    here = os.environ["PCL_RAY_HOME"]
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "other machine"))
    assert cli.main(["train", "--resume", "one", "train.epochs=3", place]) == 0
    there = weights("one", 3)
    monkeypatch.setenv("PCL_RAY_HOME", here)
    capsys.readouterr()
    assert cli.main(["train", "--resume", "one"]) == 0
    assert "has finished all its 3 epochs" in capsys.readouterr().out
    assert_same(there, weights("one", 3))


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
        assert train("--name", "one", _PLACE.format(written)) == 2
        assert reason in capsys.readouterr().err
    assert not folder("one").exists()


def test_a_storage_that_goes_away_ends_the_run_and_nothing_is_lost(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "_TRIES", 1)
    shared, away = tmp_path / "shared", tmp_path / "away"

    def unplug() -> None:
        shared.rename(away)
        shared.write_text("not a folder any more")

    monkeypatch.setattr(driver, "Display", lambda: At(2, unplug))
    assert train("--name", "one", _PLACE.format(shared)) == 1
    said = capsys.readouterr().err
    assert "the checkpoint after epoch 3 is in" in said
    assert "The last good one there is epoch_00002.pt" in said
    assert "go on with: pcl-ray train --resume one" in said
    monkeypatch.undo()
    os.environ["PCL_RAY_HOME"] = str(tmp_path / "pcl_ray_home")
    shared.unlink()
    away.rename(shared)
    assert cli.main(["train", "--resume", "one"]) == 0
    assert_same(whole, weights("one"))
    assert remote.newest(storage.of_run(str(shared), "one")) == "epoch_00004.pt"


def test_leftovers_of_another_run_of_that_name_are_no_checkpoints(tmp_path: Path) -> None:
    stale = folder("one") / "checkpoints"
    stale.mkdir(parents=True)
    (stale / "epoch_00200.pt").write_bytes(b"of a node that trained another run")
    assert train("--name", "one", "train.epochs=2", _PLACE.format(tmp_path / "shared")) == 0
    assert remote.newest(storage.of_run(str(tmp_path / "shared"), "one")) == "epoch_00002.pt"
    assert not (stale / "epoch_00200.pt").exists()


def test_a_name_is_taken_where_the_storage_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.of_run(str(tmp_path / "shared"), "one").write("config.yaml", b"seed: 1")
    assert train("--name", "one", _PLACE.format(tmp_path / "shared")) == 2
    assert "exists already in the storage" in capsys.readouterr().err
    assert not folder("one").exists()


def _owned(shared: Path, **owner: Any) -> Path:
    """A run that began elsewhere, and who is said to train it."""
    place = storage.of_run(str(shared), "one")
    place.write(
        "config.yaml",
        request.check("digits", [*TINY, "train.epochs=2", _PLACE.format(shared)]).config.to_yaml().encode(),
    )
    place.write("owner.json", json.dumps(owner).encode())
    return shared / "runs/one/owner.json"


def test_a_run_that_another_machine_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "shared"))
    file = _owned(tmp_path / "shared", host="elsewhere", pid=12, machine="another")
    before = file.read_text()
    assert cli.main(["train", "--resume", "one"]) == 2
    assert "process 12 on elsewhere" in capsys.readouterr().err
    assert file.read_text() == before
    old = time.time() - 2 * lease.FRESH_S
    os.utime(file, (old, old))  # it has not been heard of since
    assert cli.main(["train", "--resume", "one"]) == 0
    assert not file.exists()


def test_a_driver_of_this_machine_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    config = request.check("digits", TINY).config
    for pid, refused in ((os.getppid(), True), (gone.pid, False)):
        file = _owned(tmp_path / "shared", **{**lease.this_process(), "pid": pid})
        with RunFolder.create(f"one{pid}", config) as here:
            here.name = "one"
            mirror = storage_mirror.StorageMirror(here, str(tmp_path / "shared"), pytest.fail)
            if refused:
                with pytest.raises(Busy, match=str(pid)):
                    mirror.__enter__()
                continue
            with mirror:
                assert json.loads(file.read_text())["pid"] == os.getpid()
            assert not file.exists()


def test_a_beat_that_is_slow_does_not_say_that_a_run_is_trained_which_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, write = threading.Event(), storage.Storage.write

    def slow(place: storage.Storage, key: str, content: bytes) -> storage.Entry:
        if threading.current_thread().name == "storage-lease" and key == "owner.json":
            begun.set()
            time.sleep(1.0)
        return write(place, key, content)

    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(storage.Storage, "write", slow)
    with RunFolder.create("one", request.check("digits", TINY).config) as here:
        mirror = storage_mirror.StorageMirror(here, str(tmp_path / "shared"), pytest.fail, new=True)
        with mirror:
            assert begun.wait(60)
        for thread in threading.enumerate():
            if thread.name == "storage-lease":
                thread.join(60)
    assert not (tmp_path / "shared/runs/one/owner.json").exists()


@pytest.mark.parametrize(
    "failure", [RunFailed("the network is away"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_a_run_that_did_not_start_is_free_at_once(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _owned(tmp_path / "shared", host="elsewhere", pid=12, machine="another")
    old = time.time() - 2 * lease.FRESH_S
    os.utime(file, (old, old))

    def get(*_: object) -> storage.Entry:
        raise failure

    monkeypatch.setattr(storage.Storage, "get", get)
    with (
        RunFolder.create("one", request.check("digits", TINY).config) as here,
        pytest.raises(ConfigError if isinstance(failure, RunFailed) else type(failure)),
        storage_mirror.StorageMirror(here, str(tmp_path / "shared"), pytest.fail),
    ):
        pytest.fail("it began")
    assert not file.exists()


def test_the_owner_is_removed_where_the_last_files_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    write = storage.Storage.write

    def no_figures(place: storage.Storage, key: str, content: bytes) -> storage.Entry:
        if key == "figures.csv":
            raise RunFailed("no more figures here")
        return write(place, key, content)

    with (
        RunFolder.create("one", request.check("digits", TINY).config) as here,
        storage_mirror.StorageMirror(here, str(tmp_path / "shared"), warned.append, new=True),
    ):
        (here.path / "figures.csv").write_text("epoch")
        monkeypatch.setattr(storage.Storage, "write", no_figures)
    assert len(warned) == 1
    assert "no more figures here" in warned[0]
    assert not (tmp_path / "shared/runs/one/owner.json").exists()


def test_a_run_that_was_taken_over_ends_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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

    monkeypatch.setattr(driver, "Display", lambda: At(1, take_over))
    assert train("--name", "one", _PLACE.format(tmp_path / "shared")) == 1
    assert "another process has taken the run over" in capsys.readouterr().err
    assert json.loads(owner.read_text()) == {"host": "elsewhere"}


def test_sweeps_say_that_they_have_no_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "alpha", _PLACE.format(tmp_path / "shared"), "--dry-run"]) == 2
    assert "resources.storage" in capsys.readouterr().err


def test_a_configuration_with_credentials_is_not_gone_on_with(tmp_path: Path) -> None:
    with RunFolder.create("one", request.check("digits", TINY).config):
        pass
    with pytest.raises(ConfigError, match="resources.storage = 's3://bucket/x"):
        driver.resume("one", ["resources.storage=s3://a:b@bucket/x"])


@pytest.mark.slow
def test_an_s3_server_that_is_killed_ends_the_run(
    tmp_path: Path,
    bucket: str,
    s3_server: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server that goes away is a relay in front of the real one."""
    relay = _Relay(s3_server)
    monkeypatch.setattr(driver, "Display", lambda: At(2, relay.close))
    assert train("--name", "one", _PLACE.format(bucket.replace(str(s3_server), str(relay.port)))) == 1
    assert "The last good one there is epoch_00002.pt" in capsys.readouterr().err
    assert remote.names(storage.of_run(bucket, "one")) == ["epoch_00001.pt", "epoch_00002.pt"]
    assert cli.main(["train", "--resume", "one", _PLACE.format(bucket)]) == 0
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


_NODE = """
mount -t tmpfs none "$PCL_RAY_HOME" && exec ray start --address=127.0.0.1:{port} --num-cpus=1 --block
"""


def _own_mounts() -> bool:
    try:
        return (
            subprocess.run(
                ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, timeout=20
            ).returncode
            == 0
        )
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _own_mounts(), reason="needs the right to give processes file systems of their own")
def test_nodes_that_share_no_files(tmp_path: Path, bucket: str) -> None:
    """Three nodes of one machine, of which two see an empty PCL_RAY_HOME of their own."""
    home().mkdir(parents=True)
    port = free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    head = [
        "ray",
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--block",
    ]
    nodes: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "nodes.log").open("w") as log:
        try:
            for command in (
                head,
                *(["unshare", "-m", "sh", "-c", _NODE.format(port=port)] for _ in range(2)),
            ):
                nodes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                time.sleep(12)
            environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
            for words in (
                [
                    "digits",
                    *DIGITS_RUN,
                    "resources.workers=2",
                    "train.epochs=2",
                    "--name",
                    "one",
                    _PLACE.format(bucket),
                ],
                ["--resume", "one"],
            ):
                ended = subprocess.run(
                    ["pcl-ray", "train", *words], env=environment, capture_output=True, text=True, timeout=300
                )
                assert ended.returncode == 0, ended.stderr
            assert remote.names(storage.of_run(bucket, "one")) == ["epoch_00001.pt", "epoch_00002.pt"]
            assert (folder("one") / "checkpoints/epoch_00002.pt").is_file()
        finally:
            for node in reversed(nodes):
                node.terminate()
                try:
                    node.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(node.pid, signal.SIGKILL)
