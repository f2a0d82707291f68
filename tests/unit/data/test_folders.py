from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets, folders
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import NO_LABEL, FileImages
from pcl_ray.data.inspection import looks_cache
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.data.pictures.looks import Look
from pcl_ray.errors import DataError
from pcl_ray.support.paths import path_from_text


def picture(path: Path, value: int = 0) -> Path:
    """A 4 × 4 image whose first pixel tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 10, 20)).save(path)
    return path


def tree(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        picture(root / name, value)
    return root


def names(images: FileImages) -> list[str]:
    return [file.decode() for file in images.files]


def classes(images: FileImages) -> list[str | None]:
    assert images.labels is not None
    return [None if label == NO_LABEL else images.class_names[label] for label in images.labels]


def load(root: Path, cache: Path | None = None, **knobs: object) -> DataSplits:
    config = DataConfig(source="folder", path=str(root), **{"holdout": 0, **knobs})
    return datasets.load(config, cache_dir=cache or root.parent / "cache")


def test_class_folders_give_labels(tmp_path: Path) -> None:
    images = folders.find_images(tree(tmp_path, "dog/1.png", "cat/2.png", "cat/1.png", "eel/x/y/3.png"), 3)
    assert names(images) == ["cat/1.png", "cat/2.png", "dog/1.png", "eel/x/y/3.png"]
    assert images.class_names == ("cat", "dog", "eel")
    assert classes(images) == ["cat", "cat", "dog", "eel"]
    assert images.labels is not None
    assert images.labels.dtype == np.int64


@pytest.mark.parametrize(
    "held", ["a.png b.png", "a.png cat/b.png dog/c.png", "cat/a.png cat/b.png", "all/cat/a.png all/dog/b.png"]
)
def test_flat_mixed_and_single_folders_give_no_labels(tmp_path: Path, held: str) -> None:
    images = folders.find_images(tree(tmp_path, *held.split()), 3)
    assert names(images) == sorted(held.split())
    assert images.labels is None
    assert images.class_names == ()


def test_hidden_files_and_other_suffixes_are_no_images(tmp_path: Path) -> None:
    tree(tmp_path, "a.png", ".hidden.png", ".git/b.png", "__MACOSX/c.png", "x/.thumbs/d.png", "x/E.JPG")
    for other in ("notes.txt", "b.png.part", "png", "x/Thumbs.db"):
        (tmp_path / other).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    assert names(folders.find_images(tmp_path, 3)) == ["a.png", "x/E.JPG"]


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "JPEG", "png", "bmp", "gif", "tif", "tiff", "webp", "ppm", "jp2"]
)
def test_usual_suffixes_are_images_that_decode(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / f"data/a.{suffix}", 200)
    splits = load(tmp_path / "data")
    assert np.abs(splits.train.read(0)[0, 0].astype(int) - [200, 10, 20]).max() < 12


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tree(tmp_path, *(f"{c}/{i}.png" for c in "cab" for i in (10, 9, 1)))
    straight = folders.find_images(wanted, 3)
    assert names(straight) == [f"{c}/{i}.png" for c in "abc" for i in (1, 10, 9)]
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str):
            self.entries = reversed(list(scandir(path)))

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Backwards:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(folders.find_images(wanted, 3)) == names(straight)


@given(
    st.sets(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20),
        min_size=1,
        max_size=6,
    )
)
def test_any_file_name_comes_back(tmp_path_factory: pytest.TempPathFactory, stems: set[str]) -> None:
    root = tmp_path_factory.mktemp("odd")
    wanted = {f"{stem}.png" for stem in stems if not stem.startswith(".")} | {"plain.png"}
    for name in wanted:
        (root / name).write_bytes(name.encode())
    images = folders.find_images(root, 3)
    assert set(names(images)) == wanted
    assert all(images.path(i).read_bytes() == images.files[i] for i in range(len(images)))


ODD_NAMES = [
    "ä ö/Straße № 1.png",
    "日本/犬 🐕.png",
    "a'b\"c/%s {} $x.png",
    "new\nline/tab\t.png",
    "-rf/*.png",
]


def test_odd_names_decode_pickle_and_are_reported(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", *ODD_NAMES)
    raw = os.fsencode(root) + b"/latin-\xe9"  # not UTF-8
    os.mkdir(raw)
    with open(raw + b"/\xff.png", "wb") as file:
        file.write((root / ODD_NAMES[0]).read_bytes())
    images = pickle.loads(pickle.dumps(load(root).train))
    assert len(images) == 6
    first = {images.path(i).relative_to(root).as_posix(): images.read(i)[0, 0, 0] for i in range(6)}
    assert {name: first[name] for name in ODD_NAMES} == {name: value for value, name in enumerate(ODD_NAMES)}
    with open(raw + b"/\xff.png", "wb") as file:
        file.write(b"broken")
    for _ in range(2):  # found, then read from the note of it
        splits = load(root, on_bad_image="skip")
        shown = [entry.file for entry in splits.bad]
        assert shown == [f"{root}/latin-\\xe9/\\xff.png"]
        assert [os.fsencode(path_from_text(text)) for text in shown] == [raw + b"/\xff.png"]
        assert len(splits.train) == 5


def test_symlink_loops_end(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b", target_is_directory=True)
    (root / "c").symlink_to("c")
    assert names(folders.find_images(root, 3)) == ["a/1.png", "b/2.png"]


def test_links_to_folders_and_files_outside_are_followed(tmp_path: Path) -> None:
    tree(tmp_path / "store", "x/1.png", "x/deep/2.png", "y/3.png")
    root = tmp_path / "data"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "store/x", target_is_directory=True)
    (root / "dog").mkdir()
    (root / "dog/linked.png").symlink_to(tmp_path / "store/y/3.png")
    images = folders.find_images(root, 3)
    assert names(images) == ["cat/1.png", "cat/deep/2.png", "dog/linked.png"]
    assert classes(images) == ["cat", "cat", "dog"]
    assert images.read(2)[0, 0, 0] == 2


def test_a_link_never_takes_the_place_of_a_real_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "b/1.png", "c/2.png")
    # would come before c, and make its images class b
    (root / "b" / "also").symlink_to(root / "c", target_is_directory=True)
    (root / "a").symlink_to(root / "c", target_is_directory=True)
    images = folders.find_images(root, 3)
    assert names(images) == ["b/1.png", "c/2.png"]
    assert classes(images) == ["b", "c"]


@pytest.mark.parametrize(
    ("train", "holdout"),
    [("train", "val"), ("train", "test"), ("Train", "Validation"), ("training", "holdout")],
)
def test_train_and_val_folders_are_the_split(tmp_path: Path, train: str, holdout: str) -> None:
    root = tree(
        tmp_path / "data",
        f"{train}/cat/1.png",
        f"{train}/dog/2.png",
        f"{holdout}/dog/3.png",
        f"{holdout}/cat/4.png",
        "extra/5.png",
    )
    splits = load(root, holdout=0.5)  # the share is for sources without a held-out part
    assert names(splits.train) == ["cat/1.png", "dog/2.png"]
    assert names(splits.holdout) == ["cat/4.png", "dog/3.png"]
    assert splits.num_holdout == 2
    assert classes(splits.train) == classes(splits.holdout) == ["cat", "dog"]
    assert [splits.holdout.read(i)[0, 0, 0] for i in range(2)] == [3, 2]


def test_val_goes_before_test(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "train/1.png", "val/2.png", "test/3.png")
    assert names(load(root).holdout) == ["2.png"]


@pytest.mark.parametrize("folder", ["train", "test", "val"])
def test_one_part_alone_is_no_split(tmp_path: Path, folder: str) -> None:
    root = tree(tmp_path / "data", f"{folder}/a/1.png", f"{folder}/b/2.png")
    assert load(root).holdout is None
    assert len(load(root).train) == 2


def test_held_out_classes_have_the_training_numbers_and_unknown_ones_none(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "data",
        "train/b/1.png",
        "train/d/2.png",
        "val/a/3.png",
        "val/b/4.png",
        "val/c/5.png",
        "val/d/6.png",
    )
    holdout = load(root).holdout
    assert holdout.class_names == ("b", "d")
    assert holdout.labels.tolist() == [NO_LABEL, 0, NO_LABEL, 1]


def test_labels_may_be_missing_on_either_side(tmp_path: Path) -> None:
    flat_val = load(tree(tmp_path / "one", "train/a/1.png", "train/b/2.png", "val/3.png"))
    assert flat_val.train.labels is not None
    assert flat_val.holdout.labels is None
    flat_train = load(tree(tmp_path / "two", "train/1.png", "val/a/2.png", "val/b/3.png"))
    assert flat_train.train.labels is None
    assert flat_train.holdout.labels is None  # there are no classes that the numbers could mean


def test_a_held_out_part_of_one_class_keeps_its_label(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "val/dog/4.png")
    assert load(root).holdout.labels.tolist() == [1, 1]


def test_imagenet_needs_both_parts(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "train/n01/1.jpeg", "train/n02/2.jpeg")
    config = DataConfig(source="imagenet", path=str(root))
    with pytest.raises(DataError, match="needs the folders train and val"):
        datasets.sizes(config)
    tree(root, "val/n02/3.jpeg")
    assert datasets.sizes(config) == (2, 1)
    assert datasets.load(config, cache_dir=tmp_path / "cache").holdout.labels.tolist() == [1]


@pytest.mark.parametrize(
    "ask", [datasets.sizes, lambda config: datasets.load(config, cache_dir=Path("unused"))]
)
def test_missing_data_are_named(tmp_path: Path, ask: Callable[[DataConfig], object]) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "half" / "val").mkdir(parents=True)
    tree(tmp_path / "half", "train/1.png")
    said = {
        "empty": r"no images in .*empty.*\.png",
        "nowhere": r"data\.path = .*nowhere' is not a folder \(it does not exist\)",
        "file": r"data\.path = .*file' is not a folder",
        "half": "no images in .*half/val",
    }
    for name, message in said.items():
        with pytest.raises(DataError, match=message):
            ask(DataConfig(source="folder", path=str(tmp_path / name)))
    with pytest.raises(DataError, match=r"source = folder needs data\.path"):
        ask(DataConfig(source="folder"))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "pictures", "1.png", "2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.sizes(DataConfig(source="folder", path="~/pictures", holdout=0)) == (2, 0)


BROKEN = ["cat/cut.png", "cat/empty.jpg", "cat/text.gif", "dog/cut.jpg", "dog/gone.png"]


def broken_tree(root: Path) -> Path:
    """Three sound images, five that cannot be decoded."""
    tree(root, "cat/1.png", "cat/2.png", "dog/3.jpg")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cat/cut.png", "dog/cut.jpg"):
        noise.save(root / name)
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2])
    (root / "cat/empty.jpg").write_bytes(b"")
    (root / "cat/text.gif").write_text("<html>404 not found</html>")
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    return root


def test_every_broken_file_is_listed_with_its_reason_and_the_way_out(tmp_path: Path) -> None:
    root = broken_tree(tmp_path / "data")
    for _ in range(2):  # the second time from the note of the first
        with pytest.raises(DataError) as caught:
            load(root)
        first, *listed = str(caught.value).splitlines()
        assert first.startswith("5 of 8 images cannot be read")
        assert "data.on_bad_image=skip" in first
        assert [line.split(": ")[0].strip() for line in listed] == [str(root / name) for name in BROKEN]
        reasons = [line.split(": ", 1)[1] for line in listed]
        assert all(reasons)
        assert [
            ("truncated" in reason, "empty" in reason, "identify" in reason, "No such file" in reason)
            for reason in reasons
        ] == [
            (True, False, False, False),
            (False, True, False, False),
            (False, False, True, False),
            (True, False, False, False),
            (False, False, False, True),
        ]


def test_skipping_leaves_broken_files_out_and_lists_them(tmp_path: Path) -> None:
    root = broken_tree(tmp_path / "data")
    splits = load(root, on_bad_image="skip")
    assert [entry.file for entry in splits.bad] == [str(root / name) for name in BROKEN]
    assert names(splits.train) == ["cat/1.png", "cat/2.png", "dog/3.jpg"]
    assert classes(splits.train) == ["cat", "cat", "dog"]
    assert [splits.train.read(i).shape for i in range(3)] == [(4, 4, 3)] * 3


def test_broken_held_out_files_count_too(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (root / "val/b/4.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="1 of 4 images"):
        load(root)
    splits = load(root, on_bad_image="skip")
    assert (len(splits.train), splits.num_holdout) == (2, 1)
    assert splits.holdout.labels.tolist() == [0]


def test_nothing_but_broken_files_is_an_error(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "1.png", "2.png")
    for path in root.iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(
        DataError, match=r"none of the 2 images in .*data.* can be read; the first: .*1\.png: "
    ):
        load(root, on_bad_image="skip")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Decoding during a check is noted, and done nowhere else."""
    decoded: list[bytes] = []
    real = looks_cache.look

    def noting(encoded: bytes, options: DecodingOptions) -> Look:
        decoded.append(encoded)
        return real(encoded, options)

    monkeypatch.setattr(looks_cache, "look", noting)
    return decoded


def test_the_check_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = forbid_decoding(monkeypatch)
    root = tree(tmp_path / "data", "train/1.png", "train/2.png", "val/3.png")
    load(root)
    assert len(set(decoded)) == len(decoded) == 3
    decoded.clear()
    load(root)
    load(root, channels=1, limit=2)
    assert decoded == []


def rewritten(root: Path) -> None:
    (root / "a/1.png").write_bytes(b"broken")


def touched(root: Path) -> None:
    os.utime(root / "a/1.png", ns=(1, 1))


def renamed(root: Path) -> None:
    (root / "a/1.png").rename(root / "a/0.png")


def added(root: Path) -> None:
    picture(root / "b/9.png")


def removed(root: Path) -> None:
    (root / "a/1.png").unlink()


@pytest.mark.parametrize("change", [rewritten, touched, renamed, added, removed])
def test_the_check_is_done_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    decoded = forbid_decoding(monkeypatch)
    root = tree(tmp_path / "data", "a/1.png", "b/2.png", "b/3.png")
    load(root)
    decoded.clear()
    change(root)
    splits = load(root, on_bad_image="skip")
    assert decoded
    assert bool(splits.bad) == (change is rewritten)


def test_a_mended_file_counts_again(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "1.png", "2.png")
    (root / "2.png").write_bytes(b"junk")
    assert len(load(root, on_bad_image="skip").train) == 1
    picture(root / "2.png")
    assert len(load(root).train) == 2


@pytest.mark.parametrize("content", ["", "no numpy", "PK", "\x93NUMPY", "\0"])
def test_a_damaged_note_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    root, cache = tree(tmp_path / "data", "1.png", "2.png"), tmp_path / "cache"
    load(root, cache)
    (note,) = cache.iterdir()
    note.write_text(content)
    decoded = forbid_decoding(monkeypatch)
    load(root, cache)
    assert len(decoded) == 2
    load(root, cache)
    assert len(decoded) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "data", "1.png", "2.png")
    (tmp_path / "file").write_text("in the way")
    decoded = forbid_decoding(monkeypatch)
    for _ in range(2):
        assert len(load(root, tmp_path / "file" / "cache").train) == 2
    assert len(decoded) == 4


def test_unchecked_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = forbid_decoding(monkeypatch)
    root = broken_tree(tmp_path / "data")
    splits = load(root, tmp_path / "cache", check_images=False)
    assert (len(splits.train), splits.bad, decoded) == (8, (), [])
    assert not (tmp_path / "cache").exists()


def test_a_long_check_tells_how_far_it_is(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "0.png")
    for i in range(1, 2100):
        os.link(root / "0.png", root / f"{i}.png")
    told: list[tuple[int, int]] = []
    datasets.load(
        DataConfig(source="folder", path=str(root)),
        cache_dir=tmp_path / "cache",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 2100) for done in range(1, 2101)]


def test_what_pillow_only_warns_of_is_fine_and_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    root = tree(tmp_path / "data", "1.png", "2.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a warning from there on, an error from twice that
    splits = load(root)
    assert [splits.train.read(i)[0, 0, 0] for i in range(2)] == [0, 1]
    assert [str(entry.message) for entry in recwarn] == []


def test_checking_in_threads_leaves_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    images = folders.find_images(tree(tmp_path / "data", *(f"{i}.png" for i in range(200))), 3)
    before = list(warnings.filters)
    for repeat in range(5):
        looks_cache.inspect(images, tmp_path / f"cache{repeat}")
        assert list(warnings.filters) == before
