"""Shards, files that hold many images each: what `data.path` names, in which order, and their parts.

`data.path` is a file, a folder (all shards in it and below), a pattern with `*`, a range such as
`{0000..0127}`, an address in object storage with any of these, or `@FILE`: a list of them, one a line.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from pcl_ray.data.folders import HOLDOUT_NAMES, TRAIN_NAMES
from pcl_ray.data.sources.exclusion import matcher, pattern_body
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.support import storage_address
from pcl_ray.support.paths import lines_of, path_from_text, path_text
from pcl_ray.support.storage import ObjectVersion, Storage

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000  # of one range: a slip of the keyboard must not fill the memory
_CONNECTIONS = 8


class DamagedShard(DataError):
    """A shard of which nothing can be read. `data.on_bad_image = skip` goes on without it."""


@dataclass(frozen=True)
class Shard:
    """One shard: a file of this machine, or an object of a storage."""

    name: str  # its path below the folder that all shards have in common, the same on any machine
    size: int  # bytes
    changed_ns: int
    path: str = ""  # of a file; "" for an object
    storage_uri: str = ""  # of an object: the storage, and its key there
    key: str = ""

    def __str__(self) -> str:
        if self.path:
            return path_text(self.path)
        folder, question_mark, options = storage_address.without_secrets(self.storage_uri).partition("?")
        return f"{folder}/{self.key}{question_mark}{options}"

    @property
    def is_local(self) -> bool:
        return bool(self.path)

    def storage(self) -> Storage:
        """The storage that an object lies in."""
        return Storage(self.storage_uri)

    def current(self) -> ObjectVersion | None:
        """Its version now, None where it is gone. Raises OSError or RunFailed where that is unknown."""
        if not self.path:
            return self.storage().version(self.key)
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return ObjectVersion(status.st_size, status.st_mtime_ns)


def find_shards(path: str, suffixes: Sequence[str], exclude: Sequence[str] = ()) -> list[Shard]:
    """The shards that `data.path` names, whose file names end in one of the suffixes; of a folder or pattern
    in the order of their names, else in the order in which they are written. None is there twice.

    exclude: patterns of their paths below the folder that they have in common. Raises DataError.
    """
    try:
        shards = list(_named_by_list(path, suffixes) if path.startswith("@") else _named(path, suffixes))
    except RunFailed as failure:
        raise DataError(f"data.path = {_shown(path)!r}: {failure}") from failure
    if not shards:
        raise DataError(f"data.path = {_shown(path)!r} names no shard ({' '.join(suffixes)})")
    once = list({str(shard): shard for shard in shards}.values())
    excluded = matcher(exclude)
    named = [replace(shard, name=name) for shard, name in zip(once, _short_names(once), strict=True)]
    left = [shard for shard in named if not excluded(shard.name)]
    if not left:
        raise DataError(f"data.exclude leaves none of the {len(named)} shards of {_shown(path)!r}")
    return left


def split_parts(shards: Sequence[Shard]) -> tuple[list[Shard], list[Shard], list[Shard]]:
    """The shards of the training part, of the held-out part, and those that are neither.

    Which part a shard is of, a folder above it says (`train/`, `validation/`, `test/` …) or a word of its
    name (`train-00000-of-00003.parquet`), as Hugging Face's data sets have it. Where there are not both
    parts, all shards are the training part.
    """
    words = [_split_word(shard.name) for shard in shards]
    train = next((word for word in TRAIN_NAMES if word in words), None)
    holdout = next((word for word in HOLDOUT_NAMES if word in words), None)
    if train is None or holdout is None:
        return list(shards), [], []

    def of(wanted: str) -> list[Shard]:
        return [shard for shard, word in zip(shards, words, strict=True) if word == wanted]

    others = [shard for shard, word in zip(shards, words, strict=True) if word not in (train, holdout)]
    return of(train), of(holdout), others


def expand_braces(pattern: str) -> list[str]:
    """The names that `{00..12}` and `{a,b}` in a pattern stand for, in their order; numbers keep their zeros.

    Raises DataError for more names than anybody means.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    if numbers := _RANGE.fullmatch(inside):
        first, last = int(numbers.group(1)), int(numbers.group(2))
        width = len(numbers.group(1)) if numbers.group(1).startswith("0") else 0
        if abs(last - first) >= _MOST_NAMES:
            raise DataError(f"data.path: {{{inside}}} stands for more than {_MOST_NAMES:,} names")
        step = 1 if last >= first else -1
        options = [str(number).zfill(width) for number in range(first, last + step, step)]
    elif "," in inside:
        options = inside.split(",")
    else:
        options = [f"\0{inside}\1"]  # braces that are part of the name
    start, end = pattern[: match.start()], pattern[match.end() :]
    names = [name for option in options for name in expand_braces(f"{start}{option}{end}")]
    if len(names) > _MOST_NAMES:
        raise DataError(f"data.path: {pattern!r} stands for more than {_MOST_NAMES:,} names")
    return [name.replace("\0", "{").replace("\1", "}") for name in names]


def _named_by_list(path: str, suffixes: Sequence[str]) -> Iterator[Shard]:
    """The shards in the lines of a list file; relative ones are relative to it."""
    file = path[1:]
    try:
        if _is_address(file):
            folder, _, name = _split_options(file)[0].rpartition("/")
            content = Storage(_joined(folder, _split_options(file)[1])).read(unquote(name)) or b""
        else:
            content = Path(file).expanduser().read_bytes()
            folder = str(Path(file).expanduser().absolute().parent)
        lines = [line.strip() for line in lines_of(content)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the list of shards {file!r} cannot be read: {reason}") from None
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"the list of shards {file!r} has no line")
    options = _split_options(file)[1] if _is_address(file) else ""
    full = [
        entry if _is_address(entry) or entry.startswith(("/", "~")) else _joined(f"{folder}/{entry}", options)
        for entry in entries
    ]
    plain = [_is_address(entry) and not _has_pattern(entry) for entry in full]
    if all(plain):  # thousands of objects: one listing for each folder
        yield from _listed_objects(full)
        return
    for entry in full:
        yield from _named(entry, suffixes)


def _named(path: str, suffixes: Sequence[str]) -> Iterable[Shard]:
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    if not _is_address(path):
        return _local(path, suffixes)
    if problem := storage_address.problem_with(path):
        raise DataError(f"data.path = {_shown(path)!r} {problem}")
    return _objects(path, suffixes)


# --- files


def _local(path: str, suffixes: Sequence[str]) -> Iterator[Shard]:
    text = os.path.abspath(os.path.expanduser(path))
    for option in dict.fromkeys((text, path_from_text(text))):
        if os.path.exists(option):
            yield from _files_of(option, suffixes)
            return
    names = expand_braces(text)
    missing: list[str] = []
    for name in names:
        matched = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        existing = [entry for entry in matched if os.path.exists(entry)]
        if not existing:
            missing.append(name)
        for entry in existing:
            yield from _files_of(entry, suffixes, named=not glob.has_magic(name))
    _refuse_missing(path, missing, len(names))


def _files_of(path: str, suffixes: Sequence[str], *, named: bool = True) -> Iterator[Shard]:
    """The shard at a path, or those in the folder there. named: it is named, and so may end in anything."""
    if not os.path.isdir(path):
        if named or _has_suffix(path, suffixes):
            yield _local_shard(path)
        return
    files = [
        os.path.join(folder, name)
        for folder, below, names in os.walk(path, followlinks=False)
        for name in names
        if _has_suffix(name, suffixes)
        and not name.startswith(".")
        # folders that other tools keep for themselves
        and not os.path.relpath(folder, path).startswith(("..", "__"))
        and "/." not in folder[len(path) :]
    ]
    yield from map(_local_shard, sorted(files))


def _local_shard(path: str) -> Shard:
    status = os.stat(path)
    return Shard(os.path.basename(path), status.st_size, status.st_mtime_ns, path=path)


# --- objects


def _objects(path: str, suffixes: Sequence[str]) -> Iterator[Shard]:
    address, options = _split_options(path)
    scheme, _, rest = address.partition("://")
    folders = rest.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(folders) if _has_pattern(part)), len(folders))
    if fixed == len(folders) and fixed > 1:  # an object, or a folder
        base, last = _joined(f"{scheme}://{'/'.join(folders[:-1])}", options), unquote(folders[-1])
        if version := Storage(base).version(last):
            yield Shard(last, version.size, version.changed_ns, storage_uri=base, key=last)
            return
    base = _joined(f"{scheme}://{'/'.join(folders[:fixed])}", options)
    listed = Storage(base).list_tree()
    if fixed == len(folders):
        for key in sorted(listed):
            if _has_suffix(key, suffixes) and "/." not in f"/{key}":
                yield Shard(key, listed[key].size, listed[key].changed_ns, storage_uri=base, key=key)
        return
    names = expand_braces(unquote("/".join(folders[fixed:])))
    missing: list[str] = []
    for name in names:
        keys = [name] if name in listed else []
        if not keys and glob.has_magic(name):
            expression = re.compile(pattern_body(name), re.DOTALL)
            keys = sorted(key for key in listed if expression.fullmatch(key) and _has_suffix(key, suffixes))
        if not keys:
            missing.append(name)
        for key in keys:
            yield Shard(key, listed[key].size, listed[key].changed_ns, storage_uri=base, key=key)
    _refuse_missing(path, missing, len(names))


def _listed_objects(paths: Sequence[str]) -> Iterator[Shard]:
    """The objects at these addresses, in this order, from listings of their folders."""
    split = [(*_split_options(path)[0].rpartition("/")[::2], _split_options(path)[1]) for path in paths]
    bases = [_joined(folder, options) for folder, _, options in split]
    for base in dict.fromkeys(bases):
        if problem := storage_address.problem_with(base):
            raise DataError(f"data.path = {_shown(base)!r} {problem}")
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        distinct = list(dict.fromkeys(bases))
        listings = dict(
            zip(distinct, pool.map(lambda base: Storage(base).list_objects(), distinct), strict=True)
        )
    missing: list[str] = []
    for path, base, (_, name, _) in zip(paths, bases, split, strict=True):
        version = listings[base].get(unquote(name))
        if version is None:
            missing.append(_shown(path))
        else:
            yield Shard(name, version.size, version.changed_ns, storage_uri=base, key=unquote(name))
    _refuse_missing("the list", missing, len(paths))


# --- names


def _short_names(shards: Sequence[Shard]) -> list[str]:
    """The paths of the shards below the folder that all have in common."""
    paths = [
        (shard.path or f"{_split_options(shard.storage_uri)[0]}/{shard.key}").split("/") for shard in shards
    ]
    common = os.path.commonprefix([path[:-1] for path in paths])
    return ["/".join(path[len(common) :]) for path in paths]


def _split_word(name: str) -> str | None:
    """The word that says which part a shard is of; folders count before the name, the outermost first."""
    *folders, file = name.lower().split("/")
    words = [*folders, *re.split(r"[^a-z]+", file)]
    return next((word for word in words if word in TRAIN_NAMES or word in HOLDOUT_NAMES), None)


def _refuse_missing(path: str, missing: Sequence[str], total: int) -> None:
    if missing and total == 1:
        raise DataError(
            f"data.path = {_shown(path)!r}: no such file or folder, and no pattern that matches any"
        )
    if missing:
        raise DataError(
            f"data.path = {_shown(path)!r}: {len(missing)} of {total} shards are not there, e.g."
            f" {', '.join(map(path_text, missing[:3]))}"
        )


def _is_address(path: str) -> bool:
    return "://" in path


def _has_pattern(text: str) -> bool:
    return any(mark in text for mark in "*{[")


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def _split_options(address: str) -> tuple[str, str]:
    """An address without its options, and these."""
    path, _, options = address.partition("?")
    return path, options


def _joined(address: str, options: str) -> str:
    return f"{address}?{options}" if options else address


def _shown(path: str) -> str:
    """`data.path` as a message may have it."""
    return storage_address.without_secrets(path) if _is_address(path) else path
