"""What the documents say of the code is there: modules, names in them, files that are linked to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pcl_ray"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "docker/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
)
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
_QUOTED = re.compile(r"`([^`\s]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
_IMPORT = re.compile(r"^from (pcl_ray[\w.]*) import ([\w, ]+)", re.MULTILINE)
_MODULE = re.compile(rf"(?:pcl_ray/)?(?:{'|'.join(ROOMS)})(?:/[a-z_]+)*/?(?:\.py)?(?:\.([A-Za-z_]+))?")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document: Path) -> None:
    links = _LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_examples_import_is_there(document: Path) -> None:
    for module, names in _IMPORT.findall(document.read_text(encoding="utf-8")):
        exec(f"from {module} import {names}", {})


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_modules_and_names_in_them_exist(name: str) -> None:
    quoted = {text for text in _QUOTED.findall((ROOT / name).read_text(encoding="utf-8")) if "/" in text}
    modules = {text for text in quoted if _MODULE.fullmatch(text)}
    assert len(modules) > 5
    assert [text for text in sorted(modules) if not _exists(text)] == []


def _exists(text: str) -> bool:
    """Whether `room/module`, `room/module.Name` or `room/` is there; a name stands in the module's text."""
    path, _, attribute = text.removeprefix("pcl_ray/").replace(".py", "").rstrip("/").partition(".")
    module = PACKAGE / f"{path}.py"
    if not module.exists():
        module = PACKAGE / path / "__init__.py"
    if not module.exists():
        return False
    return re.search(rf"\b{attribute}\b", module.read_text(encoding="utf-8")) is not None


def test_the_map_fits_a_sitting() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_room_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"`{room}/`" not in text] == []
