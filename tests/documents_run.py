"""The documents' commands and Python as tests run them: on a few small pictures in folders that are called as
the documents call them, with small sizes added behind whatever trains.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documented import Block, Command, Mark, blocks_of
from shard_files import encoded, samples, write_folder, write_parquet, write_tar

from pcl_ray import cli
from pcl_ray.support.paths import home

# Added behind what is printed: sizes, one process without Ray, nothing recorded in MLflow.
SMALL = {
    "resources.workers": "0",
    "tracking.enabled": "false",
    "train.epochs": "2",
    "train.batch_size": "20",
    "loss.queue_size": "20",
    "e_step.num_clusters": "4,6,8",
    "e_step.warmup_epochs": "1",
    "e_step.threads": "1",
    "encoder.width": "8",
    "encoder.blocks": "1",
    "augment.image_size": "16",
    "data.limit": "40",
    "evaluation.final": "clusters",
}
WORDS = [f"{name}={value}" for name, value in SMALL.items()]
ADDED = {
    "train": WORDS,
    "fork": [*WORDS, "train.epochs=4"],
    "resume": ["train.epochs=3"],
    "sweep": [*WORDS, "--samples", "2"],
    "embed": ["--workers", "0"],
    "evaluate": ["--no-tracking", "--runs", "1", "--probe-epochs", "1"],
}
NAMES = {"RUN": "mine", "NAME": "mine", "DIR": "mine.embedded"}
ROOTS = re.compile(r"(?<![\w.])/(path/to|data|backup|home/me)(?=/|\b)")
LIMIT_S = 120  # a guard against hanging, not a measurement


def make_pictures(folder: Path) -> Path:
    """What the documents call pictures, labels, weights and shards, small."""
    write_folder(folder / "pictures", range(60))
    for name in ("path/to/pictures", "path/to/other/pictures", "data/birds", "home/me/pictures"):
        shutil.copytree(folder / "pictures", folder / name)
    for part, numbers in (("train", range(40)), ("val", range(40, 60))):
        write_folder(folder / "data/imagenet" / part, numbers)
    for number, name in enumerate(("cat.jpg", "this_one.jpg", "a.jpg", "b.png")):
        (folder / name).write_bytes(encoded(number, kind="PNG" if name.endswith("png") else "JPEG"))
    files = sorted((folder / "pictures").rglob("*.png"))
    (folder / "files.txt").write_text("".join(f"{path}\n" for path in files))
    rows = [f"{path.relative_to(folder / 'pictures')},{path.parent.name}\n" for path in files]
    (folder / "labels.csv").write_text("path,label\n" + "".join(rows))
    write_parquet(folder / "home/me/beans/data/train.parquet", range(60))
    for number in range(128):
        write_tar(folder / f"home/me/shards/train-{number:04}.tar", samples([number]))
    (folder / "shards").mkdir()
    choices = "loss.temperature: {type: choice, values: [0.1, 0.2]}"
    (folder / "mine.yaml").write_text(f"base: folder\nspace: {{{choices}}}\n")
    return folder


def train_mine(pictures: Path, folder: Path) -> Path:
    """PCL_RAY_HOME with the run that the documents call mine, RUN or NAME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCL_RAY_HOME", str(folder))
        words = ["train", "folder", f"data.path={pictures}/pictures", *WORDS, "--name", "mine"]
        assert cli.main(words) == 0
    return folder


def make_world(pictures: Path, trained: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: the pictures, and weights from the run."""
    shutil.copytree(pictures, folder)
    newest = max((trained / "runs/mine/checkpoints").glob("*.pt"))
    for name in ("weights.pth", "weights.pth.tar", "moco_v2_800ep_pretrain.pth.tar"):
        shutil.copy(newest, folder / name)
    (folder / "backup").mkdir()
    patch.chdir(folder)
    patch.setenv("HOME", str(folder / "home/me"))
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return folder


def placed(text: str, folder: Path) -> str:
    """The text with the reader's folders and names in it."""
    text = ROOTS.sub(rf"{folder}/\1", text)
    return re.sub(r"\b(RUN|NAME|DIR)\b", lambda match: NAMES[match[1]], text)


def run_command(command: Command, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(placed(command.line, folder), comments=True)
    if words[0] != "pcl-ray":
        done = subprocess.run(
            ["bash", "-ec", placed(command.line, folder)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command.line}\n{done.stderr}"
        return
    capsys.readouterr()
    resumes_sweep = words[1] == "sweep" and "--resume" in words  # which takes space and recipe as they were
    added = [] if command.printed or resumes_sweep else ADDED.get(words[1], [])
    code = cli.main([*words[1:], *added])
    shown = capsys.readouterr()
    if command.printed:
        assert shown.err == command.printed
    else:
        assert code == 0, f"{command.line}\n{shown.err}"


def run_python(block: Block, folder: Path, names: dict[str, Any]) -> None:
    text = placed(block.text, folder)
    sizes = ", ".join(f'"{name}": "{value}"' for name, value in SMALL.items())
    text = re.sub(r'(train\(\s*"\w+", )\{([^}]*)\}', rf"\1{{\2, {sizes}}}", text)
    text = text.replace("sweep(space, ", f"sweep(space, {{{sizes}}}, ")
    exec(compile(text, block.title, "exec"), names)


def names_of(document: Path) -> dict[str, Any]:
    """What the Python of a document takes from the reader: features, labels, pictures."""
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 8)).astype(np.float32)
    labels = np.arange(60) % 3
    match document.stem:
        case "evaluation":
            tensors = {"bank_NC": features, "query_QC": features[:20], "features_NC": features}
            numbers = {"bank_labels_N": labels, "query_labels_Q": labels[:20], "labels_N": labels}
            given = {name: torch.from_numpy(value) for name, value in (tensors | numbers).items()}
            return given | {
                "bank": features,
                "bank_labels": labels,
                "queries": features[:20],
                "query_labels": labels[:20],
            }
        case "models":
            return {"array": random.integers(0, 255, (16, 16, 3), dtype=np.uint8)}
        case "collections":
            return {"queries": random.normal(size=(2, 8)).astype(np.float32)}
    return {}


def prepare(document: Path, trained: Path) -> None:
    """What else is there before the first command of a document: a run, where it trains none of this name."""
    if not re.search(r"""--name mine\b|name="mine\"""", document.read_text()):
        shutil.copytree(trained, home())
    if document.stem == "operating":
        store = home() / "mlflow"
        (store / "artifacts").mkdir(parents=True)
        sqlite3.connect(store / "mlflow.db").execute("create table runs (name text)").connection.close()


def run_document(
    document: Path, folder: Path, capsys: pytest.CaptureFixture[str], *, slow: bool
) -> tuple[int, list[Mark]]:
    """Runs what a document prints, from top to bottom: what is not marked, or the slow ones alone. Gives back
    how many commands and blocks of Python were run, and the marks of the others.
    """
    names = names_of(document)
    left_out: list[Mark] = []
    count = 0
    for block in blocks_of(document):
        steps: list[tuple[Mark | None, Command | None]] = [(each.mark, each) for each in block.commands()]
        if block.language == "python":
            steps.append((block.mark_of(block.text), None))
        for mark, command in steps:
            if mark is not None and not (slow and mark.slow):
                left_out.append(mark)
            elif mark is None and slow:
                continue
            elif command is not None:
                run_command(command, folder, capsys)
                count += 1
            else:
                run_python(block, folder, names)
                count += 1
    return count, left_out
