"""What `data.path` names of shards."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.data.sources.exclusion import matcher
from pcl_ray.data.sources.shard_parts import source_of
from pcl_ray.data.sources.shards import Shard, expand_braces, find_shards, split_parts
from pcl_ray.errors import DataError
from pcl_ray.support.storage import Storage

TAR = (".tar", ".tar.gz")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def shard_names(path: str | Path, *exclude: str) -> list[str]:
    return [shard.name for shard in find_shards(str(path), TAR, exclude)]


def test_a_folder_means_all_shards_below(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", "b.tar", "a.TAR", "x/c.tar.gz", "x/note.txt", ".hidden/h.tar", ".h.tar")
    assert shard_names(root) == ["a.TAR", "b.tar", "x/c.tar.gz"]
    assert shard_names(f"{root}/") == shard_names(f"file://{root}") == shard_names(root)
    assert shard_names(root / "b.tar") == ["b.tar"]
    assert shard_names(root / "x/note.txt") == ["note.txt"]  # whoever names a file means it


def test_patterns_and_ranges(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"s-{number:03}.tar" for number in range(12)), "t.tar", "s-1.txt", "x/u.tar")
    assert shard_names(f"{root}/s-*.tar") == [f"s-{number:03}.tar" for number in range(12)]
    assert shard_names(f"{root}/s-{{003..001}}.tar") == ["s-003.tar", "s-002.tar", "s-001.tar"]
    assert shard_names(f"{root}/{{t,x/u}}.tar") == ["t.tar", "x/u.tar"]
    assert shard_names(f"{root}/s-00[01].*") == ["s-000.tar", "s-001.tar"]
    assert shard_names(f"{root}/**/u.tar") == ["u.tar"]
    assert shard_names(f"{root}/s-{{000..002}}.tar", "*-001.tar") == ["s-000.tar", "s-002.tar"]


def test_a_name_with_braces_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a{1..2}.tar", "b*.tar", "c{x}.tar")
    for name in ("a{1..2}.tar", "b*.tar", "c{x}.tar"):
        assert shard_names(tmp_path / name) == [name]


def test_lists_of_shards(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.tar", "d/b-0.tar", "d/b-1.tar", "e/c.tar")
    (tmp_path / "d/list.txt").write_text(
        f"# mine\nb-{{0..1}}.tar\n\n../e/c.tar\n{tmp_path}/d/a.tar\nb-0.tar\n"
    )
    assert shard_names(f"@{tmp_path}/d/list.txt") == ["d/b-0.tar", "d/b-1.tar", "e/c.tar", "d/a.tar"]
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    for path, problem in (
        (f"@{tmp_path}/empty.txt", "has no line"),
        (f"@{tmp_path}/gone.txt", "cannot be read: No such file"),
        (f"@{tmp_path}", "cannot be read: Is a directory"),
    ):
        with pytest.raises(DataError, match=problem):
            find_shards(path, TAR)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("gone", "no such file or folder, and no pattern that matches any"),
        ("x-*.tar", "no such file or folder, and no pattern"),
        ("s-{0..4}.tar", r"3 of 5 shards are not there, e\.g\. .*s-2\.tar, .*s-3\.tar, .*s-4\.tar"),
        ("empty", r"names no shard \(\.tar \.tar\.gz\)"),
        ("s-{0..99999999}.tar", "stands for more than 1,000,000 names"),
        ("{0..2000}{0..2000}", "stands for more than 1,000,000 names"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, path: str, problem: str) -> None:
    touch(tmp_path, "s-0.tar", "s-1.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=problem) as error:
        find_shards(str(tmp_path / path), TAR)
    assert "\n" not in str(error.value)


def test_an_exclusion_of_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.exclude leaves none of the 1 shards"):
        shard_names(touch(tmp_path, "a.tar"), "*")


@given(
    st.lists(st.lists(st.sampled_from(["a", "7", "", "x/y"]), min_size=2, max_size=3), min_size=1, max_size=3)
)
def test_braces_are_the_product_of_their_options(groups: list[list[str]]) -> None:
    pattern = "s-" + "-".join("{" + ",".join(group) + "}" for group in groups) + ".tar"
    expected = ["s-" + "-".join(choice) + ".tar" for choice in itertools.product(*groups)]
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("pattern", ["a-{000..012}.tar", "{a,b}-{1..3}.tar", "x{08..11}y", "{b,c,}", "plain"])
def test_braces_stand_for_what_webdataset_takes_them_for(pattern: str) -> None:
    from braceexpand import braceexpand

    assert expand_braces(pattern) == list(braceexpand(pattern))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 5))
def test_ranges_keep_their_zeros(first: int, last: int, width: int) -> None:
    numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    padded = str(first).zfill(width)
    zeros = width if padded.startswith("0") and len(padded) > 1 else 0
    assert expand_braces(f"{{{padded}..{last}}}") == [str(number).zfill(zeros) for number in numbers]


def named(*names: str) -> list[Shard]:
    return [Shard(name, 1, 1, path=f"/{name}") for name in names]


@pytest.mark.parametrize(
    ("train", "holdout", "others"),
    [
        (
            "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            "",
        ),
        ("train/a.tar train/b.tar", "val/a.tar", ""),
        ("imagenet-train-000.tar", "imagenet-validation-000.tar", "imagenet-test-000.tar"),
        ("training/x.tar", "holdout/x.tar", "y.tar unlabeled/x.tar"),
        ("Train.parquet", "VAL.parquet", ""),
        ("train/test-0.tar", "valid/train-0.tar", ""),  # the folder counts
    ],
)
def test_parts_are_known_by_their_names(train: str, holdout: str, others: str) -> None:
    parts = split_parts(named(*others.split(), *train.split(), *holdout.split()))
    assert [[shard.name for shard in part] for part in parts] == [
        train.split(),
        holdout.split(),
        others.split(),
    ]


@pytest.mark.parametrize(
    "names", ["a.tar b.tar", "train-0.tar train-1.tar", "test-0.tar a.tar", "trainer.tar val.tar"]
)
def test_without_both_parts_all_are_for_training(names: str) -> None:
    parts = split_parts(named(*names.split()))
    assert [[shard.name for shard in part] for part in parts] == [names.split(), [], []]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.gif", "a.gif x/b.gif x/y/c.gif", "a.gif.png gif"),
        ("thumbs", "thumbs/a.png x/thumbs/y/a.png thumbs", "thumbs.png mythumbs/a.png"),
        ("thumbs/", "thumbs/a.png x/thumbs/b.png", "thumbs2/a.png"),
        ("cats/2019", "cats/2019/a.png", "x/cats/2019/a.png cats/20190/a.png"),
        ("cats/*.png", "cats/a.png", "cats/x/a.png cats/a.jpg"),
        ("cats/**/a?.png", "cats/a1.png cats/x/y/a2.png", "cats/a.png dogs/a1.png"),
        ("img[0-3]*", "img1.png x/img30.png", "img4.png"),
        ("img[!0-3].png", "imgx.png", "img2.png"),
        ("a(b)+.png", "a(b)+.png", "abb.png"),
        ("[x", "[x/a.png", "x"),
    ],
)
def test_patterns_leave_out_what_they_do_in_a_gitignore(pattern: str, yes: str, no: str) -> None:
    excluded = matcher((pattern, "never"))
    assert [name for name in yes.split() if not excluded(name)] == []
    assert [name for name in no.split() if excluded(name)] == []


# --- object storage


@pytest.fixture
def objects(bucket: str) -> Storage:
    storage = Storage(bucket)
    for name in ("train/s-000.tar", "train/s-001.tar", "train/s-002.tar", "val/s-000.tar", "val/note.txt"):
        storage.write(name, name.encode())
    return storage


def address(bucket: str, rest: str) -> str:
    folder, _, options = bucket.partition("?")
    return f"{folder}/{rest}?{options}"


def test_shards_in_object_storage(bucket: str, objects: Storage, tmp_path: Path) -> None:
    everything = ["train/s-000.tar", "train/s-001.tar", "train/s-002.tar", "val/s-000.tar"]
    assert shard_names(bucket) == everything
    assert shard_names(address(bucket, "train/s-{000..001}.tar")) == ["s-000.tar", "s-001.tar"]
    assert shard_names(address(bucket, "*/s-000.*")) == ["train/s-000.tar", "val/s-000.tar"]
    assert shard_names(address(bucket, "val/")) == ["s-000.tar"]
    [one] = find_shards(address(bucket, "val/s-000.tar"), TAR)
    assert (one.name, one.size) == ("s-000.tar", 13)
    assert one.storage().read(one.key) == b"val/s-000.tar"
    version = one.current()
    assert version is not None
    assert version.size == 13
    assert str(one) == address(bucket, "val/s-000.tar")
    lines = [address(bucket, "val/s-000.tar"), address(bucket, "train/s-002.tar")]
    (tmp_path / "list").write_text("\n".join(lines))
    assert shard_names(f"@{tmp_path}/list") == ["val/s-000.tar", "train/s-002.tar"]
    objects.write("list.txt", b"train/s-001.tar\nval/s-000.tar\n")
    assert shard_names("@" + address(bucket, "list.txt")) == ["train/s-001.tar", "val/s-000.tar"]


def test_objects_that_are_not_there(bucket: str, objects: Storage) -> None:
    for rest, problem in (
        ("train/s-{000..004}.tar", r"2 of 5 shards are not there, e\.g\. s-003\.tar, s-004\.tar"),
        ("nothing/", "names no shard"),
        ("train/x-*.tar", "no pattern that matches any"),
    ):
        with pytest.raises(DataError, match=problem):
            find_shards(address(bucket, rest), TAR)
    with pytest.raises(DataError, match="ftp:// is not known here"):
        find_shards("ftp://host/a.tar", TAR)
    with pytest.raises(DataError, match="holds credentials") as error:
        find_shards("s3://me:hidden@bucket/a.tar", TAR)
    assert "hidden" not in str(error.value)


def test_a_source_is_known_by_its_files(tmp_path: Path) -> None:
    assert source_of("s3://bucket/a.parquet?region=x") == "parquet"
    assert source_of("x/{000..127}.tar") == source_of("@x/y.TAR.GZ") == "webdataset"
    assert source_of(str(tmp_path)) is None
    assert source_of(str(touch(tmp_path / "p", "data/train-0.parquet", "README.md"))) == "parquet"
    assert source_of(str(touch(tmp_path / "w", "a.tar", "classnames.txt"))) == "webdataset"
    assert source_of(str(touch(tmp_path / "f", "a.tar", "x/b.png"))) is None
    assert source_of(str(touch(tmp_path / "m", "a.tar", "b.parquet"))) is None
