"""What waits to be sent to the tracking server: in memory, and over an outage in a file of the run.

The file has one JSON object a line: {"key", "value", "step", "time"} is a point, {"tag", "value"} a tag,
{"file", "text"} a text that becomes an artifact, {"artifact", "path"} a file that does, {"task", "content"}
an attachment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

POINTS_A_REQUEST = 500  # MLflow takes at most 1,000
Kind = Literal["tag", "file", "artifact", "task"]
_CONTENT: dict[Kind, str] = {"tag": "value", "file": "text", "artifact": "path", "task": "content"}


class Point(NamedTuple):
    """One value of a figure."""

    key: str
    value: float
    step: int
    time: int  # ms since 1970, of the call: by it the server knows a point that is sent twice


class Part(NamedTuple):
    """What one request sends: points, tags, one of the other kinds, or the status of a run that ends."""

    kind: Kind | Literal["points", "status"]
    content: Any  # a list of points, {name: content} of the other kinds, or the status


@dataclass
class Unsent:
    """Points in the order of logging, and the rest, of which only the newest content of a name counts: the
    value of a tag, the text of a file, the path of an artifact, a task of `attachments`.
    """

    points: list[Point] = field(default_factory=list)
    entries: dict[tuple[Kind, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, contents: Mapping[str, Any]) -> Unsent:
        return cls(entries={(kind, name): content for name, content in contents.items()})

    def __bool__(self) -> bool:
        return bool(self.points or self.entries)

    def add(self, newer: Unsent) -> None:
        self.points += newer.points
        self.entries |= newer.entries

    def copy(self) -> Unsent:
        return Unsent(list(self.points), dict(self.entries))

    def parts(self, status: str | None = None) -> Iterator[Part]:
        """Everything in the order in which it is sent. The status of a run that ends comes before the tasks:
        they may take minutes, and a closed run takes them too.
        """
        for start in range(0, len(self.points), POINTS_A_REQUEST):
            yield Part("points", self.points[start : start + POINTS_A_REQUEST])
        if tags := self._contents("tag"):
            yield Part("tag", tags)
        yield from (Part("file", {name: text}) for name, text in self._contents("file").items())
        yield from (Part("artifact", {name: path}) for name, path in self._contents("artifact").items())
        if status is not None:
            yield Part("status", status)
        yield from (Part("task", {name: task}) for name, task in self._contents("task").items())

    def _contents(self, kind: Kind) -> dict[str, Any]:
        return {name: content for (other, name), content in self.entries.items() if other == kind}

    def remove(self, part: Part) -> None:
        """Forgets what has been sent, but for newer content of the same name."""
        match part.kind:
            case "points":
                del self.points[: len(part.content)]
            case "status":
                pass
            case kind:
                for name, content in part.content.items():
                    if self.entries.get((kind, name)) == content:
                        del self.entries[kind, name]


def append(path: Path, unsent: Unsent) -> None:
    """Adds to the file. Raises OSError."""
    lines: list[dict[str, Any]] = [point._asdict() for point in unsent.points]
    lines += [{kind: name, _CONTENT[kind]: content} for (kind, name), content in unsent.entries.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # the last line may be cut off: what comes now must not be joined to it
    start = "\n" if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(start + "".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> Unsent:
    """What `append` wrote; lines that a crash cut off are left out. Raises OSError.

    Left out are also files outside the folder that `path` lies in: what is sent, and pictures are removed
    then, belongs to the run.
    """
    unsent = Unsent()
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if _inside(path.parent, line):
                unsent.add(_parsed(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return unsent


def _parsed(line: Mapping[str, Any]) -> Unsent:
    for kind, field_name in _CONTENT.items():
        if kind in line:
            content = line[field_name]
            return Unsent.of(kind, {line[kind]: dict(content) if kind == "task" else str(content)})
    return Unsent([Point(str(line["key"]), float(line["value"]), int(line["step"]), int(line["time"]))])


def _inside(folder: Path, line: Mapping[str, Any]) -> bool:
    """Whether the files of a line lie in the folder, and its artifact in the run's."""
    task = line.get("content") or {}
    files = [line.get("path"), task.get("path"), task.get("checkpoint")]
    artifact = str(line.get("file") or line.get("artifact") or "")
    if artifact.startswith("/") or ".." in artifact.split("/"):
        return False
    return all(Path(file).resolve().is_relative_to(folder.resolve()) for file in files if file is not None)
