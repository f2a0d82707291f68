"""Trees of image files: which files, and which labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from pcl_ray.data.images import NO_LABEL, EncodedImages, FileImages
from pcl_ray.data.pictures.looks import BadImage
from pcl_ray.errors import DataError
from pcl_ray.support.paths import path_text

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"]
    + [".ppm", ".pgm", ".pbm", ".pnm", ".jp2"]
)
TRAIN_NAMES, HOLDOUT_NAMES = ("train", "training"), ("val", "valid", "validation", "holdout", "test")


T = TypeVar("T", bound=EncodedImages)


def find_parts(root: Path) -> tuple[Path, Path | None]:
    """The training and held-out folders: `train/` and `val/`, `test/` … if both exist, or the whole tree."""
    folders = {entry.name.lower(): entry for entry in root.iterdir() if entry.is_dir()}
    train = next((folders[name] for name in TRAIN_NAMES if name in folders), None)
    holdout = next((folders[name] for name in HOLDOUT_NAMES if name in folders), None)
    return (train, holdout) if train and holdout else (root, None)


def find_images(
    root: Path,
    channels: int,
    class_names: tuple[str, ...] | None = None,
    excluded: Callable[[str], bool] = lambda file: False,
) -> FileImages:
    """All image files under `root`, in the order of their names; labels where every image lies in one of two
    or more folders of the first level.

    class_names: the training part's, for a held-out part; its labels are their numbers, and a class that is
    not among them has none. excluded: of a path relative to `root`, whether it does not count.
    Raises DataError where there are no images.
    """
    every_file = sorted(_walk(root), key=os.fsencode)  # the same order in any locale
    if not every_file:
        raise DataError(
            f"no images in {str(root)!r} (looked for {' '.join(sorted(SUFFIXES))} in it and below)"
        )
    files = [file for file in every_file if not excluded(file)]
    if not files:
        raise DataError(f"data.exclude leaves none of the {len(every_file)} images in {str(root)!r}")
    return images_of(root, files, channels, class_names)


def images_of(
    root: Path, files: Sequence[str], channels: int, class_names: tuple[str, ...] | None = None
) -> FileImages:
    """These files, relative to `root` or absolute, in this order, with labels as `find_images` gives them."""
    encoded = np.array([os.fsencode(file) for file in files])
    tops = [file.partition("/")[0] if "/" in file else None for file in files]
    if class_names is None:
        class_names = tuple(map(path_text, sorted({top for top in tops if top is not None}, key=os.fsencode)))
    if None in tops or len(class_names) < 2:
        return FileImages(str(root), encoded, channels)
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number.get(path_text(top or ""), NO_LABEL) for top in tops], dtype=np.int64)
    return FileImages(str(root), encoded, channels, labels, class_names)


def without(images: T, bad: list[BadImage]) -> T:
    """The images but these."""
    if not bad:
        return images
    broken = {entry.file for entry in bad}
    good = [i for i in range(len(images)) if images.name(i) not in broken]
    return images.take(np.array(good, dtype=np.int64))


def _walk(root: Path) -> Iterator[str]:
    """The image files relative to `root`, of every folder once.

    Links come last, in the order of their names: a link to a folder of the tree never hides that folder.
    """
    seen: set[str] = set()
    starts = [str(root)]
    for start in starts:
        for folder, below, files in os.walk(start):
            real = os.path.realpath(folder)
            if real in seen:  # a link back into the tree
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
            starts += [path for name in below if os.path.islink(path := os.path.join(folder, name))]
            relative = Path(folder).relative_to(root)
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                    yield (relative / name).as_posix()
