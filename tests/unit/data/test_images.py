from __future__ import annotations

import io
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcl_ray.data.images import NO_LABEL, ArrayImages, FileImages, to_channels
from pcl_ray.data.pictures.decoding import as_array, decode, quiet

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
]


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def colours() -> np.ndarray:
    """[2, 3, 3]: red, green, blue over black, white, grey."""
    return np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [90, 90, 90]]], dtype=np.uint8
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_uint8_of_the_asked_channels(mode: str, channels: int) -> None:
    pixels = as_array(Image.new(mode, (5, 2)), channels)
    assert pixels.shape == (2, 5, channels)
    assert pixels.dtype == np.uint8


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(colours()))
    assert np.array_equal(decode(path, 3), colours())
    assert decode(path, 1)[:, :, 0].tolist() == [[76, 150, 29], [0, 255, 90]]  # ITU-R 601: .299, .587, .114


def test_grey_png_in_one_and_three_channels(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    path = saved(tmp_path / "a.png", Image.fromarray(grey))
    assert np.array_equal(decode(path, 1), grey[:, :, None])
    assert np.array_equal(decode(path, 3), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("transparency", "expected"), [(None, [200, 0, 0]), (1, [255, 255, 255]), (0, [200, 0, 0])]
)
def test_palette_with_and_without_transparency(
    tmp_path: Path, transparency: int | None, expected: list[int]
) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    options = {} if transparency is None else {"transparency": transparency}
    for suffix in ("png", "gif"):
        assert decode(saved(tmp_path / f"a.{suffix}", image, **options), 3)[2, 2].tolist() == expected


def test_palette_with_an_alpha_for_every_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([0, 0, 0] * 3)
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 128, 255]))
    assert decode(path, 1)[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize(
    ("alpha", "expected"), [(255, [10, 60, 200]), (0, [255, 255, 255]), (128, [132, 157, 227])]
)
def test_transparent_colour_lies_on_white(tmp_path: Path, alpha: int, expected: list[int]) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGBA", (3, 3), (10, 60, 200, alpha)))
    assert np.abs(decode(path, 3)[1, 1].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("alpha", "expected"), [(255, 40), (0, 255), (128, 147)])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_grey_lies_on_white(tmp_path: Path, alpha: int, expected: int, channels: int) -> None:
    path = saved(tmp_path / "a.png", Image.new("LA", (3, 3), (40, alpha)))
    assert np.abs(decode(path, channels).astype(int) - expected).max() <= 1


def test_premultiplied_alpha_lies_on_white() -> None:
    assert as_array(Image.new("LA", (1, 1), (40, 128)).convert("La"), 1)[0, 0, 0] == pytest.approx(147, abs=2)
    assert as_array(Image.new("RGBA", (1, 1), (40, 40, 40, 128)).convert("RGBa"), 1)[
        0, 0, 0
    ] == pytest.approx(147, abs=2)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0)])
def test_one_transparent_colour_becomes_white(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...]
) -> None:
    path = saved(tmp_path / "a.png", Image.new(mode, (2, 2), colour), transparency=colour)
    assert decode(path, 3).tolist() == [[[255, 255, 255]] * 2] * 2


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 32768, 65535, 257, 60000]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
        assert decode(path, 1)[0, :, 0].tolist() == [0, 128, 255, 1, 233]
        assert decode(path, 3)[0, 1].tolist() == [128] * 3


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[1000, 65535, 0]], dtype=np.uint16))
    image.info["transparency"] = 1000
    assert as_array(image, 1)[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-4.0, 300.0, 7.0], [0, 255, 7]),
        ([float("nan"), 0.2, 1.0], [0, 51, 255]),
    ],
)
def test_float_tiffs(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([values], dtype=np.float32)))
    assert decode(path, 1)[0, :, 0].tolist() == expected


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[True, False]])))
    assert decode(path, 1)[0, :, 0].tolist() == [255, 0]


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK"), quality=95)
    assert np.abs(decode(path, 3)[8, 8].astype(int) - [200, 30, 90]).max() < 12


def upright() -> Image.Image:
    """Four corners of their own grey, and wider than high: every turn and mirror shows."""
    return Image.fromarray(
        np.kron(np.array([[0, 80, 80], [160, 80, 255]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    )


# How the EXIF standard says a camera stored the upright picture.
STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_come_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.array(upright()))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", stored, exif=exif, **options)
    pixels = decode(path, 1)[:, :, 0]
    assert pixels.shape == (32, 48)
    assert np.abs(pixels.astype(int) - np.array(upright())).max() < 8  # JPEG


def test_orientation_six_is_a_quarter_turn_clockwise(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(
        tmp_path / "a.png", Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)), exif=exif
    )
    assert decode(path, 1)[:, :, 0].tolist() == [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_left_alone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(saved(tmp_path / "a.jpg", upright(), exif=exif), 1).shape == (32, 48, 1)


def test_damaged_exif_does_not_cost_a_sound_picture() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a camera", 1.5
    exif.get_ifd(0x8769)[0x829A] = 0.01
    file = io.BytesIO()
    upright().save(file, "jpeg", exif=exif)
    whole, tags = file.getvalue(), exif.tobytes()
    start = whole.index(tags[-40:]) + 40 - len(tags) + 6  # behind "Exif\0\0"
    dice = random.Random(0)
    shapes = set()
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            damaged[start + dice.randrange(len(tags) - 6)] = dice.choice([0, 255, dice.randrange(256)])
        with quiet():
            shapes.add(decode(io.BytesIO(bytes(damaged)), 1).shape)  # type: ignore[arg-type]
    assert shapes == {(32, 48, 1), (48, 32, 1)}


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert decode(path, 1)[0, 0, 0] == 50


def test_jpegs_and_only_they_are_decoded_as_small_as_suffices(tmp_path: Path) -> None:
    image = Image.new("RGB", (512, 256), (9, 99, 9))
    assert decode(
        saved(tmp_path / "a.jpg", image), 3, scale=lambda height, width: 64 / min(height, width)
    ).shape == (64, 128, 3)
    assert decode(
        saved(tmp_path / "a.png", image), 3, scale=lambda height, width: 64 / min(height, width)
    ).shape == (256, 512, 3)
    assert decode(tmp_path / "a.jpg", 3).shape == (256, 512, 3)


def test_quiet_keeps_warnings_back_and_puts_them_on_again() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("inside", UserWarning, stacklevel=1)
        warnings.warn("outside", UserWarning, stacklevel=1)
    assert [str(entry.message) for entry in seen] == ["outside"]


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 1), (4, 3, 2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_to_channels(shape: tuple[int, ...], channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = pixels.copy()
    converted = to_channels(pixels, channels)
    assert converted.shape == (4, 3, 2, channels)
    assert converted.dtype == np.uint8
    assert converted.flags.c_contiguous
    assert np.array_equal(pixels, before)
    if shape[3:] != (3,):
        assert (converted == pixels.reshape(4, 3, 2, 1)).all()


def test_arrays_turn_grey_as_files_do() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 500, 400, 3), dtype=np.uint8)
    assert np.array_equal(to_channels(pixels, 1)[0], as_array(Image.fromarray(pixels[0]), 1))


def arrays(n: int = 6, *, labels: bool = True) -> ArrayImages:
    pixels = np.random.default_rng(1).integers(0, 256, (n, 4, 5, 1), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(n) % 3 if labels else None, ("a", "b", "c") if labels else ())


def files(*names: str, labels: list[int] | None = None, root: str = "/nowhere") -> FileImages:
    encoded = np.array([name.encode() for name in names])
    return FileImages(
        root, encoded, 3, None if labels is None else np.array(labels), ("x", "y") if labels else ()
    )


@given(st.lists(st.integers(0, 5), max_size=8))
def test_taking_keeps_images_and_labels_together(chosen: list[int]) -> None:
    images, indices = arrays(), np.array(chosen, dtype=np.int64)
    taken = images.take(indices)
    assert len(taken) == len(chosen)
    assert all(np.array_equal(taken.read(at), images.read(i)) for at, i in enumerate(chosen))
    assert taken.labels is not None
    assert taken.labels.tolist() == [i % 3 for i in chosen]
    assert taken.class_names == images.class_names
    named = files(
        "a.png", "b.png", "c.png", "d.png", "e.png", "f.png", labels=[0, 1, 0, 1, NO_LABEL, 1]
    ).take(indices)
    assert [named.path(i).name for i in range(len(named))] == [f"{'abcdef'[i]}.png" for i in chosen]
    assert named.labels is not None
    assert named.labels.tolist() == [[0, 1, 0, 1, NO_LABEL, 1][i] for i in chosen]


def test_taking_without_labels() -> None:
    assert arrays(labels=False).take(np.array([1])).labels is None
    assert files("a.png", "b.png").take(np.array([1])).labels is None


def test_the_same_arrays_have_the_same_fingerprint() -> None:
    images = arrays()
    assert images.fingerprint == arrays().fingerprint
    assert (
        images.fingerprint
        == ArrayImages(np.asfortranarray(images.pixels), images.labels.astype(np.int32)).fingerprint
    )  # type: ignore[union-attr]


def test_other_arrays_have_another_fingerprint() -> None:
    images = arrays()
    others = [
        images.take(np.array([1, 0, 2, 3, 4, 5])),
        images.take(np.arange(5)),
        arrays(labels=False),
        arrays(0),
    ]
    for i in range(6):
        pixels = images.pixels.copy()
        pixels[i, 3, 4, 0] ^= 1
        others.append(ArrayImages(pixels, images.labels))
    others.append(ArrayImages(images.pixels.reshape(6, 5, 4, 1), images.labels))
    others.append(ArrayImages(images.pixels, np.zeros(6, dtype=np.int64)))
    assert len({entry.fingerprint for entry in (images, *others)}) == len(others) + 1


def test_files_fingerprint_is_that_of_names_order_and_labels_and_not_of_the_place() -> None:
    one = files("a.png", "b.png", labels=[0, 1])
    assert one.fingerprint == files("a.png", "b.png", labels=[0, 1], root="/elsewhere").fingerprint
    others = [
        files("b.png", "a.png", labels=[0, 1]),
        files("a.png", "c.png", labels=[0, 1]),
        files("a.png", "b.png", labels=[1, 0]),
    ]
    others.append(files("a.png", "b.png"))
    assert len({entry.fingerprint for entry in (one, *others)}) == 5


def test_images_survive_pickling(tmp_path: Path) -> None:
    for name in ("é 1.png", "b.png"):
        saved(tmp_path / name, Image.fromarray(colours()))
    for images in (
        arrays(),
        arrays(labels=False),
        files("é 1.png", "b.png", labels=[1, 0], root=str(tmp_path)),
    ):
        copy = pickle.loads(pickle.dumps(images))
        assert len(copy) == len(images)
        assert copy.fingerprint == images.fingerprint
        assert copy.class_names == images.class_names
        assert all(np.array_equal(copy.read(i), images.read(i)) for i in range(len(images)))
