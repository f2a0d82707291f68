"""Tar shards: which member is the image, which its label, what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_files import CLASSES, class_of, encoded, samples, write_tar

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import NO_LABEL
from pcl_ray.errors import DataError


def load(path: Path | str, **knobs: object) -> DataSplits:
    config = DataConfig(source="webdataset", path=str(path), **{"holdout": 0, **knobs})
    announced = datasets.sizes(config)
    splits = datasets.load(config, cache_dir=Path(str(path).partition("{")[0]).parent / "checked")
    assert announced == (len(splits.train), splits.num_holdout)
    return splits


def classes(splits: DataSplits) -> list[str | None]:
    images = splits.train
    assert images.labels is not None
    return [None if label == NO_LABEL else images.class_names[label] for label in images.labels]


def members(splits: DataSplits) -> list[str]:
    return [splits.train.name(i).rpartition(".tar")[2] for i in range(len(splits.train))]


def test_samples_in_the_order_of_the_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", samples([5, 3]), ["z", "y/x"])
    write_tar(tmp_path / "a.tar", samples([8]))
    splits = load(tmp_path)
    assert [splits.train.name(i) for i in range(3)] == [
        f"{tmp_path}/a.tar/0000.png",
        f"{tmp_path}/b.tar/z.png",
        f"{tmp_path}/b.tar/y/x.png",
    ]
    assert [splits.train.read(i)[0, 0, 0] for i in range(3)] == [8, 5, 3]
    assert classes(splits) == [CLASSES[class_of(number)] for number in (8, 5, 3)]


@pytest.mark.parametrize(
    ("label", "knob", "expected"),
    [
        ({"cls": b"3\n"}, None, "3"),
        ({"cls": b"dog"}, None, "dog"),
        ({"cls": b"-1"}, None, None),
        ({"cls": b""}, None, None),
        ({"cls": b"007"}, None, "007"),
        ({"json": b'{"label": "eel", "other": 1}'}, None, "eel"),
        ({"json": b'{"label": 4.0}'}, None, "4"),
        ({"json": b'{"label": NaN}'}, None, None),
        ({"json": b'{"label": true}'}, None, "1"),
        ({"json": b'{"label": null}'}, None, None),
        ({"json": b'{"label": {"id": 3}}'}, None, None),
        ({"json": b"[1, 2]"}, None, None),
        ({"json": b"not json"}, None, None),
        ({"json": b'{"meta": {"kind": "ant"}}'}, "meta.kind", "ant"),
        ({"json": b'{"a.b": "ant"}'}, "a.b", "ant"),
        ({"cls": b"3", "json": b'{"kind": "ant"}'}, "kind", "ant"),
        ({"cls": b"3", "txt": b"a bee\n"}, "txt", "a bee"),
        ({"cls": b"3", "TXT": b"a bee\n"}, ".txt", "a bee"),
        ({"cls": b"3"}, "none", None),
        ({}, None, None),
    ],
)
def test_a_label_is_where_the_knob_says(
    tmp_path: Path, label: dict[str, bytes], knob: str | None, expected: str | None
) -> None:
    other = {"cls": b"ox", "json": b'{"meta": {"kind": "ox"}, "a.b": "ox", "kind": "ox"}', "txt": b"ox"}
    write_tar(tmp_path / "a.tar", [{"jpg": encoded(0), **label}, {"jpg": encoded(1), **other}])
    splits = load(tmp_path / "a.tar", label_column=knob)
    if knob == "none":
        assert splits.train.labels is None
        assert splits.train.class_names == ()
    else:
        assert classes(splits) == [expected, "ox"]


def test_several_labels_are_kept_and_the_first_is_the_class(tmp_path: Path) -> None:
    labels = [["dog", "cat"], [], ["cat"], ["eel", "dog", "eel"]]
    write_tar(
        tmp_path / "a.tar",
        [{"png": encoded(i), "json": json.dumps({"labels": own}).encode()} for i, own in enumerate(labels)],
    )
    splits = load(tmp_path)
    assert classes(splits) == ["dog", None, "cat", "eel"]
    assert splits.train.label_sets is not None
    assert splits.train.label_sets.matrix(3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, False, False],
        [False, True, True],
    ]


def test_numbers_are_in_their_order_and_may_have_names(tmp_path: Path) -> None:
    content = [{"png": encoded(i), "cls": str(label).encode()} for i, label in enumerate([10, 2, 0])]
    write_tar(tmp_path / "x/train/0.tar", content)
    write_tar(tmp_path / "x/test/0.tar", [*content, {"png": encoded(9), "cls": b"5"}])
    splits = load(tmp_path / "x")
    assert splits.train.class_names == ("0", "2", "10")
    assert splits.holdout is not None
    assert splits.holdout.labels.tolist() == [2, 1, 0, NO_LABEL]  # 5 is not among the training part's
    (tmp_path / "x/classnames.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    assert load(tmp_path / "x").train.class_names == ("class 0", "class 2", "class 10")
    (tmp_path / "x/classnames.txt").write_text("too\nfew\n")
    assert load(tmp_path / "x").train.class_names == ("0", "2", "10")


def test_which_member_is_the_image(tmp_path: Path) -> None:
    two = {"jpg": encoded(1), "seg.png": encoded(2), "cls": b"1"}
    write_tar(tmp_path / "a.tar", [two])
    assert members(load(tmp_path)) == ["/0000.jpg"]
    assert members(load(tmp_path, image_column="seg.png")) == ["/0000.seg.png"]
    write_tar(tmp_path / "a.tar", [{"seg.png": encoded(2), "cls": b"1"}])
    assert members(load(tmp_path)) == ["/0000.seg.png"]
    write_tar(tmp_path / "a.tar", [{"jpg": encoded(1), "png": encoded(2)}])
    with pytest.raises(
        DataError, match=r"sample '0000' of .*a\.tar has the images jpg and png; data\.image_col"
    ):
        load(tmp_path)
    assert members(load(tmp_path, image_column="png")) == ["/0000.png"]
    with pytest.raises(DataError, match=r"no images in the shards .* with data\.image_column = gif"):
        load(tmp_path, image_column="gif")


def test_what_is_no_image_is_no_sample(tmp_path: Path) -> None:
    keys = ["a", "b", ".c", "__MACOSX/d", "e"]
    write_tar(tmp_path / "a.tar", [{"png": encoded(0)}, {"txt": b"x"}, *[{"png": encoded(1)}] * 3], keys)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (("f.png", tarfile.SYMTYPE), ("g.png", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            tar.addfile(member)
    assert members(load(tmp_path)) == ["/a.png", "/e.png"]
    assert members(load(tmp_path, exclude=["e.*"])) == ["/a.png"]


def test_long_names_and_all_formats_of_tar(tmp_path: Path) -> None:
    for name, kind in (("u", tarfile.USTAR_FORMAT), ("g", tarfile.GNU_FORMAT), ("p", tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=kind) as tar:
            for key in ("a", "b" * 90, *(("ü" * 60 + "/" + "d" * 90,) if name != "u" else ())):
                member = tarfile.TarInfo(f"./{key}.png")
                content = encoded(len(key))
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    splits = load(tmp_path)
    assert len(splits.train) == 8
    assert [splits.train.read(i)[0, 0, 0] for i in range(8)] == [1, 90, 151, 1, 90, 151, 1, 90]


def test_what_the_library_writes(tmp_path: Path) -> None:
    from webdataset import ShardWriter, WebDataset

    with ShardWriter(str(tmp_path / "s-%05d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            content = {"png": encoded(i), "cls": class_of(i), "json": {"label": 7}}
            writer.write({"__key__": f"{9 - i:03}", **content})
    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    theirs = list(WebDataset(paths, shardshuffle=False, empty_check=False))
    splits = load(tmp_path / "s-{00000..00002}.tar")
    assert members(splits) == [f"/{sample['__key__']}.png" for sample in theirs]
    assert classes(splits) == [sample["cls"].decode() for sample in theirs]
    for i, sample in enumerate(theirs):
        assert splits.train.encoded(i).read() == sample["png"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.bz2"])
def test_compressed_shards_are_unpacked_into_the_cache(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d/a{suffix}"
    path.parent.mkdir()
    write_tar(tmp_path / "plain.tar", samples(range(5)))
    mode = "w:bz2" if "bz2" in suffix else "w:gz"
    with tarfile.open(path, mode) as tar, tarfile.open(tmp_path / "plain.tar") as plain:
        for member in plain:
            tar.addfile(member, plain.extractfile(member))
    splits = load(path)
    straight = load(tmp_path / "plain.tar")
    for i in range(5):
        assert np.array_equal(splits.train.read(i), straight.train.read(i))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"1 shard of 1 cannot be read[^\n]*\n  .*cannot be unpacked"):
        load(path)


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda content: content[:4844], 4),  # within a member
        (lambda content: content[:3100], 3),  # within a header
        (lambda content: content[:512] + b"x" * 512 + content[1024:], 6),  # the picture, not the tar
        (lambda content: content[:2048] + b"x" * 512 + content[2560:], 2),
        (lambda content: b"", 0),
        (lambda content: b"no tar at all " * 100, 0),
        (lambda content: content[:300], 0),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: object, left: int) -> None:
    write_tar(tmp_path / "d/good.tar", samples(range(4)))
    # each member takes two blocks of 512 bytes
    path = write_tar(tmp_path / "d/bad.tar", [{"png": encoded(i, 4)} for i in range(6)])
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    kind = r"1 of 10 images cannot be read" if left == 6 else r"1 shard of 2 cannot be read"
    with pytest.raises(DataError, match=rf"{kind}.*\n  .*bad\.tar") as error:
        load(tmp_path / "d")
    assert str(error.value).count("\n") == 1
    splits = load_loosely(tmp_path / "d")
    assert len(splits.train) == 4 + min(left, 5)
    [bad] = splits.bad
    assert bad.file.startswith(str(path))
    assert bad.reason


def test_headers_that_python_does_not_expect_are_damage_too(tmp_path: Path) -> None:
    """A character set, in one of pax's headers, that is no text."""
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        content = encoded(0, 4)
        for number in range(2):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            member.pax_headers = {"hdrcharset": "BINARY"} if number else {}
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes().replace(b"hdrcharset=BINARY", b"hdrcharset=\xd1INARY"))
    with pytest.raises(
        DataError, match=r"bad\.tar.*damaged after 0 images \(a header cannot be read: .*utf-8"
    ):
        load(path)


def load_loosely(path: Path) -> DataSplits:
    config = DataConfig(source="webdataset", path=str(path), holdout=0, on_bad_image="skip")
    return datasets.load(config, cache_dir=path.parent / "checked")


def test_a_shard_that_changes_while_a_run_trains_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(range(3)))
    splits = load(path)
    write_tar(path, samples(range(1, 5)))
    with pytest.raises(
        DataError, match=r"a\.tar/0000\.png cannot be read: the shard has changed since the run"
    ):
        splits.train.read(0)
    assert len(load(path).train) == 4  # another version has another index
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar/0001\.png cannot be read: .*No such file"):
        splits.train.read(1)


def test_bad_images_are_named_by_shard_and_member(tmp_path: Path) -> None:
    content = [*samples(range(3)), {"png": b"no picture", "cls": b"cat"}, {"png": b"", "cls": b"cat"}]
    path = write_tar(tmp_path / "a.tar", content)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value).splitlines()[1:] == [
        f"  {path}/0003.png: cannot identify image file",
        f"  {path}/0004.png: empty file",
    ]
    splits = load_loosely(path)
    assert len(splits.train) == 3
    assert [entry.reason for entry in splits.bad] == ["cannot identify image file", "empty file"]
