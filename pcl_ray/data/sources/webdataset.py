"""WebDataset's shards: tar files in which the members of one sample lie one after the other and have one name
before the first dot: `0017.jpg`, `0017.cls`, `0017.json`.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pcl_ray.data.folders import SUFFIXES
from pcl_ray.data.sources.exclusion import matcher
from pcl_ray.data.sources.shard_index import IndexBuilder, ShardIndex
from pcl_ray.errors import DataError

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.zst")
NO_LABELS = "none"
_BLOCK = 512
_LABEL_EXTENSIONS = ("cls", "label")
_LABEL_FIELDS = ("label", "labels", "class", "class_name", "cls")
_TEXT_LIMIT = 1 << 20  # bytes of a label or .json that are read


@dataclass
class _Sample:
    """The members of one sample by their extension, in lower case."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


def index_tar(
    path: Path,
    image: str | None = None,
    label: str | None = None,
    exclude: Sequence[str] = (),
    shown: str = "",
) -> ShardIndex:
    """The images of a tar file that is not compressed, of their samples' first labels.

    image, label: `data.image_column` and `data.label_column`. exclude: patterns of members that do not
    count. shown: what a message calls the file.
    What is damaged is said in the index, which then holds the images before. Raises DataError where it is
    unclear which member is the image, OSError.
    """
    builder, excluded = IndexBuilder(), matcher(exclude)
    damage = ""
    with path.open("rb") as file:
        try:
            for sample in _samples(file):
                extension = _image_extension(sample, image, shown or str(path))
                if extension is None:
                    continue
                member = sample.members[extension]
                if excluded(_plain_name(member)):
                    continue
                labels = _labels(file, sample, label)
                builder.add(_plain_name(member), member.offset_data, member.size, labels)
        except tarfile.TarError as error:
            damage = _damage_text(error, len(builder))
    return builder.index(damage=damage)


def _samples(file: IO[bytes]) -> Iterator[_Sample]:
    """The samples in order. Raises tarfile.TarError at the first damage, after the samples before it."""
    sample = _Sample("")
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := _next_member(tar)) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
            name = _plain_name(member)
            if not member.isreg() or member.issparse() or _is_hidden(name):
                continue
            key, extension = _split_name(name)
            if key != sample.key:
                if sample.members:
                    yield sample
                sample = _Sample(key)
            sample.members.setdefault(extension, member)
        file.seek(tar.offset)
        end = file.read(_BLOCK)
    if sample.members:
        yield sample
    if end.strip(b"\0"):  # a header that cannot be read; `tarfile` takes it for the end
        raise tarfile.ReadError("what follows is no header of a member")


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next one, None at the end. Raises tarfile.TarError, whatever is damaged in its header."""
    try:
        return tar.next()
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise tarfile.ReadError(f"a header cannot be read: {error}") from error


def _image_extension(sample: _Sample, wanted: str | None, shard: str) -> str | None:
    """The extension of the member that is the sample's image, None where it has none. Raises DataError."""
    if wanted is not None:
        wanted = wanted.lower().lstrip(".")
        return wanted if wanted in sample.members else None
    plain = [extension for extension in sample.members if f".{extension}" in SUFFIXES]
    longer = [extension for extension in sample.members if f".{extension.rpartition('.')[2]}" in SUFFIXES]
    candidates = plain or longer
    if len(candidates) > 1:
        raise DataError(
            f"sample {sample.key!r} of {shard} has the images {' and '.join(candidates)};"
            " data.image_column says which of these extensions to take"
        )
    return candidates[0] if candidates else None


def _labels(file: IO[bytes], sample: _Sample, wanted: str | None) -> list[object]:
    """The labels of a sample: of a member with this extension, else of a field of its .json."""
    if wanted == NO_LABELS:
        return []
    extensions = _LABEL_EXTENSIONS if wanted is None else (wanted.lower().lstrip("."),)
    for extension in extensions:
        if extension in sample.members and extension != "json":
            return label_list(_text(file, sample.members[extension]).strip())
    if "json" not in sample.members:
        return []
    try:
        content = json.loads(_text(file, sample.members["json"]))
    except (ValueError, RecursionError):
        return []
    fields = _LABEL_FIELDS if wanted is None else (wanted,)
    return next((label_list(value) for name in fields if (value := _field(content, name)) is not None), [])


def _field(content: Any, name: str) -> Any:
    """A field of a .json, `a.b` of one within another; None where there is none."""
    if isinstance(content, dict) and name in content:
        return content[name]
    for part in name.split("."):
        if not isinstance(content, dict):
            return None
        content = content.get(part)
    return content


def label_list(value: object) -> list[object]:
    """A label as it is written somewhere, as a list: texts that are whole numbers as numbers, but not `007`;
    nothing, a negative number, NaN and what has parts with names are no label.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(label for part in value for label in label_list(part)))
    if isinstance(value, str) and re.fullmatch(r"-?(?:0|[1-9]\d{0,17})", value):
        value = int(value)
    if isinstance(value, float) and not isinstance(value, int):
        value = int(value) if value.is_integer() else str(value).replace("nan", "")
    if value is None or value == "" or isinstance(value, dict) or (isinstance(value, int) and value < 0):
        return []
    return [int(value) if isinstance(value, bool) else value]


def _text(file: IO[bytes], member: tarfile.TarInfo) -> str:
    position = file.tell()
    file.seek(member.offset_data)
    content = file.read(min(member.size, _TEXT_LIMIT))
    file.seek(position)
    return content.decode("utf-8", "replace")


def _plain_name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _split_name(name: str) -> tuple[str, str]:
    """The key of a member, its folders included, and its extension: what follows the first dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX")


def _damage_text(error: tarfile.TarError, images: int) -> str:
    reason = str(error) or type(error).__name__
    return f"the tar file is cut short or damaged after {images} images ({reason})"
