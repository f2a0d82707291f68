"""Labels of a folder from a CSV file, lists of files, and patterns of files that are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import NO_LABEL, Images
from pcl_ray.errors import DataError
from pcl_ray.support.paths import home


def tree(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value, 10, 20)).save(path)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tree(tmp_path / "data", "a.png", "b.png", "x/c.png", "x/d.jpg")


def load(root: Path | None, **knobs: object) -> DataSplits:
    path = None if root is None else str(root)
    config = DataConfig(source="folder", path=path, **{"holdout": 0, "check_images": False, **knobs})
    announced = datasets.sizes(config)
    splits = datasets.load(config, cache_dir=home() / "checked_images")
    assert announced == (len(splits.train), splits.num_holdout)
    return splits


def classes(images: Images) -> list[str | None]:
    assert images.labels is not None
    return [None if label == NO_LABEL else images.class_names[label] for label in images.labels]


def labelled(folder: Path, text: str, **knobs: object) -> DataSplits:
    table = folder.parent / "labels.csv"
    table.write_text(text, encoding="utf-8")
    return load(folder, labels=str(table), **knobs)


@pytest.mark.parametrize(
    "text",
    [
        "a.png,cat\nb.png,dog\nx/c.png,cat\nx/d.jpg,eel\n",
        "path,label\na.png,cat\nb.png,dog\nx/c.png,cat\nx/d.jpg,eel\n",
        "\ufeffFile;Class\r\na.png;cat\r\nb.png;dog\r\nx/c.png;cat\r\nx/d.jpg;eel\r\n",
        "id\tlabel\nx/d\teel\na\tcat\n\nb\tdog\nx/c\tcat\n",  # no suffixes, in another order
        "width,category,file_name\n3,cat,a.png\n3,dog,./b.png\n3,cat,x\\c.png\n3,eel,data/../x/d.jpg\n",
        '"a.png","cat"\nb.png, dog \ndata/x/c.png,cat\n{root}/x/d.jpg,eel\n',  # beside the table
        "image,what\na.png,cat\nb.png,dog\nx/c.png,cat\nx/d.jpg,eel\n",
    ],
)
def test_a_table_gives_labels(folder: Path, text: str) -> None:
    splits = labelled(folder, text.replace("{root}", str(folder)))
    assert classes(splits.train) == ["cat", "dog", "cat", "eel"]
    assert splits.train.class_names == ("cat", "dog", "eel")
    assert splits.train.label_sets is None
    assert splits.notes == ()


def test_numbers_are_in_their_order(folder: Path) -> None:
    splits = labelled(folder, "a.png,10\nb.png,9\nx/c.png,100\nx/d.jpg,9\n")
    assert splits.train.class_names == ("9", "10", "100")
    assert splits.train.labels.tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "text",
    [
        "a.png,dog;cat\nb.png,cat\nx/c.png,\nx/d.jpg, eel ; cat ;eel\n",
        "a.png,dog\na.png,cat\nb.png,cat\nx/c.png,\nx/d.jpg,eel\nx/d.jpg,cat\na.png,dog\n",
    ],
)
def test_several_labels_are_kept_and_the_first_is_the_class(folder: Path, text: str) -> None:
    splits = labelled(folder, text)
    assert classes(splits.train) == ["dog", "cat", None, "eel"]
    sets = splits.train.label_sets
    assert sets is not None
    names = [[splits.train.class_names[label] for label in sets.of(i)] for i in range(4)]
    assert names == [["dog", "cat"], ["cat"], [], ["eel", "cat"]]
    assert splits.notes == ("data.labels: 1 image has no label, e.g. x/c.png",)


def test_a_table_replaces_class_folders_and_holds_for_both_parts(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "train/p/1.png", "train/q/2.png", "val/p/1.png", "val/p/3.png")
    splits = labelled(root, "train/p/1.png,cat\ntrain/q/2.png,dog\nval/p/1.png,dog\nval/p/3.png,ox\n")
    assert classes(splits.train) == ["cat", "dog"]
    assert splits.holdout is not None
    assert classes(splits.holdout) == ["dog", None]  # no training image is an ox
    assert splits.holdout.class_names == ("cat", "dog")


def test_rows_without_an_image(folder: Path) -> None:
    text = "a.png,cat\nb.png,dog\nc.png,cat\ne.png,dog\n"
    with pytest.raises(DataError) as error:
        labelled(folder, text)
    assert str(error.value) == (
        f"data.labels = '{folder.parent}/labels.csv': 2 of 4 rows name no image, e.g. c.png, e.png; an image"
        " is e.g. a.png. data.on_bad_image=skip goes on without them"
    )
    splits = labelled(folder, text, on_bad_image="skip")
    assert classes(splits.train) == ["cat", "dog", None, None]
    assert splits.notes == (
        "data.labels: 2 rows name no image, e.g. c.png, e.png",
        "data.labels: 2 images have no label, e.g. x/c.png, x/d.jpg",
    )
    with pytest.raises(DataError, match="2 of 2 rows name no image"):
        labelled(folder, "q.png,cat\nr.png,dog\n", on_bad_image="skip")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no row"),
        ("a.png,cat,3\nb.png,dog,4\n", "has 3 columns, and a first row that names none of them"),
        (
            "path,width,height\na.png,3,4\n",
            "has the columns path, width, height, of which none is called label",
        ),
        ("a.png,\nb.png,\n", "has no label for any of the 4 training images"),
    ],
)
def test_a_table_that_cannot_be_one_is_one_sentence(folder: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        labelled(folder, text)
    assert "\n" not in str(error.value)


def test_files_that_are_no_table(folder: Path) -> None:
    for name, content, problem in (
        ("gone", None, "does not exist"),
        ("b", b"\xff\xfe\x00", "no text in UTF-8"),
    ):
        path = folder.parent / name
        if content is not None:
            path.write_bytes(content)
        for knob in ("labels", "list"):
            with pytest.raises(DataError, match=rf"data\.{knob} = .*{problem}"):
                load(folder, **{knob: str(path)})
            with pytest.raises(DataError, match=rf"data\.{knob} = .* is a folder"):
                load(folder, **{knob: str(folder)})


def test_two_images_that_differ_in_their_suffix_need_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a.png", "a.jpg", "b.png")
    with pytest.raises(DataError, match="1 of 2 rows name no image, e.g. a;"):
        labelled(root, "a,cat\nb,dog\n")
    assert classes(labelled(root, "a.jpg,cat\nb,dog\n").train) == ["cat", None, "dog"]


def test_one_class_is_a_class(folder: Path) -> None:
    splits = labelled(folder, "a.png,cat\nb.png,cat\nx/c.png,cat\nx/d.jpg,cat\n")
    assert (splits.train.labels.tolist(), splits.train.class_names) == ([0] * 4, ("cat",))


# --- lists


def listed(folder: Path, text: str, **knobs: object) -> DataSplits:
    path = folder.parent / "list.txt"
    path.write_text(text, encoding="utf-8")
    return load(folder, list=str(path), **knobs)


def names(splits: DataSplits) -> list[str]:
    return [file.decode() for file in splits.train.files]  # type: ignore[union-attr]


def test_a_list_says_which_files_and_in_what_order(folder: Path) -> None:
    splits = listed(folder, f"# some of them\nx/d.jpg\n\na.png\n{folder}/b.png\ndata/x/c.png\na.png\n")
    assert names(splits) == ["x/d.jpg", "a.png", "b.png", "x/c.png"]
    assert [splits.train.read(i)[0, 0, 0] for i in range(1, 4)] == [0, 1, 2]
    assert splits.train.labels is None
    assert splits.notes == ("data.list: 1 line name an image again",)


@pytest.mark.parametrize("mark", ["\t", ",", ", "])
def test_a_list_may_have_labels(folder: Path, mark: str) -> None:
    splits = listed(folder, f"b.png{mark}dog\na.png{mark}cat;dog\nx/c.png\n")
    assert names(splits) == ["b.png", "a.png", "x/c.png"]
    assert classes(splits.train) == ["dog", "cat", None]
    assert splits.train.label_sets is not None
    assert splits.train.label_sets.of(1).tolist() == [0, 1]


def test_a_comma_may_be_part_of_a_name(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a,b.png", "c.png")
    splits = listed(root, "a,b.png\nc.png,cat\n")
    assert names(splits) == ["a,b.png", "c.png"]
    assert classes(splits.train) == [None, "cat"]


def test_a_list_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("data/a.png\ndata/x/c.png\n")
    splits = load(None, list=str(tmp_path / "list.txt"))
    assert names(splits) == ["data/a.png", "data/x/c.png"]
    assert [splits.train.read(i)[0, 0, 0] for i in range(2)] == [0, 2]
    (folder / "list.txt").write_text("../data/a.png\n../other/b.png\n")
    tree(tmp_path / "other", "b.png")
    splits = load(None, list=str(folder / "list.txt"))
    assert names(splits) == ["a.png", f"{tmp_path}/other/b.png"]
    assert splits.train.read(1).shape == (4, 4, 3)


def test_class_folders_count_in_lists_too(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "cat/1.png", "dog/2.png", "dog/3.png")
    assert classes(listed(root, "dog/3.png\ncat/1.png\n").train) == ["dog", "cat"]
    table = tmp_path / "labels.csv"
    table.write_text("cat/1.png,x\ndog/3.png,y\ndog/2.png,z\n")  # of an image that is not in the list, too
    assert classes(listed(root, "dog/3.png\ncat/1.png\n", labels=str(table)).train) == ["y", "x"]


def test_files_of_a_list_that_are_not_there(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        listed(folder, "a.png\nq.png\nr.png\n")
    assert str(error.value) == (
        f"data.list = '{folder.parent}/list.txt': 2 of 3 files are not there, e.g. q.png, r.png (looked for"
        f" below {folder})"
    )
    splits = listed(folder, "a.png\nq.png\nr.png\nb.png\n", on_bad_image="skip", check_images=True, holdout=0)
    assert names(splits) == ["a.png", "b.png"]
    assert len(splits.bad) == 2
    with pytest.raises(DataError, match="has addresses"):
        listed(folder, "s3://bucket/a.png\n")
    with pytest.raises(DataError, match="has no line"):
        listed(folder, "\n# nothing\n")


# --- exclusions


def test_excluded_files_are_not_there(folder: Path) -> None:
    assert names(load(folder, exclude=("x",))) == ["a.png", "b.png"]
    assert names(load(folder, exclude=("*.jpg", "a*"))) == ["b.png", "x/c.png"]
    assert names(listed(folder, "x/c.png\nb.png\na.png\n", exclude=("x/*",))) == ["b.png", "a.png"]
    with pytest.raises(DataError, match=r"data\.exclude leaves none of the 4 images"):
        load(folder, exclude=("*.png", "*.jpg"))
    with pytest.raises(DataError, match=r"data\.exclude leaves none of the 1 images of"):
        listed(folder, "a.png\n", exclude=("*",))
    assert classes(labelled(folder, "a.png,cat\nb.png,dog\nx/c.png,ox\n", exclude=("x",)).train) == [
        "cat",
        "dog",
    ]


def test_patterns_hold_from_the_root_of_both_parts(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "train/a/1.png", "train/b/2.png", "val/a/1.png", "val/b/2.png")
    splits = load(root, exclude=("val/a", "train/b/*"))
    assert splits.holdout is not None
    assert names(splits) == ["a/1.png"]
    assert [file.decode() for file in splits.holdout.files] == ["b/2.png"]  # type: ignore[union-attr]
