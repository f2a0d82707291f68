from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcl_ray.config import RunConfig
from pcl_ray.data import folders
from pcl_ray.data.datasets import DataSplits, in_memory
from pcl_ray.data.images import ArrayImages, FileImages, Images
from pcl_ray.data.loaders import EvaluationLoader, TrainingLoader
from pcl_ray.errors import DataError

ORIENTATION = 0x0112


def config(channels: int = 3, size: int = 16, batch_size: int = 8, **knobs: object) -> RunConfig:
    augment = {"image_size": size, "mean": (0.0,) * channels, "std": (1.0,) * channels, **knobs}
    return RunConfig.model_validate(
        {"data": {"channels": channels}, "augment": augment, "train": {"batch_size": batch_size}}
    )


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth, and of many colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tree(root: Path, images: list[Image.Image], suffix: str = "png", channels: int = 3) -> FileImages:
    """In two classes."""
    for i, image in enumerate(images):
        folder = root / ("odd" if i % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i:02}.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    return folders.find_images(root, channels)


def kept(images: Images, side: int) -> ArrayImages:
    found = in_memory(DataSplits(images, None), side).train
    assert isinstance(found, ArrayImages)
    return found


def evaluated(images: Images, settings: RunConfig) -> torch.Tensor:
    return torch.cat([views for views, _ in EvaluationLoader(images, settings)])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [18, 500])
def test_pictures_of_one_small_size_are_kept_as_they_are(
    tmp_path: Path, suffix: str, channels: int, side: int
) -> None:
    files = tree(tmp_path, [noise(12, 18, i) for i in range(5)], suffix, channels)
    images = kept(files, side)
    assert images.sizes is None
    assert images.pixels.shape == (5, 12, 18, channels)
    assert images.pixels.dtype == np.uint8
    assert all(np.array_equal(images.read(i), files.read(i)) for i in range(5))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_many_sizes_become_squares_that_know_what_they_were(
    tmp_path: Path, channels: int
) -> None:
    sizes = [(30, 50), (8, 9), (200, 20), (1, 1), (64, 64)]
    images = kept(tree(tmp_path, [picture(*size) for size in sizes], channels=channels), 24)
    assert images.pixels.shape == (5, 24, 24, channels)
    order = [*range(0, 5, 2), *range(1, 5, 2)]  # even, odd
    assert images.sizes is not None
    assert images.sizes.tolist() == [list(sizes[i]) for i in order]


def test_squares_are_no_larger_than_the_largest_picture(tmp_path: Path) -> None:
    assert kept(tree(tmp_path, [picture(10, 14), picture(8, 9)]), 100).pixels.shape == (2, 14, 14, 3)


def test_large_pictures_of_one_size_become_squares_too(tmp_path: Path) -> None:
    images = kept(tree(tmp_path, [picture(40, 60, i) for i in range(3)]), 32)
    assert images.pixels.shape == (3, 32, 32, 3)
    assert images.sizes is not None
    assert images.sizes.tolist() == [[40, 60]] * 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_squares_show_the_whole_picture(tmp_path: Path, suffix: str) -> None:
    originals = [picture(300 + i, 200 + 9 * i, i) for i in range(4)]
    images = kept(tree(tmp_path, originals, suffix), 40)
    for i, place in enumerate([0, 2, 1, 3]):
        expected = np.asarray(originals[place].resize((40, 40), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(images.read(i) - expected).mean() < 5


def test_labels_names_and_the_fingerprint_are_the_files(tmp_path: Path) -> None:
    for number, sizes in enumerate([[(9, 9)] * 4, [(9, 9), (30, 12), (7, 7), (9, 8)]]):
        files = tree(tmp_path / str(number), [picture(*size) for size in sizes])
        images = kept(files, 16)
        assert images.labels is not None
        assert images.labels.tolist() == [0, 0, 1, 1]
        assert images.class_names == files.class_names == ("even", "odd")
        assert images.fingerprint == files.fingerprint


def test_a_choice_of_squares_keeps_their_sizes(tmp_path: Path) -> None:
    images = kept(tree(tmp_path, [picture(20 + i, 30) for i in range(4)]), 16)
    some = images.take(np.array([3, 0]))
    assert some.sizes is not None
    assert some.sizes.tolist() == [[23, 30], [20, 30]]
    assert np.array_equal(some.pixels, images.pixels[[3, 0]])
    assert some.labels is not None
    assert some.labels.tolist() == [1, 0]
    assert some.fingerprint != images.fingerprint


def test_held_out_files_are_decoded_as_well(tmp_path: Path) -> None:
    train, holdout = (
        tree(tmp_path / "a", [picture(9, 9)] * 3),
        tree(tmp_path / "b", [picture(20, 30), picture(9, 9)]),
    )
    splits = in_memory(DataSplits(train, holdout), 16)
    assert isinstance(splits.train, ArrayImages)
    assert isinstance(splits.holdout, ArrayImages)
    assert splits.train.pixels.shape == (3, 9, 9, 3)
    assert splits.holdout.pixels.shape == (2, 16, 16, 3)
    assert splits.holdout.fingerprint == holdout.fingerprint


def test_arrays_pass_through_untouched(tmp_path: Path) -> None:
    arrays = ArrayImages(np.zeros((3, 400, 300, 3), dtype=np.uint8), np.arange(3), ("a", "b", "c"))
    splits = DataSplits(arrays, arrays.take(np.arange(2)))
    after = in_memory(splits, 16)
    assert after.train is splits.train
    assert after.holdout is splits.holdout
    mixed = in_memory(DataSplits(arrays, tree(tmp_path, [picture(8, 8)] * 2)), 16)
    assert mixed.train is arrays
    assert isinstance(mixed.holdout, ArrayImages)


def broken(path: Path, kind: str) -> None:
    match kind:
        case "text":
            path.write_text("no picture")
        case "empty":
            path.write_bytes(b"")
        case "cut off":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "gone":
            path.unlink()


@pytest.mark.parametrize("kind", ["text", "empty", "cut off", "gone"])
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    files = tree(tmp_path, [noise(20, 30, i) for i in range(9)], "jpg")
    broken(tmp_path / "odd" / "05.jpg", kind)
    with pytest.raises(DataError, match=r"odd/05\.jpg cannot be read"):
        in_memory(DataSplits(files, None), 16)


def test_progress_is_told(tmp_path: Path) -> None:
    files = tree(tmp_path, [picture(4, 4)])
    many, told = files.take(np.zeros(2500, dtype=np.int64)), []
    in_memory(DataSplits(many, None), 16, lambda done, total: told.append((done, total)))
    assert told == [(done, 2500) for done in range(1, 2501)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_kept_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for i, (height, width) in enumerate([(120, 80), (400, 300)]):
        picture(height, width, i).save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    files = folders.find_images(tmp_path, 3)
    images = kept(files, 40)
    assert images.sizes is not None
    assert images.sizes.tolist() == [list(files.read(i).shape[:2]) for i in range(2)]
    assert images.sizes.tolist() == ([[80, 120], [300, 400]] if orientation > 4 else [[120, 80], [400, 300]])
    for i in range(2):
        expected = np.asarray(
            Image.fromarray(files.read(i)).resize((40, 40), Image.Resampling.BILINEAR)
        ).astype(int)
        assert np.abs(images.read(i) - expected).mean() < 2


@pytest.mark.parametrize(("suffix", "slack"), [("png", 0.006), ("jpg", 0.02)])
@pytest.mark.parametrize("size", [16, 112])
def test_evaluation_views_are_about_those_of_the_files(
    tmp_path: Path, suffix: str, slack: float, size: int
) -> None:
    shapes = [(200, 300), (300, 200), (150, 150), (90, 350), (500, 410), (330, 331)]
    files = tree(tmp_path, [picture(*shape, seed=i) for i, shape in enumerate(shapes)], suffix)
    here, there = evaluated(kept(files, 2 * size), config(size=size)), evaluated(files, config(size=size))
    assert here.shape == there.shape == (6, 3, size, size)
    assert (here - there).abs().flatten(1).mean(dim=1).max() < slack


def test_evaluation_views_of_one_small_size_are_those_of_the_files(tmp_path: Path) -> None:
    files = tree(tmp_path, [noise(12, 18, i) for i in range(5)])
    assert torch.allclose(evaluated(kept(files, 64), config()), evaluated(files, config()), atol=1e-6)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("sizes", [[(40, 40)] * 8, [(60 + 9 * i, 100 - 9 * i) for i in range(8)]])
def test_random_views_are_about_those_of_the_files(
    tmp_path: Path, version: str, sizes: list[tuple[int, int]]
) -> None:
    """The same crops, flips and colours; of files they were rounded to whole numbers in between."""
    files = tree(tmp_path, [picture(*size, seed=i) for i, size in enumerate(sizes)])
    settings = config(version=version)
    (here,), (there,) = (
        list(TrainingLoader(images, settings).epoch(1)) for images in (kept(files, 48), files)
    )
    assert here.indices.tolist() == there.indices.tolist()
    assert (here.query_views - there.query_views).abs().mean() < 0.01
    assert (here.key_views - there.key_views).abs().mean() < 0.01


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("shape", [(4, 1200), (1200, 4), (1, 1000)])
def test_very_long_pictures_have_views(tmp_path: Path, size: int, shape: tuple[int, int]) -> None:
    images = kept(tree(tmp_path, [noise(*shape, seed=i) for i in range(4)]), 2 * size)
    settings = config(size=size, batch_size=4)
    assert torch.isfinite(evaluated(images, settings)).all()
    (batch,) = TrainingLoader(images, settings).epoch(0)
    assert torch.isfinite(batch.query_views).all()
    assert torch.isfinite(batch.key_views).all()


def test_squares_are_cut_in_the_proportions_of_their_pictures(tmp_path: Path) -> None:
    """A ramp from left to right, five times as wide as high: crops, of 3:4 to 4:3, span little of it."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (40, 1, 3)))
    off = {"flip": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0}
    images = kept(tree(tmp_path, [ramp] * 30), 48)
    (batch,) = TrainingLoader(images, config(batch_size=30, **off)).epoch(0)
    spans = batch.query_views.amax(dim=(1, 2, 3)) - batch.query_views.amin(dim=(1, 2, 3))
    assert spans.max() < 0.4
