"""Pascal VOC in its official layout, as images with several labels each.

VOC2007/  JPEGImages/000005.jpg  ImageSets/Main/{trainval,train,val,test}.txt  Annotations/000005.xml
          ImageSets/Main/aeroplane_trainval.txt: "000005 -1", 1 there is one, 0 all of them are difficult
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from pcl_ray.data.images import FileImages
from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.images import EvaluationImages, MultiLabels

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
_LARGEST_ANNOTATION = 2**20  # bytes


def find_voc(root: Path) -> Path | None:
    """The folder with JPEGImages and ImageSets/Main: `root` itself, VOC2007 (or another year) in it, or in
    VOCdevkit in it; of several years 2007, else the last. None where there is none.
    """
    candidates = [root]
    for parent in (root, root / "VOCdevkit"):
        years = sorted(parent.glob("VOC20*"), key=lambda path: (path.name != "VOC2007", path.name))
        candidates += years[:1] if years and years[0].name == "VOC2007" else years[::-1]
    for folder in candidates:
        if (folder / "JPEGImages").is_dir() and (folder / "ImageSets" / "Main").is_dir():
            return folder
    return None


def read_voc(root: Path, channels: int) -> EvaluationImages:
    """trainval as bank and test as queries; train and val where test has no list, as in later years.

    In trainval, val is the part that choices are made on. Labels are those of the lists of each class where
    the folder has them, else of the annotations: 1 an object that is not difficult, −1 difficult ones alone,
    0 none. Raises DataError for a folder that lacks images, lists or labels.
    """
    folder = find_voc(root)
    if folder is None:
        raise DataError(f"{str(root)!r} is no VOC folder: JPEGImages and ImageSets/Main are needed")
    lists = {name: _names(folder, name) for name in ("trainval", "train", "val", "test")}
    if lists["test"]:
        bank, queries = lists["trainval"] or lists["train"] + lists["val"], lists["test"]
        bank_part, query_part = "trainval", "test"
    else:
        bank, queries, bank_part, query_part = lists["train"], lists["val"], "train", "val"
    if not bank or not queries:
        raise DataError(
            f"{folder / 'ImageSets' / 'Main'} has no lists of images: trainval.txt and test.txt are needed,"
            " or train.txt and val.txt"
        )
    labels = [_labels(folder, names, part) for names, part in ((bank, bank_part), (queries, query_part))]
    validation = None
    if lists["test"] and lists["val"]:
        validation = np.isin(np.array(bank), np.array(lists["val"]))
    multi = MultiLabels(labels[0], labels[1], validation)
    parts = [_images(folder, names, channels) for names in (bank, queries)]
    return EvaluationImages(folder.name, parts[0], parts[1], multi)


def _names(folder: Path, part: str) -> list[str]:
    """The images of a list; [] where there is no such list."""
    path = folder / "ImageSets" / "Main" / f"{part}.txt"
    return [line.split()[0] for line in _lines(path)] if path.is_file() else []


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _images(folder: Path, names: list[str], channels: int) -> FileImages:
    images = folder / "JPEGImages"
    missing = [name for name in names if not (images / f"{name}.jpg").is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images are not in {images}, the first: {missing[0]}.jpg"
        )
    files = np.array([f"{name}.jpg".encode() for name in names])
    return FileImages(str(images), files, channels, class_names=CLASSES)


def _labels(folder: Path, names: list[str], part: str) -> np.ndarray:
    """The labels [N, 20] int8, 1, 0 or −1, of the lists of the classes, or of annotations."""
    if all((folder / "ImageSets" / "Main" / f"{each}_{part}.txt").is_file() for each in CLASSES):
        return _labels_of_lists(folder, names, part)
    return np.stack([_labels_of_annotation(folder / "Annotations" / f"{name}.xml") for name in names])


def _labels_of_lists(folder: Path, names: list[str], part: str) -> np.ndarray:
    labels = np.zeros((len(names), len(CLASSES)), dtype=np.int8)
    row = {name: i for i, name in enumerate(names)}
    for column, each in enumerate(CLASSES):
        path = folder / "ImageSets" / "Main" / f"{each}_{part}.txt"
        seen = 0
        for line in _lines(path):
            words = line.split()
            if len(words) != 2 or words[1] not in ("1", "0", "-1"):
                raise DataError(f"{path} has the line {line!r}: an image and 1, 0 or -1 are needed")
            if words[0] in row:
                labels[row[words[0]], column] = {"1": 1, "0": -1, "-1": 0}[words[1]]
                seen += 1
        if seen < len(names):
            raise DataError(f"{path} tells of {seen} of the {len(names)} images of {part}.txt")
    return labels


def _labels_of_annotation(path: Path) -> np.ndarray:
    """The labels [20] of one image, from its objects."""
    labels = np.zeros(len(CLASSES), dtype=np.int8)
    try:
        if path.stat().st_size > _LARGEST_ANNOTATION:
            raise DataError(f"{path} is no annotation: it has more than {_LARGEST_ANNOTATION:,} bytes")
        objects = ElementTree.parse(path).getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as an annotation: {error}") from None
    for entry in objects:
        name = (entry.findtext("name") or "").strip()
        if name not in CLASSES:
            raise DataError(f"{path} has an object {name!r}, which is no class of VOC")
        column = CLASSES.index(name)
        if (entry.findtext("difficult") or "0").strip() != "1":
            labels[column] = 1
        elif labels[column] == 0:
            labels[column] = -1
    return labels
