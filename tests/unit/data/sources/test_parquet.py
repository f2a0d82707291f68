"""Parquet shards: which columns, what is packed, what is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from shard_files import CLASSES, class_of, encoded, hugging_face_schema, write_folder, write_parquet

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import NO_LABEL, FileImages
from pcl_ray.errors import DataError


def load(path: Path | str, **knobs: object) -> DataSplits:
    config = DataConfig(source="parquet", path=str(path), **{"holdout": 0, **knobs})
    announced = datasets.sizes(config)
    splits = datasets.load(config, cache_dir=Path(path).parent / "checked")
    assert announced == (len(splits.train), splits.num_holdout)
    return splits


def classes(splits: DataSplits) -> list[str | None]:
    images = splits.train
    assert images.labels is not None
    return [None if label == NO_LABEL else images.class_names[label] for label in images.labels]


def test_hugging_face_s_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d/data/train-00000-of-00002.parquet", [4, 0])
    write_parquet(tmp_path / "d/data/train-00001-of-00002.parquet", [2, 1])
    write_parquet(tmp_path / "d/data/test-00000-of-00001.parquet", [7])
    splits = load(tmp_path / "d")
    assert [splits.train.read(i)[0, 0, 0] for i in range(4)] == [4, 0, 2, 1]
    assert splits.train.class_names == CLASSES
    assert classes(splits) == [CLASSES[class_of(number)] for number in (4, 0, 2, 1)]
    assert splits.holdout is not None
    assert splits.holdout.labels.tolist() == [class_of(7)]
    assert splits.train.name(2) == f"{tmp_path}/d/data/train-00001-of-00002.parquet/row 0, 0002.png"


def test_classes_have_their_names_even_without_images(tmp_path: Path) -> None:
    images = [{"bytes": encoded(i), "path": None} for i in range(3)]
    table = pyarrow.table({"image": images, "label": [2, -1, None]}, hugging_face_schema("abcd"))
    parquet.write_table(table, tmp_path / "a.parquet")
    splits = load(tmp_path)
    assert splits.train.class_names == ("a", "b", "c", "d")
    assert splits.train.labels.tolist() == [2, NO_LABEL, NO_LABEL]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["eel", "cat", None, ""], ["eel", "cat", None, None]),
        ([10, 9, 2, -1], ["10", "9", "2", None]),
        ([1.0, 2.0, float("nan"), None], ["1", "2", None, None]),
        ([True, False, True, None], ["1", "0", "1", None]),
        ([["b", "a"], [], ["a"], None], ["b", None, "a", None]),
        (pyarrow.array(["x", "y", "x", None]).dictionary_encode(), ["x", "y", "x", None]),
    ],
)
def test_labels_of_many_kinds(tmp_path: Path, labels: list[object], expected: list[str | None]) -> None:
    path = write_parquet(tmp_path / "a.parquet", (), jpg=[encoded(i) for i in range(4)], label=labels)
    splits = load(path)
    assert classes(splits) == expected
    several = isinstance(labels, list) and isinstance(labels[0], list)
    assert (splits.train.label_sets is not None) == several


def test_columns_by_name(tmp_path: Path) -> None:
    first, second = [encoded(i) for i in range(3)], [encoded(i + 100) for i in range(3)]
    path = write_parquet(
        tmp_path / "a.parquet", (), left=first, right=second, fine=["x", "y", "z"], coarse=["a", "a", "b"]
    )
    with pytest.raises(
        DataError, match=r"columns left, right, which may all be images; data\.image_column says"
    ):
        load(path)
    splits = load(path, image_column="right", label_column="coarse")
    assert splits.train.read(0)[0, 0, 0] == 100
    assert classes(splits) == ["a", "a", "b"]
    # other labels of the same images: the pack stays, the index is another one
    assert classes(load(path, image_column="right", label_column="fine")) == ["x", "y", "z"]
    assert load(path, image_column="left").train.labels is None
    with pytest.raises(
        DataError, match=r"data\.image_column = 'top': .* has no column of bytes.*left \(binary\)"
    ):
        load(path, image_column="top")
    with pytest.raises(
        DataError, match=r"data\.label_column = 'kind': .*no such column; it has left, right, fine"
    ):
        load(path, image_column="left", label_column="kind")
    labelled = write_parquet(tmp_path / "b.parquet", [1, 2])
    assert load(labelled, label_column="none").train.labels is None


def test_a_file_without_images_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", (), number=[1, 2], words=[["a"], ["b"]])
    with pytest.raises(
        DataError, match=r"no column of images or of their paths, but number \(int64\), words"
    ):
        load(path)
    empty = write_parquet(tmp_path / "b.parquet", ())
    parquet.write_table(parquet.read_table(write_parquet(empty, [1])).slice(0, 0), empty)
    with pytest.raises(DataError, match="no images in the shards"):
        load(empty)


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"compression": "none", "use_dictionary": False}]
)
@pytest.mark.parametrize("kind", [pyarrow.large_binary(), pyarrow.binary()])
def test_however_it_is_written(tmp_path: Path, options: dict[str, object], kind: pyarrow.DataType) -> None:
    images = pyarrow.array([encoded(i) for i in range(20)], kind)
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet", row_group_size=3, **options)
    splits = load(tmp_path / "a.parquet")
    assert [splits.train.read(i)[0, 0, 0] for i in range(20)] == list(range(20))


def test_paths_in_a_column_are_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d/pictures", range(6))
    files = sorted(str(path.relative_to(tmp_path / "d")) for path in root.rglob("*.png"))
    write_parquet(tmp_path / "d/a.parquet", (), file_name=files, label=[0, 1, 0, 1, 0, 1])
    splits = load(tmp_path / "d")
    assert isinstance(splits.train, FileImages)
    assert [splits.train.name(i) for i in range(6)] == [f"{tmp_path}/d/{file}" for file in files]
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(load(tmp_path / "d", exclude=["cat"]).train) == 4
    (tmp_path / "d" / files[3]).unlink()
    with pytest.raises(DataError, match=rf"1 of 6 images cannot be read.*\n  .*{files[3]}: .*No such file"):
        load(tmp_path / "d")


def test_a_struct_with_paths_alone_reads_the_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", range(3))
    names = [f"pictures/{CLASSES[i]}/{i:04}.png" for i in range(3)]
    images = [{"bytes": None, "path": name} for name in [*names, "gone.png"]]
    images += [{"bytes": encoded(9), "path": None}, {"bytes": None, "path": None}]
    table = pyarrow.table({"image": images, "label": [0] * 6}, hugging_face_schema())
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 of 6 images cannot be read") as error:
        load(tmp_path / "a.parquet")
    assert str(error.value).splitlines()[1:] == [
        f"  {tmp_path}/a.parquet/gone.png: its file gone.png is not there",
        f"  {tmp_path}/a.parquet/row 5: the row has no image",
    ]
    config = DataConfig(source="parquet", path=f"{tmp_path}/a.parquet", holdout=0, on_bad_image="skip")
    splits = datasets.load(config, cache_dir=tmp_path / "checked")
    assert [splits.train.read(i)[0, 0, 0] for i in range(4)] == [0, 1, 2, 9]


def damaged_page(path: Path) -> None:
    """Garbles the first page of images of the second row group."""
    metadata = parquet.ParquetFile(path).metadata
    chunk = metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d/a.parquet", range(20))
    write_parquet(tmp_path / "d/b.parquet", range(20, 24))
    damaged_page(path)
    with pytest.raises(DataError, match=r"7 of 24 images cannot be read") as error:
        load(tmp_path / "d")
    lines = str(error.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == [f"  {path}/row {row}" for row in range(7, 14)]
    assert all("its row group 1 is damaged" in line for line in lines)
    config = DataConfig(source="parquet", path=f"{tmp_path}/d", holdout=0, on_bad_image="skip")
    splits = datasets.load(config, cache_dir=tmp_path / "checked")
    numbers = [int(splits.train.read(i)[0, 0, 0]) for i in range(len(splits.train))]
    assert numbers == [*range(7), *range(14, 24)]
    assert len(splits.bad) == 7


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"x" * 900]
)
def test_a_file_without_its_footer_is_named(tmp_path: Path, damage: object) -> None:
    path = write_parquet(tmp_path / "d/a.parquet", range(5))
    write_parquet(tmp_path / "d/b.parquet", range(5, 9))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        load(tmp_path / "d")
    config = DataConfig(source="parquet", path=f"{tmp_path}/d", holdout=0, on_bad_image="skip")
    assert datasets.sizes(config) == (4, 0)
    splits = datasets.load(config, cache_dir=tmp_path / "checked")
    assert [splits.train.read(i)[0, 0, 0] for i in range(4)] == [5, 6, 7, 8]
    assert [entry.file for entry in splits.bad] == [str(path)]


def test_counts_do_not_read_images(tmp_path: Path) -> None:
    """The announced sizes come from footers: they hold although no image's page can be read."""
    path = write_parquet(tmp_path / "a.parquet", range(20))
    damaged_page(path)
    assert datasets.sizes(DataConfig(source="parquet", path=str(path), holdout=0.25)) == (15, 5)
    assert not list(Path(tmp_path / "pcl_ray_home").glob("cache/*.data"))


def test_another_version_of_a_file_is_packed_anew(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", range(5))
    assert load(path).train.read(0)[0, 0, 0] == 0
    write_parquet(path, range(5, 10))
    assert load(path).train.read(0)[0, 0, 0] == 5


def test_images_in_memory_are_the_same(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", range(9))
    splits = load(path)
    arrays = datasets.in_memory(splits, 64)
    assert arrays.train.fingerprint == splits.train.fingerprint
    assert arrays.train.class_names == CLASSES
    for i in range(9):
        assert np.array_equal(arrays.train.read(i), splits.train.read(i))
