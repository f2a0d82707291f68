from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pcl_ray.data.images import FileImages
from pcl_ray.data.pictures import margins
from pcl_ray.data.pictures.decoding import DecodingOptions, decode, quiet
from pcl_ray.errors import DataError

BOX = (10, 5, 30, 25)  # left, top, right, bottom


def page(mode: str, colour: object, ink: object) -> Image.Image:
    picture = Image.new(mode, (60, 40), colour)  # type: ignore[arg-type]
    ImageDraw.Draw(picture).rectangle((10, 5, 29, 24), fill=ink)  # type: ignore[arg-type]
    return picture


@pytest.mark.parametrize(
    ("mode", "colour", "ink"),
    [
        ("RGBA", (0, 0, 0, 0), (200, 10, 10, 255)),
        ("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),  # white on white is content where it is opaque
        ("RGBA", (7, 90, 9, 255), (200, 10, 10, 255)),
        ("RGB", (7, 90, 9), (200, 10, 10)),
        ("L", 255, 0),
        ("LA", (0, 0), (99, 255)),
        ("P", 0, 1),
        ("1", 1, 0),
    ],
)
def test_margins_of_one_colour_or_of_none_are_found(mode: str, colour: object, ink: object) -> None:
    picture = page(mode, colour, ink)
    if mode == "P":
        picture.putpalette([255, 255, 255, 10, 20, 30])
    assert margins.content_box(picture) == BOX


def test_what_has_no_margins_stays_whole() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    one_corner_differs = page("RGB", "white", "red")
    one_corner_differs.putpixel((59, 39), (0, 0, 0))
    for picture in (noise, one_corner_differs, Image.new("RGB", (9, 7), "green")):
        assert margins.content_box(picture) == (0, 0, *picture.size)


@pytest.mark.parametrize("picture", [Image.new("RGBA", (9, 7), (9, 9, 9, 0)), Image.new("L", (9, 7), 3)])
def test_nothing_is_found_in_a_blank_picture(picture: Image.Image) -> None:
    assert margins.find_content(picture) is None


def test_a_trimmed_file_is_its_content_with_its_size_and_scale(tmp_path: Path) -> None:
    page("RGBA", (0, 0, 0, 0), (200, 10, 10, 255)).save(tmp_path / "a.png")
    images = FileImages(str(tmp_path), np.array([b"a.png"]), 3)
    trimmed = images.with_options(DecodingOptions(trim=True))
    asked: list[tuple[int, int]] = []
    pixels = trimmed.read(0, lambda height, width: asked.append((height, width)) or 1.0)
    assert pixels.shape == (20, 20, 3)
    assert (pixels == (200, 10, 10)).all()
    assert (asked, trimmed.size(0)) == ([(20, 20)], (20, 20))
    assert (images.read(0).shape, images.size(0)) == ((40, 60, 3), (40, 60))


@pytest.mark.parametrize(
    ("background", "seen"), [("white", 255), ("black", 0), ("grey", 128), ("#102030", None)]
)
def test_transparent_parts_get_the_background(tmp_path: Path, background: str, seen: int | None) -> None:
    page("RGBA", (50, 60, 70, 0), (200, 10, 10, 255)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 3, options=DecodingOptions(background=background))
    assert pixels[0, 0].tolist() == ([16, 32, 48] if seen is None else [seen] * 3)
    assert pixels[10, 15].tolist() == [200, 10, 10]


def test_too_many_pixels_are_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 300)).save(tmp_path / "a.png")
    Image.new("L", (400, 300)).save(tmp_path / "a.jpg")
    few, enough = DecodingOptions(max_pixels=10_000), DecodingOptions(max_pixels=120_000)
    with pytest.raises(DataError, match=r"^0 megapixels, more than the 0\.01 of data\.max_pixels = 10000$"):
        decode(tmp_path / "a.png", 1, options=few)
    assert decode(tmp_path / "a.png", 1, options=enough).shape == (300, 400, 1)
    # a JPEG counts as large as it is decoded, unless it may not be reduced
    assert decode(tmp_path / "a.jpg", 1, scale=lambda *_: 0.1, options=few).shape == (38, 50, 1)
    with pytest.raises(DataError):
        decode(
            tmp_path / "a.jpg",
            1,
            scale=lambda *_: 0.1,
            options=DecodingOptions(max_pixels=10_000, reduced=False),
        )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit is out of force, and comes back
    with quiet():
        assert decode(tmp_path / "a.png", 1, options=enough).shape == (300, 400, 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(DataError, match=r"more pixels than data\.max_pixels = 120,000"):
        decode(tmp_path / "a.png", 1, options=enough)
