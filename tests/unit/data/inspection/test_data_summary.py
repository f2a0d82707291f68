from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import FileImages
from pcl_ray.data.inspection import summary as summaries
from pcl_ray.data.inspection.summary import DataSummary
from pcl_ray.errors import DataError


def photo(path: Path, seed: int, side: int = 40) -> None:
    """Smooth blobs, as unlike each other as photographs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), np.uint8)
    whole = Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)
    whole.resize((side, side), Image.Resampling.LANCZOS).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 pictures of two classes, of which the last two of each are copies of others."""
    root = tmp_path / "data"
    for number in range(8):
        photo(root / f"cat/{number}.png", number)
        photo(root / f"dog/{number}.png", 100 + number, 60)
    (root / "cat/8.png").write_bytes((root / "cat/0.png").read_bytes())
    (root / "dog/8.png").write_bytes((root / "cat/1.png").read_bytes())
    photo(root / "cat/big/9.png", 2, 80)
    photo(root / "dog/9.png", 103, 30)
    return root


def load(root: Path, **knobs: object) -> DataSplits:
    config = DataConfig(source="folder", path=str(root), **knobs)  # type: ignore[arg-type]
    return datasets.load(config, cache_dir=root.parent / "cache")


def summary(root: Path, **knobs: object) -> DataSummary:
    found = load(root, **knobs).summary
    assert found is not None
    return found


def names(images: object) -> set[str]:
    assert isinstance(images, FileImages)
    return {file.decode() for file in images.files}


TWINS = [
    {"cat/0.png", "cat/8.png"},
    {"cat/1.png", "dog/8.png"},
    {"cat/2.png", "cat/big/9.png"},
    {"dog/3.png", "dog/9.png"},
]


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5])
def test_copies_are_counted_and_stay_on_one_side(root: Path, share: float) -> None:
    splits = load(root, holdout=share)
    found = splits.summary
    assert found is not None
    assert (found.pictures, found.identical, found.alike, found.separated) == (20, 2, 2, 0)
    for pair in TWINS:
        assert pair <= names(splits.train) or pair <= names(splits.holdout)
    assert datasets.sizes(DataConfig(source="folder", path=str(root), holdout=share)) == (
        len(splits.train),
        splits.num_holdout,
    )


def test_a_random_split_says_what_it_separates(root: Path) -> None:
    splits = load(root, holdout=0.4, split="random")
    across = sum(len(pair & names(splits.train)) == 1 for pair in TWINS)
    found = splits.summary
    assert found is not None
    assert found.separated == across > 0
    assert f"{across} held-out pictures have a copy" in summaries.copies_sentence(found)
    assert summary(root, holdout=0.4).reunited == across


def test_a_part_of_its_own_is_left_as_it_is(root: Path) -> None:
    whole = root.rename(root.parent / "all")
    photo(whole / "train/cat/0.png", 0)
    photo(whole / "train/dog/1.png", 1)
    photo(whole / "val/cat/5.png", 0, 50)
    found = summary(whole)
    assert (found.pictures, found.alike, found.separated, found.reunited) == (3, 1, 1, 0)
    assert "1 held-out picture has a copy in the training part" in summaries.copies_sentence(found)


def test_what_is_said_of_sound_pictures(root: Path) -> None:
    classes, folders, sizes = summaries.lines(summary(root, holdout=0))
    assert classes == "training pictures of each class: cat 10, dog 10"
    assert folders.endswith("those below them are not, e.g. cat/big")
    assert sizes == "40 × 40 pixels in the median, 30 × 30 to 80 × 80"


def test_blank_and_invisible_pictures_are_found(root: Path) -> None:
    tiny = Image.new("RGBA", (200, 200), (255, 255, 255, 0))
    tiny.paste((200, 0, 0, 255), (90, 90, 130, 130))
    tiny.save(root / "cat/tiny.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(root / "cat/nothing.png")
    white = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    white.paste((255, 255, 255, 255), (5, 5, 45, 45))
    white.save(root / "dog/white.png")
    found = summary(root)
    assert (found.blank, sorted(found.blank_examples)) == (2, ["cat/nothing.png", "cat/tiny.png"])
    assert (found.invisible, found.invisible_examples) == (1, ["dog/white.png"])
    said = summaries.cautions(found)
    assert any("data.trim=true" in sentence for sentence in said)
    assert any("data.background=black" in sentence for sentence in said)
    assert summary(root, background="black").invisible == 0
    assert not summaries.blank_sentence(summary(root, trim=True))


def test_files_that_were_not_looked_at_have_classes_alone(root: Path) -> None:
    found = summary(root, check_images=False, holdout=0)
    assert (found.pictures, found.classes, found.twins, found.median) == (20, {"cat": 10, "dog": 10}, 0, ())


def test_it_is_read_as_it_was_written(root: Path, tmp_path: Path) -> None:
    found = summary(root)
    summaries.write(found, tmp_path / "data.json")
    again = summaries.read(tmp_path / "data.json")
    assert again is not None
    assert summaries.lines(again) == summaries.lines(found)
    assert summaries.cautions(again) == summaries.cautions(found)


@pytest.mark.parametrize("content", ["", "[]", '{"classes": {}}', "\0", "null"])
def test_a_damaged_file_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    assert summaries.read(tmp_path / "data.json") is None
    assert summaries.read(tmp_path / "missing.json") is None


def test_the_quick_look_reads_headers_and_then_what_is_known(root: Path) -> None:
    config = DataConfig(source="folder", path=str(root))
    quick = datasets.preview(config, root.parent / "cache")
    assert "40 × 40 pixels in the median, 30 × 30 to 80 × 80" in quick
    assert any(line.startswith("2 pictures are copies of another byte for byte") for line in quick)
    load(root)
    known = datasets.preview(config, root.parent / "cache")
    assert any(
        line.startswith("4 of 20 pictures are copies (2 byte for byte, 2 in other files") for line in known
    )


def test_the_quick_look_lists_what_a_run_would_refuse(root: Path) -> None:
    (root / "cat/3.png").write_bytes(b"no picture")
    Image.new("1", (4000, 3000)).save(root / "dog/large.png")
    config = DataConfig(source="folder", path=str(root), max_pixels=1_000_000)
    with pytest.raises(DataError) as quick:
        datasets.preview(config, root.parent / "cache")
    with pytest.raises(DataError) as whole:
        load(root, max_pixels=1_000_000)
    assert str(quick.value) == str(whole.value)
    assert "large.png: 12 megapixels, more than the 1 of data.max_pixels = 1000000" in str(whole.value)
    skipping = DataConfig(source="folder", path=str(root), max_pixels=1_000_000, on_bad_image="skip")
    assert sum("cannot be read" in line for line in datasets.preview(skipping, root.parent / "cache")) == 2
