from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcl_ray.data.datasets import DataSplits, in_memory
from pcl_ray.data.decoded import decoded_cache
from pcl_ray.data.images import ArrayImages, FileImages
from pcl_ray.data.pictures.decoding import DecodingOptions


def files(root: Path, sizes: list[tuple[int, int]]) -> FileImages:
    root.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return FileImages(str(root), np.array([f"{number}.png".encode() for number in range(len(sizes))]), 3)


def decoded(images: FileImages, home: Path, told: list[int] | None = None, side: int = 8) -> ArrayImages:
    found = in_memory(
        DataSplits(images, None),
        side,
        lambda done, total: told.append(done) if told is not None else None,
        home,
    ).train
    assert isinstance(found, ArrayImages)
    return found


@pytest.mark.parametrize("sizes", [[(8, 8)] * 3, [(9, 20), (40, 12), (8, 8)]])
def test_a_second_run_has_the_same_pictures_and_decodes_none(
    tmp_path: Path, sizes: list[tuple[int, int]]
) -> None:
    images, told = files(tmp_path / "data", sizes), list[int]()
    first = decoded(images, tmp_path, told)
    assert told == [1, 2, 3]
    again = decoded(images, tmp_path, told)
    assert told == [1, 2, 3]
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.sizes is None) == (again.sizes is None)
    assert first.sizes is None or np.array_equal(first.sizes, again.sizes)  # type: ignore[arg-type]
    assert first.fingerprint == again.fingerprint == images.fingerprint
    assert type(again.pixels) is np.ndarray


def test_other_files_sizes_or_ways_to_decode_have_entries_of_their_own(tmp_path: Path) -> None:
    images = files(tmp_path / "data", [(9, 20), (40, 12)])
    decoded(images, tmp_path)
    decoded(images, tmp_path, side=6)
    decoded(images.with_options(DecodingOptions(trim=True)), tmp_path)
    decoded(images.take(np.array([1])), tmp_path)
    os.utime(tmp_path / "data/0.png", ns=(1, 1))
    decoded(images, tmp_path)
    assert len(decoded_cache.entries(tmp_path)) == 5


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"junk" * 99])
def test_a_damaged_entry_is_written_anew(tmp_path: Path, content: bytes) -> None:
    images = files(tmp_path / "data", [(9, 20), (40, 12)])
    expected = decoded(images, tmp_path).pixels.copy()
    (entry,) = decoded_cache.entries(tmp_path)
    entry.path.write_bytes(content)
    told: list[int] = []
    assert np.array_equal(decoded(images, tmp_path, told).pixels, expected)
    assert told
    told.clear()
    decoded(images, tmp_path, told)
    assert not told


def test_those_unused_for_longest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "LIMIT_BYTES", 3000)
    array = {"pixels": np.zeros(900, np.uint8)}
    for number, name in enumerate(("a", "b")):
        assert decoded_cache.keep(tmp_path, name, array)
        os.utime(tmp_path / f"decoded/{name}.npy", (number, number))
    assert decoded_cache.find(tmp_path, "a") is not None  # now b is the older one
    assert decoded_cache.keep(tmp_path, "c", array)
    assert sorted(entry.path.stem for entry in decoded_cache.entries(tmp_path)) == ["a", "c"]
    assert not decoded_cache.keep(tmp_path, "d", {"pixels": np.zeros(3001, np.uint8)})


def test_clear_removes_all_and_says_how_much(tmp_path: Path) -> None:
    assert (decoded_cache.entries(tmp_path), decoded_cache.clear(tmp_path)) == ([], 0)
    decoded_cache.keep(tmp_path, "a", {"pixels": np.arange(10), "sizes": np.empty((0, 2))})
    found = decoded_cache.find(tmp_path, "a")
    (entry,) = decoded_cache.entries(tmp_path)
    assert decoded_cache.clear(tmp_path) == entry.size
    assert decoded_cache.find(tmp_path, "a") is None
    assert found is not None
    assert found["pixels"].tolist() == list(range(10))  # whoever reads it goes on
    assert found["sizes"].shape == (0, 2)
