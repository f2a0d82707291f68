"""Files whose names are no text, or none that can be seen, through the command in child processes, each with
another locale: what one wrote the next one finds.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import pcl_ray
from pcl_ray.support.paths import path_text

# Neither UTF-8 nor Python's own way out of it.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
POSIX = {"LC_ALL": "POSIX"}
UTF_8 = {"LC_ALL": "C.UTF-8"}
CLASSES = ("emoji \N{FOX FACE}".encode(), b"no text \xff\xfe", b"line\nbreak")
FILES = (
    *(b"plain.png", "\N{FOX FACE} zwj\u200d.png".encode(), b"latin-\xe9.png", b"a\nb.png"),
    *(b"\x1b[31mred.png", "\u202egnp.png".encode(), b"x" * 240 + b".png", b"back\\slash.png"),
    b" #lead: 'q', ;$x$.png",
)
TINY = (
    *("resources.workers=0", "train.epochs=2", "e_step.warmup_epochs=1", "e_step.num_clusters=3"),
    *("train.batch_size=6", "loss.queue_size=12", "encoder.width=8", "augment.image_size=16"),
    *("evaluation.every_epochs=2", "data.holdout=0.4"),
)


@cache
def latin_1(folder: Path) -> dict[str, str]:
    """The environment of a locale in Latin-1, or ASCII's where it cannot be made."""
    if shutil.which("localedef"):
        made = folder / "en_US.ISO-8859-1"
        make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", made]
        subprocess.run(make, check=False, capture_output=True)
        if made.is_dir():
            return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}
    return ASCII


def pcl(locale: dict[str, str], *words: str | bytes, code: int = 0, **more: str) -> tuple[str, str]:
    """What the command prints, read as its locale writes it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= {"PYTHONPATH": str(Path(pcl_ray.__file__).parents[1]), **locale, **more}
    done = subprocess.run(
        [sys.executable, "-m", "pcl_ray.cli", *words], capture_output=True, env=environment, timeout=600
    )
    encoding = "latin-1" if "LOCPATH" in locale else "utf-8"
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


def write_picture(path: bytes, seed: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    with open(path, "wb") as file:
        file.write(content.getvalue())


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[bytes, list[bytes]]:
    """A folder, and the sound pictures in it."""
    root = os.fsencode(tmp_path) + b"/\xff my\npictures: x #1"
    paths = [root + b"/" + kind + b"/" + file for kind in CLASSES for file in FILES]
    for seed, path in enumerate(paths):
        write_picture(path, seed)
    return root, paths


@pytest.mark.slow
def test_every_locale_sees_the_same_pictures(tmp_path: Path, pictures: tuple[bytes, list[bytes]]) -> None:
    root, paths = pictures
    below = [path.removeprefix(root + b"/") for path in (paths[2], paths[3], paths[11])]
    # a line as it is, and one as it is shown; and names with a break in them, which only NUL sets apart
    shown = path_text(os.fsdecode(below[1])).encode()
    (tmp_path / "lines.txt").write_bytes(below[0] + b"\n" + shown + b"\n")
    (tmp_path / "nul.txt").write_bytes(b"\0".join([*below, b""]))
    data = b"data.path=" + root
    for locale in (ASCII, latin_1(tmp_path / "locales"), UTF_8):
        for word, count in (
            ("data.holdout=0", 27),
            ("data.exclude=no text *,**/latin*", 16),
            (rb"data.exclude=*\xff*", 18),
            (f"data.list={tmp_path}/lines.txt", 2),
            (f"data.list={tmp_path}/nul.txt", 3),
        ):
            dry = ["train", "folder", "--dry-run", data, *TINY, "data.holdout=0", word, "train.batch_size=2"]
            out, _ = pcl(
                locale,
                *dry,
                "e_step.num_clusters=2",
                "loss.queue_size=2",
                PCL_RAY_HOME=str(tmp_path / "home"),
            )
            assert f"images       {count} to train on" in out, word


@pytest.mark.slow
def test_names_of_any_bytes_are_found_again_in_every_locale(
    tmp_path: Path, pictures: tuple[bytes, list[bytes]]
) -> None:
    root, paths = pictures
    broken = root + b"/" + CLASSES[1] + b"/broken\n\xff.png"
    with open(broken, "wb") as file:
        file.write(b"no picture")
    texts = {path_text(os.fsdecode(path)) for path in paths}
    shown = path_text(os.fsdecode(broken))
    homes = {"PCL_RAY_HOME": str(tmp_path / "a home: @ \N{FOX FACE}")}
    latin = latin_1(tmp_path / "locales")

    # trains in ASCII, with pictures of which one is broken
    data = b"data.path=" + root
    out, err = pcl(ASCII, "train", "folder", data, *TINY, "--name", "one", "data.on_bad_image=skip", **homes)
    assert shown in out + err
    run = Path(homes["PCL_RAY_HOME"]) / "runs" / "one"
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert os.fsencode(stored["data"]["path"]) == root
    assert r"line\nbreak" in (run / "report.html").read_text(encoding="utf-8")

    # the names go into a collection in Latin-1, and are there once, whoever embeds them again
    collection = str(tmp_path / "collection \N{FOX FACE}")
    for locale, number in ((latin, 0), (UTF_8, 1)):
        out, err = pcl(locale, "embed", "one", root, "--out", collection, "--workers", "0", **homes)
        assert (f"{len(paths)} are embedded already" in out) == bool(number)
    parts = sorted(Path(collection, "parts").glob("*.parquet"))
    assert {path for part in parts for path in pq.read_table(part)["path"].to_pylist()} == texts
    with Path(collection, "broken.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [shown]

    # searched by name in ASCII; what is printed can be typed again
    out, err = pcl(ASCII, "search", collection, paths[4], "-k", "3", **homes)
    assert len(re.findall(r"^[01]\.\d+  /", out, re.MULTILINE)) == 3
    out, err = pcl(POSIX, "search", collection, os.fsencode(path_text(os.fsdecode(paths[2]))), **homes)
    with Path(collection, "search.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert {row["query"] for row in answers} == {path_text(os.fsdecode(paths[2]))}
    assert {row["path"] for row in answers} == texts - {path_text(os.fsdecode(paths[2]))}

    # labelled from raw names, of bytes, and from names as `sample` writes them
    pcl(latin, "sample", collection, "--count", "6", **homes)
    with Path(collection, "sample.csv").open(newline="", encoding="utf-8") as file:
        sampled = [row["path"] for row in csv.DictReader(file)]
    assert set(sampled) <= texts
    others = [path for path in paths if path_text(os.fsdecode(path)) not in sampled]
    lines = [b'"%s",a' % path for path in others[:4]] + [b'"%s",b' % text.encode() for text in sampled]
    table = tmp_path / "labels.csv"
    table.write_bytes(b"\n".join([b"path,label", *lines]))
    out, err = pcl(ASCII, "label", collection, str(table), **homes)
    assert f"given       {len(lines)} labels of 2 classes" in out
    assert not err
