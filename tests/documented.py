"""What the documents print: their blocks, the commands in them, and which of these no test runs, and why.

A block of commands is run by `tests/runs/test_documents.py`, line by line, unless a comment before it, which
no reader sees, says why not. Then it is only parsed. Such a comment holds for the whole block, or for the
lines that begin with the words in brackets; slow ones are run by `make test-slow`:

<!-- not run: needs the published weights -->
<!-- not run (ray job submit): needs a cluster -->
<!-- slow (pcl-ray sweep): Ray Tune -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_MARK = r"<!-- (not run|slow)(?: \(([^)]+)\))?: ([^>]+) -->\n"
_BLOCK = re.compile(
    rf"^(?P<marks>(?:{_MARK})*)(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRAMS = (
    "pcl-ray",
    "ray",
    "python",
    "make",
    "mlflow",
    "export",
    "curl",
    "cp",
    "tar",
    "pg_dump",
    "pg_restore",
)
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Mark:
    """Why a command is not run, or only by the slow tests. beginning: of the commands that it holds for."""

    slow: bool
    beginning: str
    reason: str


@dataclass(frozen=True)
class Command:
    """One command as a document prints it. printed: the lines that are shown as its answer."""

    line: str
    mark: Mark | None
    printed: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)


@dataclass(frozen=True)
class Block:
    """A fenced block. language: python, yaml, or none for commands and listings."""

    document: Path
    number: int  # of its first line
    language: str
    text: str
    marks: tuple[Mark, ...]

    @property
    def title(self) -> str:
        return f"{self.document.relative_to(ROOT).as_posix()}:{self.number}"

    def mark_of(self, line: str) -> Mark | None:
        return next((mark for mark in self.marks if line.startswith(mark.beginning)), None)

    def commands(self) -> list[Command]:
        """The commands of the block; none where it shows something else, as a listing of files does."""
        if self.language:
            return []
        if self.text.startswith("$ "):
            line, _, printed = self.text.removeprefix("$ ").partition("\n")
            return [Command(line, self.mark_of(line), printed)]
        lines = self.text.replace("\\\n", " ").splitlines()
        if not any(line.split()[0] in _PROGRAMS for line in lines if line.strip()):
            return []
        return [Command(line.strip(), self.mark_of(line.strip())) for line in lines if line.strip()]


def blocks_of(document: Path) -> list[Block]:
    """The fenced blocks of a document in their order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        marks = tuple(
            Mark(kind == "slow", beginning, reason)
            for kind, beginning, reason in re.findall(_MARK, match["marks"])
        )
        number = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(document, number, match["language"], match["text"], marks))
    return found


def spans_of(document: Path) -> Iterator[str]:
    """What stands between backticks in the lines of a document, outside of its blocks."""
    text = re.sub(
        r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    yield from dict.fromkeys(_INLINE.findall(text))
