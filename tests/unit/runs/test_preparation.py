from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import tracking
from pcl_ray.config import load
from pcl_ray.data.images import ArrayImages, FileImages
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.runs import preparation
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import RunFolder
from pcl_ray.support.paths import home


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(150):
        pixels = rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def test_a_process_is_prepared_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    preparation.prepare_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert (home() / "runs").is_dir()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    preparation.prepare_process()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"  # whoever sets it knows better


def test_a_home_that_cannot_be_written_ends_the_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "a file"))
    with pytest.raises(ConfigError, match="PCL_RAY_HOME"):
        preparation.prepare_process()


def test_the_driver_needs_torch_only_after_its_checks(loaded_by: Callable[..., list[str]]) -> None:
    assert loaded_by("pcl_ray.runs.driver, pcl_ray.runs.fork", "torch") == []


def test_data_come_with_their_plan() -> None:
    splits, plan = preparation.load_data(load("digits", DIGITS_RUN), Display(io.StringIO()))
    assert (len(splits.train), plan.num_images, plan.num_clusters) == (300, 300, (6, 12))
    assert preparation.num_classes(splits) == 10
    assert preparation.load_data(
        load("digits", [*DIGITS_RUN, "e_step.num_clusters=auto"]), Display(io.StringIO())
    )[1].num_clusters == (17,)


@pytest.mark.parametrize(("in_memory", "kind"), [(True, ArrayImages), (False, FileImages)])
def test_pictures_are_decoded_where_the_plan_says_so(pictures: Path, in_memory: bool, kind: type) -> None:
    words = ["data.source=folder", f"data.path={pictures}", "train.batch_size=32", "loss.queue_size=64"]
    config = load("digits", [*words, f"data.in_memory={in_memory}", "e_step.num_clusters=6"])
    splits, plan = preparation.load_data(config, Display(io.StringIO()))
    assert isinstance(splits.train, kind)
    assert plan.in_memory is in_memory
    assert preparation.num_classes(splits) == 0


def test_bad_pictures_are_told(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "empty.png").touch()
    words = ["data.source=folder", f"data.path={pictures}", "data.on_bad_image=skip"]
    splits, _ = preparation.load_data(
        load("digits", [*words, "train.batch_size=32", "loss.queue_size=64", "e_step.num_clusters=3,6"]),
        Display(io.StringIO()),
    )
    assert len(splits.train) + splits.num_holdout == 150
    warning = f"1 image cannot be read and is left out:\n  {pictures}/empty.png: empty file"
    assert warning in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_missing_data(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(pictures))

    monkeypatch.setattr("pcl_ray.data.datasets.load", denied)
    with pytest.raises(DataError, match="pictures cannot be read: Permission denied"):
        preparation.load_data(
            load("digits", ["data.source=folder", f"data.path={pictures}"]), Display(io.StringIO())
        )


def test_without_tracking_there_is_no_tracker() -> None:
    config = load("digits", DIGITS_RUN)
    with RunFolder.create("one", config) as folder:
        assert isinstance(preparation.open_tracker(folder, config, "f00", pytest.fail), tracking.NullRun)
