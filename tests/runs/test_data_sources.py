"""Whole runs over the same pictures as a folder, as tar shards and as Parquet files, here and in object
storage: the same figures and weights, bit by bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import CLASSES, class_of, order, samples, write_folder, write_parquet, write_tar
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.checkpoints import run_state
from pcl_ray.config import load
from pcl_ray.runs import preparation
from pcl_ray.support.paths import home
from pcl_ray.support.storage import Storage

SMALL = (
    *("resources.workers=0", *DIGITS_RUN, "data.limit=null", "data.channels=3", "train.epochs=2"),
    *("augment.mean=0.5,0.5,0.5", "augment.std=0.5,0.5,0.5", "train.batch_size=32", "loss.queue_size=64"),
)
COUNT = 120


def numbers() -> list[int]:
    return order(COUNT)


def as_source(kind: str, root: Path) -> list[str]:
    """Writes the pictures, and gives back the knobs that name them."""
    match kind:
        case "folder":
            return ["data.source=folder", f"data.path={write_folder(root, numbers())}"]
        case "webdataset":
            for number in range(3):
                part = numbers()[number * 40 : number * 40 + 40]
                write_tar(root / f"s-{number:03}.tar", samples(part), [f"{i:04}" for i in part])
            return ["data.source=webdataset", f"data.path={root}/s-{{000..002}}.tar"]
        case "compressed":
            write_tar(root / "s.tar.gz", samples(numbers()), [f"{i:04}" for i in numbers()])
            return ["data.source=webdataset", f"data.path={root}"]
        case "parquet":
            write_parquet(root / "data/p-00000-of-00002.parquet", numbers()[:70])
            write_parquet(root / "data/p-00001-of-00002.parquet", numbers()[70:])
            return ["data.source=parquet", f"data.path={root}"]
        case "list":
            folder = write_folder(root / "pictures", numbers())
            lines = [f"{CLASSES[class_of(i)]}/{i:04}.png" for i in numbers()]
            (root / "list.txt").write_text("\n".join(f"{line}\t{line.partition('/')[0]}" for line in lines))
            return ["data.source=folder", f"data.path={folder}", f"data.list={root}/list.txt"]
        case _:
            folder = write_folder(root / "pictures", numbers())
            rows = [f"{CLASSES[class_of(i)]}/{i:04}.png,{CLASSES[class_of(i)]}" for i in numbers()]
            (root / "labels.csv").write_text("path,label\n" + "\n".join(rows))
            write_folder(folder / "more", [999])
            words = ["data.source=folder", f"data.path={folder}", f"data.labels={root}/labels.csv"]
            return [*words, "data.exclude=more"]


def train(name: str, *words: str) -> dict[str, Any]:
    result = home() / f"{name}.json"
    home().mkdir(exist_ok=True)
    assert cli.main(["train", "digits", *SMALL, *words, "--name", name, "--result", str(result)]) == 0
    return json.loads(result.read_text())


def history(name: str) -> list[str]:
    """The figures of all epochs but those of time and memory, to the last bit."""
    state = run_state.load(Path(json.loads((home() / f"{name}.json").read_text())["checkpoint"]))
    return [
        f"{key} {value!r}"
        for epoch in state.history
        for key, value in flattened(epoch).items()
        if not any(word in key for word in ("perf/", "system/", "seconds"))
    ]


def flattened(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its levels."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= flattened(value) if isinstance(value, dict) else {key: value}
    return flat


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return run_state.load(Path(result["checkpoint"])).learner["model"]


def assert_same_runs(name: str, other: str) -> None:
    first, second = (json.loads((home() / f"{run}.json").read_text()) for run in (name, other))
    assert history(name) == history(other)
    assert len(history(name)) > 20
    mine, others = weights(first), weights(second)
    assert mine.keys() == others.keys()
    assert [key for key in mine if not torch.equal(mine[key], others[key])] == []


@pytest.mark.parametrize(
    "reading",
    [
        ("data.in_memory=true",),
        ("data.in_memory=false", "data.loader_workers=0"),
        pytest.param(
            ("data.in_memory=false", "data.loader_workers=2", "augment.engine=torchvision"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["memory", "files", "processes"],
)
def test_every_source_trains_the_same(tmp_path: Path, reading: tuple[str, ...]) -> None:
    kinds = ["folder", "webdataset", "parquet"]
    if reading[0] == "data.in_memory=true":
        kinds += ["compressed", "list", "labels"]
    for kind in kinds:
        result = train(kind, *as_source(kind, tmp_path / kind), *reading)
        assert "eval/knn_top1" in result["metrics"]
        state = json.loads((home() / "runs" / kind / "state.json").read_text())
        assert state["class_names"] == list(CLASSES)
    for kind in kinds[1:]:
        assert_same_runs("folder", kind)
    report = (home() / "runs/parquet/report.html").read_text()
    assert all(name in report for name in CLASSES)


@pytest.mark.parametrize("kind", [pytest.param("webdataset", marks=pytest.mark.slow), "parquet"])
def test_object_storage_trains_the_same(tmp_path: Path, bucket: str, kind: str) -> None:
    words = as_source(kind, tmp_path / "local")
    storage = Storage(bucket)
    for path in (tmp_path / "local").rglob("*.*"):
        storage.write(str(path.relative_to(tmp_path / "local")), path.read_bytes())
    train("local", *words, "data.in_memory=false")
    train("remote", f"data.source={kind}", f"data.path={bucket}", "data.in_memory=false")
    assert_same_runs("local", "remote")


COMMAND = [sys.executable, "-m", "pcl_ray.cli", "train"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_killed_run_goes_on(tmp_path: Path, kind: str) -> None:
    """Its cache is gone as well; and yet it ends as one that was never stopped."""
    words = [*as_source(kind, tmp_path / "d"), "data.in_memory=false", "train.epochs=8"]
    train("whole", *words)
    process = subprocess.Popen(
        [*COMMAND, "digits", *SMALL, *words, "--name", "cut"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = home() / "runs/cut/checkpoints"
    deadline = time.monotonic() + 240
    while not (checkpoints / "epoch_00001.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (checkpoints / "epoch_00008.pt").exists()
    for path in (home() / "cache").glob("*"):
        path.unlink()
    result = home() / "cut.json"
    resumed = [*COMMAND, "--resume", "cut", "--result", str(result)]
    assert subprocess.run(resumed, timeout=300, env=os.environ.copy()).returncode == 0
    assert_same_runs("whole", "cut")


def test_a_run_whose_labels_have_changed_does_not_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = as_source("labels", tmp_path / "d")
    train("one", *words)
    table = tmp_path / "d/labels.csv"
    table.rename(tmp_path / "moved.csv")
    resume = ["train", "--resume", "one", "train.epochs=3", f"data.labels={tmp_path}/moved.csv"]
    assert cli.main(resume) == 0  # a file may be elsewhere
    text = (tmp_path / "moved.csv").read_text()
    (tmp_path / "moved.csv").write_text(text.replace(",eel", ",ox"))
    (tmp_path / "moved.csv").write_text(text.replace(",cat", ",zebra"))  # the others get other numbers
    assert cli.main(["train", "--resume", "one", "train.epochs=4"]) == 2
    assert "the images of run 'one' have changed" in capsys.readouterr().err


def test_bad_pictures_and_rows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [*samples(numbers()), {"png": b"no picture", "cls": b"cat"}]
    path = write_tar(tmp_path / "d/s.tar", content)
    words = ["data.source=webdataset", f"data.path={tmp_path}/d"]
    assert cli.main(["train", "digits", *SMALL, *words, "--name", "one"]) == 2
    problem = capsys.readouterr().err
    assert "1 of 121 images cannot be read" in problem
    assert f"{path}/0120.png: cannot identify image file" in problem
    train("one", *words, "data.on_bad_image=skip")
    captured = capsys.readouterr()
    assert f"{path}/0120.png: cannot identify image file" in captured.err
    assert "webdataset: 96 images to train on, 24 held out, 3 classes" in captured.out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.source=parquet"], "data.source = parquet needs data.path"),
        (["data.source=parquet", "data.path=/gone"], "data.path = '/gone': no such file or folder"),
        (["data.source=webdataset", "data.path=ftp://x/y.tar"], "ftp:// is not known here"),
        (["data.source=folder", "data.path=s3://b/x"], "from object storage parquet and webdataset are read"),
        (["data.labels=x.csv"], "data.labels = 'x.csv': is for data.source = folder"),
        (["data.image_column=x"], "data.image_column = 'x': is for data.source = parquet or webdataset"),
        (["data.exclude=a,*.gif"], "data.exclude = ['a', '*.gif']: is for data.source = folder or imagenet"),
        (["data.source=folder", "data.list=/gone"], "data.list = '/gone' does not exist"),
    ],
)
def test_wrong_requests(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", *SMALL, *words, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert problem in message
    assert "Traceback" not in message


def test_one_class_and_several_labels_train(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", numbers())
    rows = [f"{CLASSES[class_of(i)]}/{i:04}.png,thing" for i in numbers()]
    (tmp_path / "one.csv").write_text("\n".join(rows))
    words = ["data.source=folder", f"data.path={folder}"]
    train("one", *words, f"data.labels={tmp_path}/one.csv", "evaluation.final=linear,few_labels,clusters")
    rows = [f"{CLASSES[class_of(i)]}/{i:04}.png,{CLASSES[class_of(i)]};odd" for i in numbers() if i % 2]
    (tmp_path / "many.csv").write_text("\n".join(rows))
    result = train("many", *words, f"data.labels={tmp_path}/many.csv", "data.in_memory=true")
    assert "eval/knn_top1" in result["metrics"]
    config = load("digits", [*SMALL, *words, f"data.labels={tmp_path}/many.csv", "data.in_memory=true"])
    splits, _ = preparation.load_data(config, preparation.Display())
    assert splits.train.label_sets is not None
    assert splits.train.label_sets.matrix(4).sum(axis=1).max() == 2
