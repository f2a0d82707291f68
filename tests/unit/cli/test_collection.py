"""`search`, `duplicates`, `outliers`, `sample` and `label` as a user types them: tables, pages, refusals."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collections_made import checkpoint, embedded, pictures
from PIL import Image

from pcl_ray import cli
from pcl_ray.embedding.collection import Collection
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.report.collection_page import PictureGroup, thumbnails_of, write


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures with a copy and a smaller one of the fourth, as a collection."""
    folder = tmp_path_factory.mktemp("made")
    files = pictures(folder / "pictures", 30)
    shutil.copy(files[3], folder / "pictures" / "copy.png")
    picture = Image.open(files[3])
    picture.resize((picture.width - 1, picture.height - 1)).save(folder / "pictures" / "smaller.png")
    embedded(folder, str(checkpoint(folder / "run")), str(folder / "pictures"))
    return folder


@pytest.fixture
def collection(made: Path, tmp_path: Path) -> Path:
    """A copy of the collection, whose images lie where they lay."""
    return Path(shutil.copytree(made / "collection", tmp_path / "collection"))


def page_of(table: Path) -> str:
    text = table.with_suffix(".html").read_text()
    assert text.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # complete in itself
    return unescape(text)


def test_search_finds_the_nearest_but_not_the_query_itself(
    made: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = made / "pictures" / "003.png"
    assert cli.main(["search", str(collection), str(query), "-k", "5"]) == 0
    assert "copy.png" in capsys.readouterr().out.splitlines()[0]
    rows = rows_of(collection / "search.csv")
    assert [row["rank"] for row in rows] == list("12345")
    assert Path(rows[0]["path"]).name == "copy.png"
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    files = Collection(collection).paths.to_pylist()
    vectors = Embedder.load(collection / "embedder").embed(files).backbone
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[files.index(str(query))]
    best = [files[i] for i in np.argsort(-cosines) if files[i] != str(query)][:5]
    assert {row["path"] for row in rows} == set(best)
    page = page_of(collection / "search.csv")
    assert page.count('class="im"') == 6
    assert "pictures/003.png" in page


def test_a_stranger_is_searched_for_too_into_parquet(collection: Path, tmp_path: Path) -> None:
    (stranger,) = pictures(tmp_path / "other", 1, seed=9)
    table = tmp_path / "near.parquet"
    words = ["search", str(collection), str(stranger), str(stranger), "-k", "99", "--out", str(table)]
    assert cli.main(words) == 0
    assert pq.read_table(table).num_rows == 2 * 32
    assert page_of(table)


def test_a_member_is_searched_for_by_its_name_and_what_is_neither_is_said(
    collection: Path, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["search", str(collection), str(made / "pictures/004.png"), "-k", "3"]) == 0
    by_file = rows_of(collection / "search.csv")
    monkeypatch.setattr("os.path.isfile", lambda path: False)  # as of rows of a table
    assert cli.main(["search", str(collection), str(made / "pictures/004.png"), "-k", "3"]) == 0
    assert rows_of(collection / "search.csv") == by_file
    assert cli.main(["search", str(collection), str(made / "pictures")]) == 2
    assert "pictures is a folder; give image files" in capsys.readouterr().err
    assert cli.main(["search", str(collection), "nowhere.png"]) == 2
    assert "nowhere.png is neither a file nor in it" in capsys.readouterr().err


def test_a_sample_in_parquet_is_labelled_in_parquet(collection: Path, tmp_path: Path) -> None:
    assert cli.main(["sample", str(collection), "--count", "6", "--out", str(tmp_path / "s.parquet")]) == 0
    table = pq.read_table(tmp_path / "s.parquet")
    labels = ["even" if number % 2 else None for number in range(6)]
    filled = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    pq.write_table(filled, tmp_path / "s.parquet")
    assert cli.main(["label", str(collection), str(tmp_path / "s.parquet")]) == 0
    given = [row for row in rows_of(collection / "labels.csv") if row["given"] == "true"]
    assert [row["label"] for row in given] == ["even"] * 3


def test_duplicates_are_groups_with_one_to_keep(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["duplicates", str(collection), "--threshold", "0.9999"]) == 0
    assert "1 are the same bytes as another" in capsys.readouterr().out
    rows = rows_of(collection / "duplicates.csv")
    first = [row for row in rows if Path(row["path"]).name in ("003.png", "copy.png")]
    assert len({row["group"] for row in first}) == 1
    assert [row["identical"] for row in first] == ["true", "true"]
    for group in {row["group"] for row in rows}:
        assert sum(row["keep"] == "true" for row in rows if row["group"] == group) == 1
    assert "same bytes" in page_of(collection / "duplicates.csv")


def test_no_duplicates_are_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures", 1)
    out = embedded(tmp_path, str(checkpoint(tmp_path / "run")), str(tmp_path / "pictures"))
    assert cli.main(["duplicates", str(out)]) == 0
    assert "0 groups of 0 images" in capsys.readouterr().out
    assert rows_of(out / "duplicates.csv") == []
    assert "Nothing was found" in page_of(out / "duplicates.csv")
    for words in (["outliers"], ["outliers", "--by", "prototypes"], ["sample", "--count", "5"]):
        assert cli.main([*words[:1], str(out), *words[1:]]) == 0
    assert len(rows_of(out / "sample.csv")) == len(rows_of(out / "outliers.csv")) == 1


@pytest.mark.parametrize("words", [[], ["--by", "prototypes"], ["--kmeans"]])
def test_outliers_come_strangest_first(words: list[str], collection: Path) -> None:
    assert cli.main(["outliers", str(collection), "--count", "7", *words]) == 0
    rows = rows_of(collection / "outliers.csv")
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 7
    assert scores == sorted(scores, reverse=True)
    if words[-1:] == ["prototypes"]:
        opened = Collection(collection)
        mean = (opened.distances(0).astype(np.float64) + opened.distances(1)) / 2
        assert rows[0]["path"] == opened.path(int(mean.argmax()))
        assert scores[0] == pytest.approx(mean.max(), abs=1e-6)
        assert "distance_of_5" in rows[0]
    if not words:
        vectors = np.concatenate([part for _, part in Collection(collection).embeddings()])
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        tenth = np.sort(np.linalg.norm(vectors[:, None] - vectors, axis=2), axis=1)[
            :, min(10, len(vectors) - 1)
        ]
        assert scores[0] == pytest.approx(tenth.max(), abs=1e-3)


def test_a_sample_is_labelled_and_its_labels_are_spread(
    made: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(collection), "--count", "8"]) == 0
    assert "pcl-ray label" in capsys.readouterr().out
    rows = rows_of(collection / "sample.csv")
    assert len(rows) == len({row["path"] for row in rows}) == 8
    for number, row in enumerate(rows):
        row["label"] = "even" if int(row["prototype"]) % 2 == 0 else "odd"
        if number == 7:
            row["label"] = ""
    with (collection / "mine.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    assert cli.main(["label", str(collection), str(collection / "mine.csv")]) == 0
    said = capsys.readouterr().out
    assert "7 labels of 2 classes" in said
    assert "come out right when each is left out" in said
    spread = {row["path"]: row for row in rows_of(collection / "labels.csv")}
    assert list(spread) == Collection(collection).paths.to_pylist()
    for row in rows[:7]:
        assert spread[row["path"]] | {"path": ""} == {
            "path": "",
            "label": row["label"],
            "confidence": "1",
            "given": "true",
        }
    others = [row for row in spread.values() if row["given"] == "false"]
    assert {row["label"] for row in others} <= {"even", "odd", ""}
    assert all(0 <= float(row["confidence"]) <= 1 for row in others)
    assert cli.main(["label", str(collection), str(collection / "mine.csv"), "--least", "1"]) == 0
    assert {row["label"] for row in rows_of(collection / "labels.csv") if row["given"] == "false"} == {""}
    assert "even" in page_of(collection / "labels.csv")


@pytest.mark.parametrize(
    "path",
    [lambda made: str(made / "pictures" / "004.png"), lambda _: "pictures/004.png", lambda _: "004.png"],
)
def test_labels_may_name_images_in_several_ways(
    path: Callable[[Path], str], made: Path, collection: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(f"Path,Label\n{path(made)},cat\nnowhere.png,dog\n")
    assert cli.main(["label", str(collection), str(tmp_path / "labels.csv")]) == 0
    given = [row for row in rows_of(collection / "labels.csv") if row["given"] == "true"]
    assert [(Path(row["path"]).name, row["label"]) for row in given] == [("004.png", "cat")]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_of_labels_may_be_set_apart_otherwise(mark: str, collection: Path, tmp_path: Path) -> None:
    lines = f"\ufeffpath{mark}label\n004.png{mark}a cat, asleep\n"
    (tmp_path / "labels.csv").write_text(lines, encoding="utf-8")
    assert cli.main(["label", str(collection), str(tmp_path / "labels.csv")]) == 0
    given = [row for row in rows_of(collection / "labels.csv") if row["given"] == "true"]
    assert [row["label"] for row in given] == ["a cat, asleep"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        ("a,b\n1,2\n", "needs the columns path and label; it has: a, b"),
        ("", "it has: none"),
        ("path,label\n004.png,\n", "no row with a path and a label"),
        ("path,label\nx.png,cat\n", "no path in"),
        ("path,label\n004.png,cat\n004.png,dog\n", "has two labels"),
    ],
)
def test_wrong_labels_are_refused(
    content: str | None, said: str, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    assert cli.main(["label", str(collection), str(tmp_path / "labels.csv")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "DIR", "nowhere.png"], "nowhere.png"),
        (["search", "DIR", "x.png", "-k", "0"], "-k 0"),
        (["duplicates", "DIR", "--threshold", "1.5"], "a cosine"),
        (["outliers", "DIR", "--count", "0"], "--count 0"),
        (["sample", "DIR", "--count", "-1"], "--count -1"),
        (["sample", "DIR", "--count", "3", "--out", "x.txt"], ".csv or .parquet"),
        (["sample", "DIR", "--count", "3", "--out", "/nowhere/x.csv"], "there is no folder"),
        (["duplicates", "/nowhere"], "pcl-ray embed"),
        (["label", "DIR", "x.csv", "--least", "7"], "--least 7"),
    ],
)
def test_bad_words_are_one_sentence(
    words: list[str], said: str, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(collection) if word == "DIR" else word for word in words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_weights_without_prototypes_have_clusters_of_their_own(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 40)
    out = embedded(tmp_path, str(checkpoint(tmp_path / "run", clusters=False)), str(tmp_path / "pictures"))
    assert Collection(out).num_clusterings == 0
    assert cli.main(["sample", str(out), "--count", "6"]) == 0
    assert len({row["prototype"] for row in rows_of(out / "sample.csv")}) > 1
    (stored,) = (out / "index").glob("clusters-*.npz")
    before = stored.stat().st_mtime_ns
    assert cli.main(["outliers", str(out)]) == 0
    assert stored.stat().st_mtime_ns == before  # made once


def test_pictures_of_a_page_are_whole_and_may_be_missing(tmp_path: Path) -> None:
    class Images:
        def read(self, name: str) -> bytes:
            return Path(name).read_bytes()

    wide = tmp_path / "wide.png"
    Image.new("RGB", (200, 50), "red").save(wide)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = [str(tmp_path / "gone.png"), str(wide), str(tmp_path / "broken.png")]
    thumbnails = thumbnails_of(names, Images())
    assert thumbnails.ids.tolist() == [1]
    assert thumbnails.pixels.shape == (1, 96, 96, 3)
    assert (thumbnails.pixels[0, 48] == (255, 0, 0)).all()
    assert (thumbnails.pixels[0, 20] == 255).all()
    shown: list[Any] = [(name, "<b>caption</b>") for name in names]
    text = write(
        tmp_path / "page.html", "A & B", "lead", [PictureGroup("G", "t", shown)], Images()
    ).read_text()
    assert "<b>caption" not in text
    assert text.count('class="im none"') == 2


def test_labels_that_somebody_filled_in_are_never_overwritten(
    collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(collection), "--count", "4"]) == 0
    assert cli.main(["sample", str(collection), "--count", "5"]) == 0  # nobody has filled in anything yet
    filled = (collection / "sample.csv").read_text().replace('.png","",', '.png","cat",')
    assert "cat" in filled
    for name in ("sample.csv", "labels.csv"):
        (collection / name).write_text(filled)
    capsys.readouterr()
    assert cli.main(["sample", str(collection), "--count", "5"]) == 2
    assert "has labels that would be lost" in capsys.readouterr().err
    assert cli.main(["label", str(collection), str(collection / "labels.csv")]) == 2
    assert "would be overwritten by the result" in capsys.readouterr().err
    assert (collection / "sample.csv").read_text() == (collection / "labels.csv").read_text() == filled
    assert (
        cli.main(
            [
                "label",
                str(collection),
                str(collection / "sample.csv"),
                "--out",
                str(collection / "spread.csv"),
            ]
        )
        == 0
    )
