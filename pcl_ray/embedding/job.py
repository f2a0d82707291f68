"""What is to be done to embed a set of images: which are missing, in which parts, and how far it is.

Parts are written whole by whoever makes them, so that a job may be killed at any time: the next makes
what no part holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pcl_ray.embedding.collection import EMBEDDER_FOLDER, MANIFEST_FILE, PARTS_FOLDER, Collection, Manifest
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.embedding.parts import PartMaker, PartResult
from pcl_ray.errors import ConfigError
from pcl_ray.support.files import LockHeld, file_lock
from pcl_ray.support.paths import path_text
from pcl_ray.support.text import count, duration

_MOST, _LEAST, _PARTS = 1024, 64, 16  # images of a part; parts of a small collection
_LOCK_FILE = "lock"
_SAY_S = 5.0


@dataclass(frozen=True)
class EmbeddingJob:
    """The parts that are missing."""

    folder: Path
    manifest: Manifest
    parts: Sequence[tuple[int, list[str]]]  # number and names
    total: int  # images that were asked for
    done: int  # of these embedded before

    @property
    def left(self) -> int:
        return sum(len(names) for _, names in self.parts)

    @property
    def embedder_folder(self) -> Path:
        """Where workers load the embedder from."""
        return self.folder / EMBEDDER_FOLDER


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder where it is missing, and keeps other jobs out. Raises ConfigError where one is in it,
    or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / _LOCK_FILE):
            yield
    except LockHeld:
        raise ConfigError(
            f"another process is writing to {folder}; wait for it, or give another --out"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out {str(folder)!r} is a file, not a folder") from None


def prepare(embedder: Embedder, manifest: Manifest, names: Sequence[str], folder: Path) -> EmbeddingJob:
    """The job that is left of embedding these images into `folder`, which is locked.

    Raises ConfigError where the folder holds embeddings of something else.
    """
    done: set[str] = set()
    number = 0
    if (folder / MANIFEST_FILE).exists():
        for partial in (folder / PARTS_FOLDER).glob("*.partial"):  # of a process that was killed
            partial.unlink(missing_ok=True)
        collection = Collection(folder)
        _check_same(collection.manifest, manifest, folder)
        done = {name for chunk in collection.paths.chunks for name in chunk.to_pylist()}
        number = collection.next_number
    # a process that was killed may have left the encoder, which is written first
    elif any(entry.name not in (_LOCK_FILE, EMBEDDER_FOLDER) for entry in folder.iterdir()):
        raise ConfigError(f"{folder} has files, but no collection; give another --out")
    else:
        embedder.save(folder / EMBEDDER_FOLDER)
        manifest.write(folder)
    # earlier versions stored names as they are
    missing = [name for name in names if path_text(name) not in done and name not in done]
    size = min(_MOST, max(_LEAST, math.ceil(len(missing) / _PARTS)))
    parts = [(number + i, missing[i * size : (i + 1) * size]) for i in range(math.ceil(len(missing) / size))]
    return EmbeddingJob(folder, manifest, parts, len(names), len(names) - len(missing))


def _check_same(before: Manifest, now: Manifest, folder: Path) -> None:
    if before.weights != now.weights:
        raise ConfigError(
            f"{folder} holds embeddings by other weights ({before.source}); give another --out, or remove it"
        )
    if before.features != now.features:
        raise ConfigError(
            f"{folder} holds features of the {before.features}; ask for --features {before.features}, or give"
            " another --out"
        )
    if before.column != now.column:
        raise ConfigError(
            f"{folder} holds images of the column {before.column or 'that was found by itself'}; "
            + (f"ask for --column {before.column}" if before.column else "leave out --column")
            + ", or give another --out"
        )


def made_here(job: EmbeddingJob, embedder: Embedder, threads: int) -> Iterator[PartResult]:
    """Makes the parts in this process, one after the other. Raises as `PartMaker.make`."""
    maker = PartMaker(job.folder, job.manifest, embedder, threads)
    for number, names in job.parts:
        yield maker.make(number, names)


class EmbeddingProgress:
    """Lines like "8,192 of 100,000 images, 2 broken, 410 images/s, 4 min left", every few seconds."""

    def __init__(self, job: EmbeddingJob, say: Callable[[str], None]):
        self._job, self._say = job, say
        self.images = self.broken = 0
        self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first part came, and how many images it had

    def add(self, result: PartResult) -> None:
        self.images += result.images
        self.broken += result.broken
        now = time.monotonic()
        self._first = self._first or (now, self.images + self.broken)
        if now - self._last >= _SAY_S and self.images + self.broken < self._job.left:
            self._last = now
            self._say(self.line())

    @property
    def rate(self) -> float | None:
        """Images a second since the first part, before which workers start; None where it is the only one."""
        if self._first is None or self.images + self.broken == self._first[1]:
            return None
        return (self.images + self.broken - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def line(self) -> str:
        handled = self.images + self.broken
        words = [f"{self._job.done + handled:,} of {count(self._job.total, 'image')}"]
        if self.broken:
            words.append(f"{self.broken:,} broken")
        if rate := self.rate:
            words += [f"{rate:,.0f} images/s", f"{duration((self._job.left - handled) / rate)} left"]
        return ", ".join(words)
