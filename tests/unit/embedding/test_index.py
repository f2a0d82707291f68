"""Search in a collection: exact against brute force in float64, also where half precision cannot tell; made
again when parts change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pcl_ray.embedding import index as indices
from pcl_ray.embedding.collection import Collection, Manifest, part_path, schema_of, write_part
from pcl_ray.errors import ConfigError, DataError


def collection_of(folder: Path, blocks: list[np.ndarray]) -> Collection:
    """A collection of these embeddings, a part for each block."""
    dim = blocks[0].shape[1]
    manifest = Manifest("run", "", "0", "backbone", dim, (), 3, {"image_size": 8, "mean": [], "std": []})
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    for number, block in enumerate(blocks):
        names = [f"/{number}/{row}.png" for row in range(len(block))]
        rows = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1), pa.float32()), dim)
        table = pa.table([names, names, [1] * len(names), rows], schema=schema_of(manifest))
        write_part(part_path(folder, number), table, [])
    return Collection(folder)


def reference(vectors: np.ndarray, query: np.ndarray, count: int) -> list[tuple[float, int]]:
    """The nearest by float64 cosines, one by one."""
    cosines = []
    for row, vector in enumerate(vectors.astype(np.float64)):
        wide = query.astype(np.float64)
        cosines.append((vector @ wide / (np.linalg.norm(vector) * np.linalg.norm(wide)), row))
    return sorted(cosines, key=lambda pair: (-pair[0], pair[1]))[:count]


@pytest.mark.parametrize(
    "spread", [1.0, 1e-3, 1e-5], ids=["far apart", "within half precision", "all but equal"]
)
def test_search_is_exact(spread: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indices, "_SHARD", 16 * 300)  # three shards
    draw = np.random.default_rng(1)
    centre = draw.standard_normal(16)
    rows = (centre + spread * draw.standard_normal((800, 16))).astype(np.float32)
    index = indices.opened(collection_of(tmp_path, [rows[:500], rows[500:]]))
    queries = (centre + spread * draw.standard_normal((5, 16))).astype(np.float32) * 3
    ids, cosines = index.search(queries, 7)
    assert ids.shape == cosines.shape == (5, 7)
    for query, found, near in zip(queries, ids, cosines, strict=True):
        expected = reference(rows, query, 7)
        np.testing.assert_allclose(near, [cosine for cosine, _ in expected], atol=3e-7)
        # which ones they are is decided as far as float32 vectors can tell
        whole = {row: cosine for cosine, row in reference(rows, query, 800)}
        assert all(whole[int(row)] >= expected[-1][0] - 3e-7 for row in found)
        assert len(set(found.tolist())) == 7
        if spread == 1.0:
            assert found.tolist() == [row for _, row in expected]


def test_equal_images_come_in_their_order_and_k_may_be_large(tmp_path: Path) -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    index = indices.opened(collection_of(tmp_path, [rows]))
    ids, cosines = index.search(np.eye(4, dtype=np.float32)[2:3], 99)
    assert ids.shape == (1, 12)
    assert ids[0, :3].tolist() == [6, 7, 8]
    np.testing.assert_allclose(cosines[0, :3], 1, atol=1e-6)
    assert index.search(np.empty((0, 4), np.float32), 3)[0].shape == (0, 3)


def test_the_index_follows_the_parts(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    said: list[str] = []
    assert len(indices.opened(collection_of(tmp_path, [rows[:20]]), said.append)) == 20
    assert len(indices.opened(Collection(tmp_path), said.append)) == 20
    assert said == ["making the index of 20 images …"]
    collection = collection_of(tmp_path, [rows[:20], rows[20:]])
    index = indices.opened(collection, said.append)
    assert len(index) == 30
    assert index.search(rows[25:26], 1)[0].tolist() == [[25]]
    np.testing.assert_allclose(index.vectors, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)


def test_a_build_that_was_killed_is_made_again(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    collection = collection_of(tmp_path, [rows])
    indices.opened(collection)
    (tmp_path / "index" / "state.json").unlink()
    (tmp_path / "index" / "shard-0000.faiss").write_bytes(b"half")
    assert indices.opened(collection).search(rows[3:4], 1)[0].tolist() == [[3]]


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no images"):
        indices.opened(collection_of(tmp_path / "empty", [np.empty((0, 8), np.float32)]))
    rows = np.ones((3, 8), np.float32)
    rows[1, 2] = np.nan
    with pytest.raises(DataError, match=r"/0/1\.png is not finite"):
        indices.opened(collection_of(tmp_path / "nan", [rows]))


def test_a_part_with_names_that_are_no_text_is_damaged(tmp_path: Path) -> None:
    collection_of(tmp_path, [np.eye(3, dtype=np.float32)])
    path = part_path(tmp_path, 0)
    content = path.read_bytes()
    assert b"/0/0.png" in content
    path.write_bytes(content.replace(b"/0/0.png", b"/0/\xff.png"))
    with pytest.raises(DataError, match="is damaged .*UTF8"):
        _ = Collection(tmp_path).paths
