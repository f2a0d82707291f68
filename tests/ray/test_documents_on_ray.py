"""What the documents print and takes minutes, as `tests/runs/test_documents.py` runs the rest: sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import DOCUMENTS, blocks_of
from documents_run import make_pictures, make_world, prepare, run_document, train_mine

pytestmark = pytest.mark.slow
WITH_SLOW_ONES = [
    document
    for document in DOCUMENTS
    if any(mark.slow for block in blocks_of(document) for mark in block.marks)
]


@pytest.mark.parametrize("document", WITH_SLOW_ONES, ids=lambda path: path.name)
def test_a_document_does_what_it_says(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    pictures = make_pictures(tmp_path / "pictures")
    trained = train_mine(pictures, tmp_path / "trained")
    world = make_world(pictures, trained, tmp_path / "world", monkeypatch)
    prepare(document, trained)
    count, _ = run_document(document, world, capsys, slow=True)
    assert count
