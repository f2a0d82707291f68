"""The look at every file of a data set, once: what was found is kept until one of them changes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import UnidentifiedImageError

from pcl_ray.data.images import EncodedImages
from pcl_ray.data.pictures.decoding import quiet
from pcl_ray.data.pictures.looks import MINIATURE, BadImage, Look, look
from pcl_ray.errors import DataError
from pcl_ray.support.files import atomic_file

_FORMAT = "looks 2"
_MOST_MINIATURES = 100_000  # pictures; 77 MB. Of more, only copies byte for byte are looked for
_NONE = np.empty(0, np.uint8)
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Looks:
    """What was found of N pictures, those that do not decode left out: `looks.Look` as arrays."""

    sizes: np.ndarray  # [N, 2] int64
    content_hashes: np.ndarray  # [N] bytes
    difference_hashes: np.ndarray  # [N] uint64
    miniatures: np.ndarray  # [N, MINIATURE, MINIATURE, 3] uint8; [0, …] of too many pictures
    shapes: np.ndarray  # [N] float32
    contents: np.ndarray  # [N] float32
    contrasts: np.ndarray  # [N] uint8

    @property
    def has_miniatures(self) -> bool:
        return len(self.miniatures) == len(self.sizes)

    def take(self, indices: np.ndarray) -> Looks:
        """Those of the pictures at these positions, in this order."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        absent = {} if self.has_miniatures else {"miniatures": parts.pop("miniatures")}
        return Looks(**{name: values[indices] for name, values in parts.items()}, **absent)

    def with_those_of(self, other: Looks) -> Looks:
        """These and then those of `other`."""
        parts = {
            part.name: np.concatenate([getattr(self, part.name), getattr(other, part.name)])
            for part in fields(self)
        }
        if not (self.has_miniatures and other.has_miniatures):
            parts["miniatures"] = parts["miniatures"][:0]
        return Looks(**parts)


@dataclass(frozen=True, eq=False)
class Inspection:
    """The pictures that do not decode, and the looks at the others, in their order."""

    bad: list[BadImage]
    looks: Looks


def inspect(
    images: EncodedImages, cache_dir: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Inspection:
    """Looks at every picture. The result is stored under `cache_dir`, and holds until a file's name, size or
    time changes, or how pictures are decoded.

    progress: called with the numbers done and of all.
    """
    stored = _stored_as(images, cache_dir)
    if (earlier := _read(stored, len(images))) is not None:
        return earlier
    bad: list[BadImage] = []
    looks: list[Look] = []
    with_miniatures = len(images) <= _MOST_MINIATURES
    with quiet(), ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for done, result in enumerate(pool.map(partial(_look_at, images), range(len(images))), start=1):
            bad += [result] if isinstance(result, BadImage) else []
            if isinstance(result, Look):
                looks.append(result if with_miniatures else replace(result, miniature=_NONE))
            progress(done, len(images))
    inspection = Inspection(bad, _as_arrays(looks, with_miniatures))
    _write(stored, inspection)
    return inspection


def earlier_inspection(images: EncodedImages, cache_dir: Path) -> Inspection | None:
    """What an earlier `inspect` of the same files found; None where there was none."""
    return _read(_stored_as(images, cache_dir), len(images))


def _stored_as(images: EncodedImages, cache_dir: Path) -> Path:
    state = repr([_FORMAT, images.options, images.content_state]).encode(errors="surrogateescape")
    return cache_dir / f"{hashlib.blake2b(state, digest_size=16).hexdigest()}.npz"


def _look_at(images: EncodedImages, index: int) -> Look | BadImage:
    name = images.name(index)
    try:
        encoded = images.encoded(index)
        content = encoded.read_bytes() if isinstance(encoded, Path) else encoded.read()
        return look(content, images.options) if content else BadImage(name, "empty file")
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        reason = str(error).replace(name, "").replace("''", "").strip() or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # it has an object's address
            reason = "cannot identify image file"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        return BadImage(name, reason.splitlines()[0])


def _as_arrays(looks: list[Look], with_miniatures: bool) -> Looks:
    miniatures = [one.miniature for one in looks] if with_miniatures else []
    return Looks(
        np.array([one.size for one in looks], np.int64).reshape(-1, 2),
        np.array([one.content_hash.hex() for one in looks], dtype="S32"),
        np.array([one.difference_hash for one in looks], np.uint64),
        np.array(miniatures, np.uint8).reshape(-1, MINIATURE, MINIATURE, 3),
        np.array([one.shape for one in looks], np.float32),
        np.array([one.content for one in looks], np.float32),
        np.array([one.contrast for one in looks], np.uint8),
    )


def _write(path: Path, inspection: Inspection) -> None:
    bad = json.dumps([vars(entry) for entry in inspection.bad])
    arrays = {part.name: getattr(inspection.looks, part.name) for part in fields(Looks)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, bad=np.array(bad), **arrays)
    except OSError:
        pass  # only costs the next run a second look


def _read(path: Path, count: int) -> Inspection | None:
    """None where there is no such file, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            bad = [BadImage(**entry) for entry in json.loads(str(arrays["bad"]))]
            looks = Looks(**{part.name: arrays[part.name] for part in fields(Looks)})
    except (*_DAMAGE, DataError):
        return None
    return Inspection(bad, looks) if len(looks.sizes) + len(bad) == count else None
