"""What the README and the documents print does what they say: each document's commands and Python are run
from top to bottom, with small sizes added behind whatever trains.

That the printed text is what the program takes, also of what is marked as not run:
`tests/unit/test_documented_commands.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from documented import DOCUMENTS, blocks_of
from documents_run import make_pictures, make_world, prepare, run_document, train_mine

WITH_BLOCKS = [
    document
    for document in DOCUMENTS
    if any(block.commands() or block.language == "python" for block in blocks_of(document))
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_mine(pictures, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(path, id=path.name, marks=[] if path.name == "README.md" else [pytest.mark.slow])
        for path in WITH_BLOCKS
    ],
)
def test_a_document_does_what_it_says(
    document: Path,
    pictures: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = make_world(pictures, trained, tmp_path / "world", monkeypatch)
    prepare(document, trained)
    count, left_out = run_document(document, world, capsys, slow=False)
    reasons = "; ".join(dict.fromkeys(mark.reason for mark in left_out))
    if not count:
        pytest.skip(reasons)
    with capsys.disabled():
        print(
            f"\n{document.name}: {count} run, {len(left_out)} not run{': ' * bool(reasons)}{reasons}", end=" "
        )
