"""Pictures that are copies of one another, and files that change, vanish or break while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcl_ray import cli
from pcl_ray.errors import DataError
from pcl_ray.runs import driver, request
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import RunFolder, read_state_at
from pcl_ray.training.events import Event

TINY = (
    *("resources.workers=0", "train.epochs=3", "e_step.warmup_epochs=1", "optimizer.warmup_epochs=0"),
    *("train.batch_size=8", "loss.queue_size=16", "encoder.width=8", "augment.image_size=16"),
    *("evaluation.every_epochs=3", "data.holdout=0.2", "tracking.enabled=false", "tracking.pictures=0"),
)
READ_EACH_TIME = ("data.in_memory=false", "data.loader_workers=0", "e_step.num_clusters=3")


def picture(number: int, side: int = 16) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder_of(path: Path, numbers: list[int]) -> Path:
    path.mkdir()
    for name, number in enumerate(numbers):
        picture(number).save(path / f"{name:03d}.png")
    return path


def train(path: Path, *words: str) -> int:
    return cli.main(["train", "folder", f"data.path={path}", *TINY, *words, "--name", "one"])


# ---- copies


def test_a_folder_of_one_repeated_picture_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder_of(tmp_path / "same", [7] * 60)) == 2
    said = capsys.readouterr().err
    assert "all 60 pictures are the same one, byte for byte (000.png and 059.png" in said
    assert train(tmp_path / "same", "--dry-run") == 2  # known by now
    assert "all 60 pictures are the same one" in capsys.readouterr().err


def test_too_few_different_pictures_for_the_clusters_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(tmp_path / "two", [1, 2] * 30)
    assert train(path, "e_step.num_clusters=5") == 2
    said = capsys.readouterr().err
    assert "58 of 60 pictures are copies of others, byte for byte; the 2 different ones make no 5" in said


def test_two_pictures_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder_of(tmp_path / "two", [1, 2])
    assert cli.main(["train", "folder", f"data.path={path}", "resources.workers=0"]) == 2
    assert "too few" in capsys.readouterr().err


def test_an_array_of_one_repeated_picture_ends_with_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "same.npy", np.repeat(np.asarray(picture(3, 8))[None], 60, axis=0))
    words = ("data.source=arrays", f"data.path={tmp_path / 'same.npy'}", "e_step.patience=1")
    recipe = ["train", "folder", *TINY, *words, "augment.image_size=8", "e_step.num_clusters=3"]
    assert cli.main([*recipe, "--name", "one"]) == 1
    assert "so near that the images may be all the same" in capsys.readouterr().err
    assert read_state_at(RunFolder.path_of("one"))["state"] == "failed"


# ---- files that change within an epoch


class Changing(Display):
    """Does something to the pictures in the middle of the second epoch."""

    def __init__(self, change: Callable[[], None]):
        super().__init__()
        self._change, self._done = change, False

    def handle(self, event: Event) -> None:
        if event.kind == "epoch" and not self._done:
            self._done = True
            self._change()


def remove(path: Path) -> None:
    for file in sorted(path.glob("*.png"))[20:24]:
        file.unlink()


def cut_off(path: Path) -> None:
    for file in sorted(path.glob("*.png"))[20:24]:
        file.write_bytes(file.read_bytes()[:40])


def unmount(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize("change", [remove, cut_off, unmount])
def test_pictures_that_break_end_the_run_with_their_name_and_it_goes_on_where_they_are_back(
    change: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(tmp_path / "pictures", list(range(60)))
    kept = {file: file.read_bytes() for file in path.glob("*.png")}
    checked = request.check("folder", [f"data.path={path}", *TINY, *READ_EACH_TIME])
    with pytest.raises(Exception, match=r"\.png") as raised:
        driver.start(checked, name="one", display=Changing(lambda: change(path)))
    assert type(raised.value).__name__ in ("RunFailed", "DataError")
    state = read_state_at(RunFolder.path_of("one"))
    assert state["state"] == "failed"
    assert ".png" in state["error"]
    if not path.exists():
        path.with_name("elsewhere").rename(path)
    for file, content in kept.items():
        file.write_bytes(content)
    assert cli.main(["train", "--resume", "one"]) == 0
    assert read_state_at(RunFolder.path_of("one"))["state"] == "finished"


def test_a_picture_that_changes_within_an_epoch_is_noticed_and_one_that_is_touched_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(tmp_path / "pictures", list(range(60)))
    first, *others = sorted(path.glob("*.png"))
    kept = {file: file.read_bytes() for file in others}
    checked = request.check("folder", [f"data.path={path}", *TINY, *READ_EACH_TIME])
    driver.start(checked, name="touched", display=Changing(lambda: first.write_bytes(first.read_bytes())))

    def change() -> None:
        for number, file in enumerate(others):
            picture(1000 + number).save(file)

    with pytest.raises(DataError, match=r"\.png has changed since the run looked at it"):
        driver.start(checked, name="one", display=Changing(change))
    assert read_state_at(RunFolder.path_of("one"))["state"] == "failed"
    assert cli.main(["train", "--resume", "one"]) == 2
    assert "files of the same names have other content" in capsys.readouterr().err
    for file, content in kept.items():
        file.write_bytes(content)
    assert cli.main(["train", "--resume", "one"]) == 0
