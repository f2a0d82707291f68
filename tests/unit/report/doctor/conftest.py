"""Runs for the doctor: real ones, each trained once for all tests of a session."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from small import PLAIN_DIGITS

from pcl_ray.errors import RunFailed
from pcl_ray.report.run_record import RunRecord
from pcl_ray.runs import driver, record_reader, request
from pcl_ray.runs.console import Display

SMALL = (
    *PLAIN_DIGITS,
    "loss.temperature=0.2",
    "augment.image_size=8",
    "encoder.width=8",
    "encoder.blocks=1,1",
    "encoder.dim=32",
    "loss.queue_size=256",
    "data.limit=600",
    "train.batch_size=64",
    "train.epochs=12",
    "train.log_every_steps=20",
    "e_step.num_clusters=12,24",
    "e_step.warmup_epochs=3",
    "tracking.enabled=false",
    "evaluation.final=[]",
    "tracking.report=false",
    "tracking.pictures=0",
    "evaluation.reference_lines=false",  # so small an encoder does not reach the pixels of digits
    "resources.workers=0",
)
DIGITS = load_digits()
PICTURES = (DIGITS.images * 255 / 16).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (600, 8, 8), dtype=np.uint8)


def _pictures(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    if name == "noise":
        return {"images": NOISE}
    if name == "copies":  # two thirds are one picture
        images = PICTURES[:700].copy()
        images[250:] = PICTURES[3]
        return {"images": images, "labels": DIGITS.target[:700]}
    if name == "few":  # forty pictures, fifteen times each
        return {"images": np.tile(PICTURES[:40], (15, 1, 1)), "labels": np.tile(DIGITS.target[:40], 15)}
    if name == "mirrored":  # classes that flips make alike
        side = rng.integers(0, 2, 1400)
        images = PICTURES[:1400].copy()
        images[side == 1] = images[side == 1][:, :, ::-1]
        return {"images": images, "labels": side}
    frames = rng.integers(0, 255, (900, 12, 12), dtype=np.uint8)  # a border that gives every picture away
    frames[:, 2:10, 2:10] = PICTURES[:900]
    return {"images": frames, "labels": DIGITS.target[:900]}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunRecord]:
    """The record of a run with these knobs; trained once."""
    known: dict[tuple[str, ...], RunRecord] = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(*words: str, pictures: str = "") -> RunRecord:
        key = (pictures, *words)
        if key not in known:
            home = (
                folder / hashlib.sha256(repr(key).encode()).hexdigest()[:12]
            )  # a failed one is not met again
            data = ()
            if pictures:
                np.savez(folder / f"{pictures}.npz", **_pictures(pictures))
                data = ("data.source=arrays", f"data.path={folder / f'{pictures}.npz'}")
            known[key] = _trained(home, (*SMALL, *data, *words))
        return known[key]

    return make


def _trained(home: Path, words: tuple[str, ...]) -> RunRecord:
    before = os.environ["PCL_RAY_HOME"]
    os.environ["PCL_RAY_HOME"] = str(home)
    try:
        asked = request.check("digits", words)
        with open(os.devnull, "w") as nowhere, suppress(RunFailed):
            driver.start(asked, name="it", display=Display(nowhere))
        return record_reader.read("it")
    finally:
        os.environ["PCL_RAY_HOME"] = before


@pytest.fixture
def good(made: Callable[..., RunRecord]) -> RunRecord:
    return made()
