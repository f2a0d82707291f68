from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from image_arrays import idx, idx_folder, load, numbers, pixels

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.images import NO_LABEL
from pcl_ray.errors import DataError

DICE = np.random.default_rng(0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_idx_files(tmp_path: Path, zipped: bool, channels: int) -> None:
    labels = np.array([1, 0, 2, 1, 0])
    folder = idx_folder(
        tmp_path / "mnist",
        zipped=zipped,
        train_images=pixels(5),
        train_labels=labels,
        t10k_images=pixels(3),
        t10k_labels=labels[:3],
    )
    splits = load("idx", folder, channels=channels)
    assert (len(splits.train), splits.num_holdout) == (5, 3)
    assert all(
        np.array_equal(splits.train.read(i), np.repeat(pixels(5)[i][:, :, None], channels, axis=2))
        for i in range(5)
    )
    assert splits.train.labels.tolist() == labels.tolist()
    assert splits.holdout.labels.tolist() == [1, 0, 2]
    assert splits.train.class_names == ("0", "1", "2")


def test_idx_without_labels_and_held_out_part(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mnist", train_images=pixels(10))
    splits = load("idx", folder)
    assert (len(splits.train), splits.num_holdout) == (8, 2)
    assert splits.train.labels is None
    assert splits.holdout.labels is None
    assert sorted(numbers(splits.train) + numbers(splits.holdout)) == list(range(10))


def test_idx_folders_of_the_files_name_are_passed_over(tmp_path: Path) -> None:
    """Some archives hold the folder train-images-idx3-ubyte beside the file train-images.idx3-ubyte."""
    folder = tmp_path / "mnist"
    (folder / "train-images-idx3-ubyte").mkdir(parents=True)
    (folder / "train-images.idx3-ubyte").write_bytes(idx(pixels(4)))
    assert numbers(load("idx", folder, holdout=0).train) == [0, 1, 2, 3]


IDX_DAMAGE = {
    "cut short": idx(pixels(5))[:-1],
    "too long": idx(pixels(5)) + b"\0",
    "header alone": idx(pixels(5))[:16],
    "cut header": idx(pixels(5))[:9],
    "empty": b"",
    "magic": b"\x01" + idx(pixels(5))[1:],
    "floats": b"\0\0\x0d" + idx(pixels(5))[3:],
    "no dimension": b"\0\0\x08\0",
    "labels for images": idx(np.arange(5)),
    "no images": idx(np.zeros((0, 4, 4))),
    "images of nothing": idx(np.zeros((5, 0, 4))),
    "huge": b"\0\0\x08\3" + b"\xff" * 12,
    "many dimensions": b"\0\0\x08\xc8" + b"\0\0\0\1" * 200 + b"x",
}


@pytest.mark.parametrize("damage", IDX_DAMAGE)
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    folder = idx_folder(tmp_path / "mnist", train_images=IDX_DAMAGE[damage])
    with pytest.raises(DataError, match="train-images-idx3-ubyte (is not|holds|cannot)"):
        load("idx", folder)


@given(st.data())
def test_damaged_gz_files_are_errors_or_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(gzip.compress(idx(pixels(5))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    folder = idx_folder(
        tmp_path_factory.mktemp("mnist"),
        zipped=True,
        train_images=bytes(raw[: data.draw(st.integers(1, len(raw)))]),
    )
    config = DataConfig(source="idx", path=str(folder), holdout=0)
    found, announced = "", ""
    try:
        found = str(numbers(datasets.load(config, cache_dir=folder).train))
    except DataError as error:
        found = str(error)
    try:
        announced = str(datasets.sizes(config))
    except DataError as error:
        announced = str(error)
    # some bytes of gzip's header do not matter
    assert found == "[0, 1, 2, 3, 4]" or "train-images-idx3-ubyte.gz" in found
    assert "(" in announced or "train-images-idx3-ubyte.gz" in announced


@pytest.mark.parametrize("labels", [np.arange(4), np.arange(6), np.zeros(0)])
def test_idx_labels_of_another_length_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    folder = idx_folder(tmp_path / "mnist", train_images=pixels(5), train_labels=labels)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte has shape .* 5 images"):
        load("idx", folder)


@pytest.mark.parametrize("shape", [(5, 1), (0, 2**31, 2**31), (*[2**32 - 1] * 4, 0)])
def test_idx_labels_that_are_no_list_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    sizes = b"".join(side.to_bytes(4, "big") for side in shape)
    labels = b"\0\0\x08" + bytes([len(shape)]) + sizes + bytes(5)
    folder = idx_folder(tmp_path / "mnist", train_images=pixels(5), train_labels=labels)
    with pytest.raises(DataError, match=r"holds an array of shape .*; labels \[N\] are needed"):
        load("idx", folder)


def test_idx_needs_the_images(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mnist", train_labels=np.arange(5), t10k_images=pixels(3))
    with pytest.raises(DataError, match="no file train-images-idx3-ubyte"):
        load("idx", folder)


# --- .npy and .npz


def test_npy_alone_and_with_labels_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(10))
    assert load("arrays", tmp_path / "a.npy").train.labels is None
    np.save(tmp_path / "a_labels.npy", np.arange(10) * 10)
    splits = load("arrays", tmp_path / "a.npy")
    assert (len(splits.train), splits.num_holdout) == (8, 2)
    for part in (splits.train, splits.holdout):
        assert numbers(part) == part.labels.tolist()
        assert part.class_names == tuple(str(10 * i) for i in range(10))
        assert part.read(0).shape == (4, 4, 3)


@pytest.mark.parametrize(
    "keys",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("x", "y", "x_test", "y_test"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_under_its_usual_names(tmp_path: Path, keys: tuple[str, ...], save: object) -> None:
    content = (pixels(5), np.array([0, 1, 0, 1, 1]), pixels(3), np.array([1, 0, 1]))
    save(tmp_path / "a.npz", other=np.arange(3), **dict(zip(keys, content, strict=True)))  # type: ignore[operator]
    # the share is for sources without a held-out part
    splits = load("arrays", tmp_path / "a.npz", holdout=0.5)
    assert numbers(splits.train) == [0, 1, 2, 3, 4]
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 1]
    assert numbers(splits.holdout) == [0, 1, 2]
    assert splits.holdout.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("suffix", ["npy", "npz", "data"])
def test_the_content_tells_the_kind_of_file(tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "one.npy", pixels(4))
    np.savez(tmp_path / "many.npz", images=pixels(4))
    for name in ("one.npy", "many.npz"):
        path = (tmp_path / name).rename(tmp_path / f"{name[:3]}_as.{suffix}")
        assert len(load("arrays", path, holdout=0).train) == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 3)])
def test_array_shapes(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    values = DICE.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    splits = load("arrays", tmp_path / "a.npy", channels=channels, holdout=0)
    assert splits.train.read(0).shape == (5, 4, channels)
    if shape[3:] == (channels,):
        assert np.array_equal(splits.train.read(2), values[2])


LABELS = {
    "words": (np.array(["dog", "cat", "dog", "Äl"]), ["dog", "cat", "dog", "Äl"]),
    "numbers with gaps": (np.array([7, 3, 7, 100]), ["7", "3", "7", "100"]),
    "negative is none": (np.array([-1, 3, -7, 0]), [None, "3", None, "0"]),
    "small integers": (np.array([-1, 3, 2, 0], dtype=np.int8), [None, "3", "2", "0"]),
    "unsigned": (np.array([255, 3, 2, 0], dtype=np.uint8), ["255", "3", "2", "0"]),
    "floats": (np.array([-1.0, 0.5, np.nan, 2.0]), [None, "0.5", None, "2.0"]),
    "yes and no": (np.array([True, False, True, True]), ["True", "False", "True", "True"]),
    "texts": (np.array(["b", "", "a", " "]), ["b", None, "a", None]),
    "none at all": (np.array([-1, -1, -1, -1]), [None] * 4),
}


def test_python_objects_are_not_read_and_the_way_out_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(2), labels=np.array(["a", "b"], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read: it holds Python objects.*labels\.astype\(str\)"):
        load("arrays", tmp_path / "a.npz", holdout=0)


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_become_class_numbers(tmp_path: Path, kind: str) -> None:
    labels, expected = LABELS[kind]
    np.savez(tmp_path / "a.npz", images=pixels(4), labels=labels)
    train = load("arrays", tmp_path / "a.npz", holdout=0).train
    assert [None if number == NO_LABEL else train.class_names[number] for number in train.labels] == expected
    assert train.labels.dtype == np.int64
    assert len(train.class_names) == len(set(expected) - {None})


def test_both_parts_share_their_class_numbers(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        x=pixels(3),
        y=np.array(["b", "d", "b"]),
        x_test=pixels(3),
        y_test=np.array(["d", "a", "b"]),
    )
    splits = load("arrays", tmp_path / "a.npz")
    assert splits.train.class_names == splits.holdout.class_names == ("a", "b", "d")
    assert splits.train.labels.tolist() == [1, 2, 1]
    assert splits.holdout.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("with_train", "with_test"), [(False, True), (True, False), (False, False)])
def test_labels_are_optional_in_each_part(tmp_path: Path, with_train: bool, with_test: bool) -> None:
    content = {"images": pixels(3), "test_images": pixels(2)}
    content |= {"labels": np.array([0, 1, 0])} if with_train else {}
    content |= {"test_labels": np.array([1, 0])} if with_test else {}
    np.savez(tmp_path / "a.npz", **content)
    splits = load("arrays", tmp_path / "a.npz")
    assert (splits.train.labels is not None, splits.holdout.labels is not None) == (with_train, with_test)
    if with_test:
        assert splits.holdout.labels.tolist() == [1, 0]


def test_labels_without_their_images_do_no_harm(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(3), labels=np.array([0, 1, 0]), test_labels=np.array([5, 6]))
    splits = load("arrays", tmp_path / "a.npz", holdout=0)
    assert [splits.train.class_names[number] for number in splits.train.labels] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"images": np.zeros((4, 4, 4), np.float32)},
            r"images in .*a\.npz is float32 of shape \(4, 4, 4\); uint8",
        ),
        ({"images": np.zeros((4, 4), np.uint8)}, r"uint8 of shape \(4, 4\)"),
        ({"images": np.zeros((4, 3, 4, 4), np.uint8)}, r"shape \(4, 3, 4, 4\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, r"shape \(0, 4, 4\)"),
        ({"images": np.uint8(3)}, r"shape \(\)"),
        ({"images": pixels(4), "test_images": np.zeros((2, 4, 4))}, r"test_images in .* is float64"),
        (
            {"images": pixels(4), "labels": np.arange(5)},
            r"labels in .*a\.npz has shape \(5,\), but there are 4 images",
        ),
        ({"images": pixels(4), "labels": np.zeros((4, 1))}, r"has shape \(4, 1\)"),
        ({"images": pixels(4), "labels": np.int64(3)}, r"has shape \(\)"),
        (
            {"images": pixels(4), "test_images": pixels(2), "test_labels": np.arange(4)},
            r"test_labels in .* \(4,\), but there are 2",
        ),
        (
            {"labels": np.arange(5), "pictures": pixels(3)},
            "has the arrays labels, pictures; 'images' is needed",
        ),
        ({}, "has the arrays none; 'images' is needed"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(
    tmp_path: Path, content: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **content)
    for ask in (datasets.sizes, lambda config: datasets.load(config, cache_dir=tmp_path)):
        with pytest.raises(DataError, match=said):
            ask(DataConfig(source="arrays", path=str(tmp_path / "a.npz")))


def damaged_arrays(folder: Path) -> dict[str, bytes]:
    np.save(folder / "a.npy", pixels(10))
    np.savez(folder / "a.npz", images=pixels(10))
    np.savez_compressed(folder / "z.npz", images=pixels(10))
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "text.npz", "w") as file:
        file.writestr("images", "no array")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    packed = bytearray(whole["z.npz"])
    packed[100:140] = b"\xff" * 40
    return {
        "empty.npy": b"",
        "empty.npz": b"",
        "cut.npy": whole["a.npy"][:-3],
        "header.npy": whole["a.npy"][:40],
        "cut.npz": whole["a.npz"][:-40],
        "scrambled.npz": bytes(packed),
        "table.csv": b"1,2,3\n",
        "object.npy": whole["objects.npy"],
        "text.npz": whole["text.npz"],
    }


ARRAY_DAMAGE = [
    "empty.npy",
    "empty.npz",
    "cut.npy",
    "header.npy",
    "cut.npz",
    "scrambled.npz",
    "table.csv",
    "object.npy",
    "text.npz",
]


@pytest.mark.parametrize("name", ARRAY_DAMAGE)
def test_array_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged_arrays(tmp_path)[name])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load("arrays", path)


def test_a_broken_label_file_is_named_and_not_the_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(3))
    (tmp_path / "a_labels.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"a_labels\.npy cannot be read"):
        load("arrays", tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("path", "said"),
    [(None, r"needs data\.path: a \.npy or \.npz"), ("nowhere.npz", "is not a file"), (".", "is not a file")],
)
def test_arrays_need_a_file(path: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        datasets.sizes(DataConfig(source="arrays", path=path))


# --- torchvision's


def stand_in(monkeypatch: pytest.MonkeyPatch, source: str) -> list[tuple[object, ...]]:
    """torchvision's class replaced by one with as many images of 2 × 2 pixels; returns the calls it got."""
    asked: list[tuple[object, ...]] = []
    sizes = {"train": 5_000, "train+unlabeled": 105_000, "test": 8_000}

    def cifar(root: str, *, train: bool) -> SimpleNamespace:
        asked.append((root, train))
        count = 50_000 if train else 10_000
        data = np.broadcast_to(np.array([[[7]], [[8]]], dtype=np.uint8), (count, 2, 2, 3))
        return SimpleNamespace(data=data, targets=[i % 10 for i in range(count)], classes=list("abcdefghij"))

    def stl10(root: str, *, split: str) -> SimpleNamespace:
        asked.append((root, split))
        count = sizes[split]
        data = np.broadcast_to(np.array([[7, 7], [8, 8]], dtype=np.uint8), (count, 3, 2, 2))
        labels = (
            np.where(np.arange(count) < 5_000, np.arange(count) % 10, -1)
            if split != "test"
            else np.arange(count) % 10
        )
        return SimpleNamespace(data=data, labels=labels)  # without class_names.txt it has no classes

    monkeypatch.setattr(torchvision.datasets, source.upper(), stl10 if source == "stl10" else cifar)
    return asked


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    asked = stand_in(monkeypatch, source)
    splits = load(source, tmp_path, channels=1)
    assert asked == [(str(tmp_path), True), (str(tmp_path), False)]
    assert (
        (len(splits.train), splits.num_holdout)
        == (50_000, 10_000)
        == datasets.sizes(DataConfig(source=source, path=str(tmp_path)))
    )
    assert splits.train.read(3)[:, :, 0].tolist() == [[7, 7], [8, 8]]
    assert splits.train.labels[:12].tolist() == [*range(10), 0, 1]
    assert splits.train.class_names == tuple("abcdefghij")


@pytest.mark.parametrize(("unlabelled", "count"), [(True, 105_000), (False, 5_000)])
def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabelled: bool, count: int) -> None:
    stand_in(monkeypatch, "stl10")
    splits = load("stl10", tmp_path, unlabelled=unlabelled)
    assert (len(splits.train), splits.num_holdout) == (count, 8_000)
    assert datasets.sizes(DataConfig(source="stl10", path=str(tmp_path), unlabelled=unlabelled)) == (
        count,
        8_000,
    )
    assert (splits.train.labels == NO_LABEL).sum() == count - 5_000
    # torchvision keeps STL-10 as [N, 3, H, W]
    assert splits.train.read(0)[:, :, 0].tolist() == [[7, 7], [8, 8]]


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "stl10"])
def test_a_folder_without_the_data_set_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=rf"does not hold {source} as torchvision lays it out: "):
        load(source, tmp_path)


def test_a_header_that_does_not_end_is_a_sentence(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', ('shape'".ljust(118)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"a.npy cannot be read as .npy: \S"):
        datasets.sizes(DataConfig(source="arrays", path=str(tmp_path / "a.npy")))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((2**32 - 1, 28, 28), "it is cut short"),
        ((5, 2**32 - 1, 2**32 - 1), "it is cut short"),
        ((1, 2, 2), "more values"),
    ],
)
def test_idx_sizes_that_lie_take_no_memory(tmp_path: Path, sizes: tuple[int, ...], reason: str) -> None:
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in sizes)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(5 * 28 * 28))
    with pytest.raises(DataError, match=reason):
        datasets.load(DataConfig(source="idx", path=str(tmp_path)), cache_dir=tmp_path)
