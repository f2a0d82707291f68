"""The quick look before a run: headers of as many files as a few seconds allow, and which files are equal."""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import UnidentifiedImageError

from pcl_ray.data.images import FileImages
from pcl_ray.data.pictures.decoding import opened, quiet
from pcl_ray.data.pictures.looks import LEGIBLE, BadImage
from pcl_ray.support.machine import cores
from pcl_ray.support.paths import path_text
from pcl_ray.support.text import count

_HEADERS_S, _CONTENTS_S = 5.0, 3.0  # seconds that each may take
_LARGE = 2**22  # bytes: of larger files only the beginning and the size are compared
_PIECE = 256  # files

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Headers:
    """What the headers of `looked_at` of `pictures` files say."""

    pictures: int
    looked_at: int
    bad: tuple[BadImage, ...]
    sizes: np.ndarray  # [n, 2] int64, height and width
    identical: (
        int | None
    )  # files that another one has byte for byte, without the first of each; None: not known

    def lines(self) -> list[str]:
        """A line each."""
        texts = []
        if self.looked_at < self.pictures:
            texts.append(f"headers of {self.looked_at:,} of {self.pictures:,} pictures were read")
        if len(self.sizes):
            order = np.argsort(self.sizes.prod(axis=1), kind="stable")
            small, middle, large = (
                "{1:,} × {0:,}".format(*self.sizes[order[at]].tolist()) for at in (0, len(order) // 2, -1)
            )
            texts.append(
                f"{middle} pixels in the median" + (f", {small} to {large}" if small != large else "")
            )
        if self.identical:
            are = "is a copy" if self.identical == 1 else "are copies"
            texts.append(
                f"{count(self.identical, 'picture')} {are} of another byte for byte; the run itself looks for"
                " others"
            )
        elif self.identical is None:
            texts.append("too many files to compare them here; the run itself looks for copies")
        return texts


def read_headers(images: FileImages, *, compared: bool = True) -> Headers:
    """Reads headers in threads, in an order that is spread over all files, as far as time allows.

    compared: whether copies are looked for, too.
    """
    order = np.random.default_rng(0).permutation(len(images)) if len(images) else np.empty(0, np.int64)
    bad: list[BadImage] = []
    sizes: list[tuple[int, int]] = []
    with quiet(), ThreadPoolExecutor(max_workers=2 * cores()) as pool:
        for result in _within(_HEADERS_S, order, partial(_size_of, images), pool):
            bad += [result] if isinstance(result, BadImage) else []
            sizes += [result] if isinstance(result, tuple) else []
        identical = _identical(images, pool) if compared else None
    bad.sort(key=lambda entry: entry.file)
    return Headers(
        len(images), len(bad) + len(sizes), tuple(bad), np.array(sizes, np.int64).reshape(-1, 2), identical
    )


def _within(
    seconds: float, items: np.ndarray, work: Callable[[int], T], pool: ThreadPoolExecutor
) -> Iterator[T]:
    """What `work` gives for the items, until the time is over."""
    began = time.monotonic()
    for start in range(0, len(items), _PIECE):
        if time.monotonic() - began > seconds:
            return
        yield from pool.map(work, items[start : start + _PIECE].tolist())


def _size_of(images: FileImages, index: int) -> tuple[int, int] | BadImage:
    path, sizes = images.path(index), list[tuple[int, int]]()

    def legible(height: int, width: int) -> float:
        sizes.append((height, width))
        return LEGIBLE / max(min(height, width), 1)

    try:
        if path.stat().st_size == 0:
            return BadImage(path_text(path), "empty file")
        opened(path, legible, images.options).close()
    except Exception as error:  # Pillow's readers raise many kinds
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # it names the file
            reason = "cannot identify image file"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        return BadImage(path_text(path), reason.splitlines()[0])
    return sizes[0]


def _identical(images: FileImages, pool: ThreadPoolExecutor) -> int | None:
    """How many files are equal to another, without the first of each: only those of equal sizes are read."""
    by_size: dict[int, list[int]] = defaultdict(list)
    began = time.monotonic()
    for index in range(len(images)):
        if index % _PIECE == 0 and time.monotonic() - began > _CONTENTS_S:
            return None
        try:
            by_size[os.stat(images.path(index)).st_size].append(index)
        except OSError:
            continue
    same = np.array([index for alike in by_size.values() if len(alike) > 1 for index in alike], np.int64)
    hashes = list(_within(_CONTENTS_S, same, lambda index: _hash_of(images.path(index)), pool))
    if len(hashes) < len(same):
        return None
    readable = [value for value in hashes if value]
    return len(readable) - len(set(readable))


def _hash_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGE)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return b""
    return hashlib.blake2b(content, digest_size=16).digest() + size.to_bytes(8, "little")
