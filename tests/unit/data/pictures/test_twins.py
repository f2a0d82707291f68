from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pcl_ray.data.pictures import twins
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.data.pictures.looks import Look, look


def photo(seed: int, side: int = 96) -> Image.Image:
    """Smooth blobs, as unlike each other as photographs are."""
    small = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), np.uint8)
    whole = Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)
    return whole.resize((side, side), Image.Resampling.LANCZOS)


def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def on_page(picture: Image.Image) -> Image.Image:
    page = Image.new("RGB", (200, 240), "white")
    page.paste(picture, (40, 90))
    return page


def groups(contents: list[bytes], *, alike: bool = True) -> list[int]:
    looks: list[Look] = [look(content, DecodingOptions()) for content in contents]
    found = twins.groups(
        np.array([one.content_hash.hex() for one in looks], "S32"),
        np.array([one.difference_hash for one in looks], np.uint64) if alike else None,
        np.stack([one.miniature for one in looks]),
        np.array([one.shape for one in looks], np.float32),
        np.array([one.contrast for one in looks], np.uint8),
    )
    return found.tolist()


COPIES = {
    "the same file": lambda picture: encoded(picture),
    "saved anew as JPEG": lambda picture: encoded(picture, "JPEG", quality=80),
    "half as large": lambda picture: encoded(picture.resize((48, 48), Image.Resampling.LANCZOS)),
    "on a page": lambda picture: encoded(on_page(picture)),
}
OTHERS = {
    "mirrored": lambda picture: encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "another": lambda picture: encoded(photo(99)),
    "stretched": lambda picture: encoded(picture.resize((96, 60))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str) -> None:
    for seed in range(10):
        first, second, other = groups(
            [encoded(photo(seed)), COPIES[kind](photo(seed)), encoded(photo(seed + 50))]
        )
        assert first == second != other


@pytest.mark.parametrize("kind", OTHERS)
def test_other_pictures_are_none(kind: str) -> None:
    for seed in range(10):
        first, second = groups([encoded(photo(seed)), OTHERS[kind](photo(seed))])
        assert first != second


def test_a_detail_makes_another_picture() -> None:
    changed = photo(1)
    changed.paste((255, 255, 255), (40, 40, 56, 56))
    assert len(set(groups([encoded(photo(1)), encoded(changed)]))) == 2


def test_flat_pictures_are_copies_byte_for_byte_alone() -> None:
    flat = [encoded(Image.new("RGB", (8, 8), (value, 10, 20))) for value in (0, 1, 2, 0)]
    first, second, third, fourth = groups(flat)
    assert first == fourth
    assert len({first, second, third}) == 3


def test_bytes_alone_are_compared_where_there_are_too_many() -> None:
    picture = photo(3)
    first, second, third = groups([encoded(picture), encoded(picture, "JPEG"), encoded(picture)], alike=False)
    assert first == third != second


def test_many_with_one_hash_are_compared_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "_NEIGHBOURS", 4)
    contents = [encoded(photo(seed % 8, 32 + seed)) for seed in range(24)]
    found = groups(contents)
    assert all(found[seed] == found[seed % 8] for seed in range(24))
    assert len(set(found)) == 8


def test_none_and_one() -> None:
    nothing = np.empty(0, "S32")
    assert twins.groups(nothing, np.empty(0, np.uint64), nothing, nothing, nothing).tolist() == []
    assert groups([encoded(photo(1))]) == [0]
