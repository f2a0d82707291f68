from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.voc import CLASSES, find_voc, read_voc

DOG, CAT, PERSON = (CLASSES.index(name) for name in ("dog", "cat", "person"))
# Objects of each image: name and whether it is difficult.
OBJECTS: dict[str, list[tuple[str, bool]]] = {
    "000001": [("dog", False), ("dog", True), ("person", True)],
    "000002": [("cat", False)],
    "000003": [],
    "000004": [("person", True), ("person", False)],
    "000005": [("cat", True)],
}
PARTS = {"trainval": ["000001", "000002", "000003"], "train": ["000001"], "val": ["000002", "000003"]}
PARTS["test"] = ["000004", "000005"]


def label(name: str, objects: list[tuple[str, bool]]) -> int:
    """What the official lists say: 1 an object, 0 difficult ones alone, −1 none."""
    difficult = [hard for other, hard in objects if other == name]
    if not difficult:
        return -1
    return 0 if all(difficult) else 1


def made(root: Path, parts: dict[str, list[str]] = PARTS, *, lists: bool, annotations: bool) -> Path:
    """A small VOC2007 below VOCdevkit."""
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "ImageSets/Main", "Annotations"):
        (folder / name).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        pixels = np.full((40, 50, 3), 10 * int(name), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        if annotations:
            entries = "".join(
                f"<object><name>{other}</name><difficult>{int(hard)}</difficult></object>"
                for other, hard in objects
            )
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{entries}</annotation>")
    for part, names in parts.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for each in CLASSES if lists else ():
            rows = "".join(f"{name} {label(each, OBJECTS[name]):2d}\n" for name in names)
            (folder / "ImageSets" / "Main" / f"{each}_{part}.txt").write_text(rows)
    return folder


@pytest.mark.parametrize(("lists", "annotations"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("start", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_lists_and_annotations_say_the_same(
    lists: bool, annotations: bool, start: str, tmp_path: Path
) -> None:
    made(tmp_path, lists=lists, annotations=annotations)
    images = read_voc(tmp_path / start, 3)
    assert images.multi is not None
    assert images.name == "VOC2007"
    bank, queries = images.multi.bank_BL, images.multi.queries_QL
    assert bank.shape == (3, 20)
    assert bank[:, DOG].tolist() == [1, 0, 0]
    assert bank[:, CAT].tolist() == [0, 1, 0]
    assert bank[:, PERSON].tolist() == [-1, 0, 0]  # difficult ones alone: left out
    assert queries[:, PERSON].tolist() == [1, 0]
    assert queries[:, CAT].tolist() == [0, -1]
    assert np.abs(bank).sum() + np.abs(queries).sum() == 5
    assert images.multi.validation_B is not None
    assert images.multi.validation_B.tolist() == [False, True, True]
    assert images.queries is not None
    assert images.bank.read(1).shape == (40, 50, 3)
    assert images.queries.read(0).mean() == pytest.approx(40, abs=2)
    assert images.num_classes == 20


def test_years_whose_test_part_has_no_labels_are_judged_on_val(tmp_path: Path) -> None:
    parts = {name: PARTS[name] for name in ("train", "val", "trainval")}
    made(tmp_path, parts, lists=True, annotations=False)
    images = read_voc(tmp_path, 3)
    assert images.queries is not None
    assert (len(images.bank), len(images.queries)) == (1, 2)
    assert images.multi is not None
    assert images.multi.validation_B is None


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    made(tmp_path, lists=True, annotations=False)
    with pytest.raises(DataError, match="knn needs one label an image; the images of VOC2007 have several"):
        read_voc(tmp_path, 3).check_single_labels("knn", queries=True)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "JPEGImages/000002.jpg").unlink(), "1 of 3 images are not in .*000002.jpg"),
        (lambda folder: (folder / "ImageSets/Main/dog_test.txt").write_text("000004 2\n"), "000004 2"),
        (
            lambda folder: (folder / "ImageSets/Main/dog_test.txt").write_text("000004 1\n"),
            "tells of 1 of the 2 images of test.txt",
        ),
        (lambda folder: (folder / "ImageSets/Main/test.txt").write_text(""), None),
        (lambda folder: [f.unlink() for f in (folder / "ImageSets/Main").glob("t*.txt")], "has no lists"),
    ],
)
def test_damage_is_one_sentence(break_it: object, message: str | None, tmp_path: Path) -> None:
    folder = made(tmp_path, lists=True, annotations=False)
    break_it(folder)  # type: ignore[operator]
    if message is None:  # without a list of the test part, val is judged
        assert read_voc(tmp_path, 3).queries is not None
        return
    with pytest.raises(DataError, match=message):
        read_voc(tmp_path, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "cannot be read as an annotation"),
        ("<a><object><name>unicorn</name></object></a>", "an object 'unicorn', which is no class of VOC"),
    ],
)
def test_a_damaged_annotation_is_named(text: str, message: str, tmp_path: Path) -> None:
    folder = made(tmp_path, lists=False, annotations=True)
    (folder / "Annotations" / "000003.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_voc(tmp_path, 3)


def test_other_folders_are_none(tmp_path: Path) -> None:
    assert find_voc(tmp_path) is None
    with pytest.raises(DataError, match="is no VOC folder"):
        read_voc(tmp_path, 3)
