"""Pages as tests read them: whether their markup is whole, and what they say."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pcl_ray.report import page
from pcl_ray.report.run_record import RunRecord

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class PageReader(HTMLParser):
    """Fails where elements are not closed in the order that they were opened in, or an id is used twice."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.found if "id" in attributes]
        assert len(ids) == len(set(ids)), sorted(one for one in ids if ids.count(one) > 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[self.found[-1][1].get("id", "")] = data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, key: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.found if key in attributes]


def read_report(record: RunRecord, folder: Path) -> PageReader:
    """Writes the report of a run into `folder`, which is empty or has an earlier one, and reads it."""
    path = folder / "report.html"
    assert page.write(record, path) == path
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return PageReader(path.read_text(encoding="utf-8"))


def explorer_of(report: PageReader) -> dict[str, Any]:
    """The data of the prototype explorer."""
    return json.loads(report.scripts["explorer-data"])
