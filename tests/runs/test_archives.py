"""A run that was archived on one machine and is opened on another, where everything works as before."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.report.doctor.diagnosis import as_text, findings
from pcl_ray.runs import record_reader
from pcl_ray.runs.folder import RunFolder, read_state_at, write_state_at
from pcl_ray.support.paths import home

SMALL = ("resources.workers=0", *DIGITS_RUN, "train.epochs=2")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a run with an evaluation, whose home is no more."""
    file = tmp_path_factory.mktemp("sent") / "mine.pclrun.tar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCL_RAY_HOME", str(tmp_path_factory.mktemp("home")))
        assert cli.main(["train", "digits", *SMALL, "--name", "mine"]) == 0
        write_state_at(RunFolder.path_of("mine"), mlflow_run_id="abc", submission_id="job-1")
        assert cli.main(["evaluate", "mine", "--protocols", "knn"]) == 0
        (RunFolder.path_of("mine") / "report.html").unlink()
        assert cli.main(["archive", "mine", str(file)]) == 0
        shutil.rmtree(home())
    return file


def test_everything_works_where_it_is_opened(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["unarchive", str(archive)]) == 0
    folder = RunFolder.path_of("mine")
    assert capsys.readouterr().out == f"run         mine in {folder}\nthen        pcl-ray report mine\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "exhibit.npz",
        "figures.csv",
        "prototypes.csv",
        "report.html",
        "state.json",
    ]
    state = read_state_at(folder)
    assert state["state"] == "finished"
    assert not {"machine", "mlflow_run_id", "submission_id", "link", "phase"} & state.keys()
    record = record_reader.read("mine")
    assert record.epochs == 2
    assert [evaluation.epochs for evaluation in record.evaluations] == [2]
    assert "mine" in as_text(record, findings(record))
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (9, 9), np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    for words in (
        ["report", "mine"],
        ["export", "mine", "--to", "safetensors"],
        ["embed", "mine", str(tmp_path / "pictures"), "--out", str(tmp_path / "embedded"), "--workers", "0"],
        ["evaluate", "mine", "--protocols", "knn"],
        ["fork", "mine", "train.epochs=3", "loss.temperature=0.3", "--name", "other"],
        ["resume", "mine", "train.epochs=3"],
    ):
        assert cli.main(words) == 0, capsys.readouterr()
    assert record_reader.read("mine").epochs == 3


def test_it_can_have_another_name_and_takes_no_name_twice(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["unarchive", str(archive), "--name", "theirs"]) == 0
    record = record_reader.read("theirs")
    assert [evaluation.epochs for evaluation in record.evaluations] == [2]
    shutil.rmtree(RunFolder.path_of("theirs") / "checkpoints")  # as of a trial that was pruned
    without = [{**entry, "metrics": {**entry["metrics"]}} for entry in record.history]
    for entry in without:
        entry["metrics"].pop("epoch", None)
    assert record_reader.read("theirs").history == without
    assert cli.main(["unarchive", str(archive), "--name", "theirs"]) == 2
    assert "run 'theirs' exists already" in capsys.readouterr().err
    assert cli.main(["unarchive", str(archive), "--name", "../theirs"]) == 2
    assert not list(home().glob(".opening-*"))


def changed(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members."""
    with tarfile.open(source) as archive:
        members = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            members[member.name] = file.read()
    change(members)
    with tarfile.open(target, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target


def with_file(name: str) -> Callable[[dict[str, bytes]], None]:
    """A file that the list names, too."""

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["archive.json"])
        manifest["files"][name] = {"bytes": 1, "sha256": "0"}
        members["archive.json"] = json.dumps(manifest).encode()
        members[name] = b"x"

    return change


def test_what_an_archive_must_not_hold_is_refused_and_leaves_nothing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = "runs/mine/checkpoints/epoch_00002.pt"

    def cut(members: dict[str, bytes]) -> None:
        del members[checkpoint]

    def flip(members: dict[str, bytes]) -> None:
        members[checkpoint] = members[checkpoint][:-1] + bytes([members[checkpoint][-1] ^ 1])

    def later(members: dict[str, bytes]) -> None:
        members["archive.json"] = members["archive.json"].replace(b'"format": 1', b'"format": 9')

    for change, message in (
        (cut, "is cut: 'runs/mine/checkpoints/epoch_00002.pt' is missing"),
        (flip, "has other content than its list says"),
        (later, "has format 9 of archives"),
        (
            lambda members: members.update({"runs/mine/more.txt": b"x"}),
            "'runs/mine/more.txt' is not as its list",
        ),
        (with_file("runs/mine/../../evil"), "which no archive of run 'mine' has"),
        (with_file("/etc/evil"), "which no archive of run 'mine' has"),
        (with_file("runs/other/config.yaml"), "which no archive of run 'mine' has"),
        (with_file("sweeps/mine/space.py"), "which no archive of run 'mine' has"),
        (lambda members: members.pop("archive.json"), "does not begin with archive.json"),
    ):
        file = changed(archive, tmp_path / "changed.tar", change)
        assert cli.main(["unarchive", str(file)]) == 2, message
        assert message in capsys.readouterr().err
        assert not RunFolder.path_of("mine").exists()
        assert not list(home().glob(".opening-*"))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_another_file_is_no_archive(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.tar"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["unarchive", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
