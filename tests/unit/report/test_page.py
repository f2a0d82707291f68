from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import NAMES, digits_record, digits_snapshot, history

from pcl_ray.report import page
from pcl_ray.report.drawing import html as html_parts
from pcl_ray.report.drawing import sprites, svg
from pcl_ray.report.run_record import RunRecord
from pcl_ray.snapshot import ClusteringSnapshot, Snapshot, Thumbnails

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Reader(HTMLParser):
    """Fails where elements are not closed in the order that they were opened in, or an id is used twice."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.found if "id" in attributes]
        assert len(ids) == len(set(ids)), sorted(one for one in ids if ids.count(one) > 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[self.found[-1][1].get("id", "")] = data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, key: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.found if key in attributes]


def read(record: RunRecord, folder: Path) -> Reader:
    path = folder / "report.html"
    assert page.write(record, path) == path
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return Reader(path.read_text(encoding="utf-8"))


def explorer_of(found: Reader) -> dict[str, Any]:
    return json.loads(found.scripts["explorer-data"])


def test_nothing_is_asked_for_outside(tmp_path: Path) -> None:
    found = read(digits_record(link="https://tracking.example/runs/1"), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r"https?://[^\s\"'<)]*", text)
    assert outside == ["https://tracking.example/runs/1"]  # a link to follow, and no namespaces or fonts
    for attributes in found.having("src") + found.having("href"):
        assert attributes.get("src", "") == ""
        assert attributes.get("href", "#").startswith(("#", "data:", "https://tracking.example/"))
    assert all(address.startswith("data:image/") for address in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text


def test_what_is_said_of_the_run(tmp_path: Path) -> None:
    found = read(digits_record(), tmp_path)
    for words in (
        "seven",
        "finished",
        "digits",
        "1,797",
        "Temperature τ 0.2",
        "Smoothing α 10",
        "small_resnet",
        "2 workers",
    ):
        assert words in found.text, words
    assert "6; warm-up 3" in found.text
    assert "kNN top-1 0.778" in found.text
    assert "pcl-ray train digits --name seven" in found.text
    assert "f00d" in found.text
    assert "Time 6 min" in found.text
    assert "E-step 11 %" in found.text


def test_every_knob_is_listed_and_the_changed_ones_are_marked(tmp_path: Path) -> None:
    record = digits_record()
    page.write(record, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    few, every = text.split("<details>")
    for name in record.config.flatten():
        assert f"<code>{name}</code>" in every
    assert "<code>e_step.warmup_epochs</code>" in few
    assert "<code>e_step.alpha</code>" not in few
    assert re.search(
        r"<code>e_step.warmup_epochs</code></th><td class=\"changed\"><b>3</b></td><td>20</td>", every
    )


def test_the_explorer_agrees_with_the_snapshot(tmp_path: Path) -> None:
    record = digits_record()
    snapshot = record.snapshot
    assert snapshot is not None
    data = explorer_of(read(record, tmp_path))
    coarse, fine = snapshot.clusterings[1], snapshot.clusterings[0]
    assert [level["k"] for level in data["levels"]] == [8, 30]
    for shown, level in zip((coarse, fine), data["levels"], strict=True):
        assert [one["id"] for one in level["prototypes"]] == shown.selected.tolist()
        for row, one in enumerate(level["prototypes"]):
            assert one["near"] == [image for image in shown.nearest[row].tolist() if image >= 0]
            assert one["far"] == [image for image in shown.farthest[row].tolist() if image >= 0]
            assert one["size"] == shown.sizes[one["id"]]
            assert one["phi"] == pytest.approx(shown.concentration[one["id"]], rel=1e-4)
            assert one["top"] == NAMES[shown.top_class[row]]
            assert one["share"] == pytest.approx(shown.top_share[row], abs=1e-4)
    for one in data["levels"][0]["prototypes"]:
        inside = np.flatnonzero((fine.parents == one["id"]) & (fine.sizes > 0))
        assert one["inside"] == len(inside)
        assert sorted(one["children"]) == inside.tolist()
        assert [fine.sizes[child] for child in one["children"]] == sorted(
            (fine.sizes[child] for child in inside), reverse=True
        )
    roles = {one["id"]: one["role"] for one in data["levels"][0]["prototypes"] if one["role"]}
    assert roles == {int(k): role for role, found in coarse.roles().items() for k in found}
    assert record.thumbnails is not None
    assert data["sheet"]["images"] == record.thumbnails.ids.tolist()


def test_cards_of_the_coarsest_clustering_need_no_script(tmp_path: Path) -> None:
    record = digits_record()
    found = read(record, tmp_path)
    cards = [
        attributes for tag, attributes in found.found if tag == "button" and "data-prototype" in attributes
    ]
    assert {card["data-level"] for card in cards} == {"0"}
    assert record.snapshot is not None
    coarse = record.snapshot.clusterings[1]
    phi = [float(card["data-phi"]) for card in cards]
    assert phi == sorted(phi)
    assert {int(card["data-prototype"]) for card in cards} == set(coarse.selected.tolist())
    pictures = [
        attributes for tag, attributes in found.found if tag == "i" and "im" in attributes.get("class", "")
    ]
    assert len(pictures) == 8 * 6
    assert {attributes["id"] for attributes in found.having("id")} >= {"explorer", "explorer-panel"}


def test_the_sheet_holds_every_picture() -> None:
    rng = np.random.default_rng(0)
    thumbnails = Thumbnails(np.array([3, 5, 8, 11, 90]), rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    sheet = sprites.sheet_of(thumbnails, [5, 11, 90, 4])
    assert sheet is not None
    assert sheet.slots == {5: 0, 11: 1, 90: 2}
    pixels = decoded(sheet)
    for image, slot in sheet.slots.items():
        top, left = (slot // sheet.columns) * sheet.cell + 1, (slot % sheet.columns) * sheet.cell + 1
        assert (pixels[top : top + 8, left : left + 8] == thumbnails.picture(image)).all()
        # the border repeats the edge
        assert (pixels[top - 1, left : left + 8] == thumbnails.picture(image)[0]).all()
    assert sheet.slot(3) == -1
    assert "im none" in sheet.picture(3)
    assert sprites.sheet_of(None) is None
    assert sprites.sheet_of(thumbnails, [4]) is None


def decoded(sheet: sprites.Sheet) -> np.ndarray:
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))).convert("RGB"))


def test_many_large_pictures_stay_within_the_size(tmp_path: Path) -> None:
    """Three clusterings of 96 prototypes with 16 pictures each, and pictures that nothing can compress."""
    rng = np.random.default_rng(0)
    images = np.arange(3 * 96 * 16)
    noise = rng.integers(0, 256, (len(images), 48, 48, 3), dtype=np.uint8)
    shown = [synthetic(4096 * 2**m, images[m * 1536 : (m + 1) * 1536].reshape(96, 16), rng) for m in range(3)]
    record = digits_record(
        snapshot=Snapshot(6, 66, 1_000_000, tuple(shown)),
        thumbnails=Thumbnails(images, noise),
        num_clusters=(4096, 8192, 16384),
    )
    path = page.write(record, tmp_path / "report.html")
    assert path.stat().st_size < 6_000_000
    Reader(path.read_text(encoding="utf-8"))


def synthetic(
    count: int, images: np.ndarray, rng: np.random.Generator, classes: int = 0
) -> ClusteringSnapshot:
    chosen = np.sort(rng.choice(count, len(images), replace=False))
    top = rng.integers(0, classes, len(images)) if classes else np.full(len(images), -1)
    phi, sizes = rng.random(count).astype(np.float32), rng.integers(1, 90, count)
    parents = rng.integers(0, max(1, count // 2), count)
    return ClusteringSnapshot(
        phi,
        sizes,
        parents,
        np.full(count, 0.5, np.float32),
        chosen,
        images[:, :12],
        images[:, 12:],
        top,
        np.full(len(images), 0.25, np.float32),
    )


def test_a_hundred_thousand_clusters_and_200_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shown = synthetic(100_000, np.arange(96 * 16).reshape(96, 16), rng, classes=200)
    sample = np.arange(300)
    snapshot = Snapshot(
        6,
        66,
        1_281_167,
        (shown,),
        sample,
        np.zeros((300, 4), np.float16),
        rng.integers(0, 200, 300),
        rng.integers(-1, 100_000, (1, 300)),
    )
    names = tuple(f"class number {n}, which has a rather long name of several words" for n in range(200))
    record = digits_record(
        snapshot=snapshot.with_map(rng.normal(size=(300, 2)), "UMAP"),
        class_names=names,
        num_clusters=(100_000,),
    )
    found = read(record, tmp_path)
    assert "UMAP of the features" in found.text
    assert "and" in found.text
    assert "more classes" in found.text
    assert "Of 100,000 prototypes the most telling 96 are shown" in found.text
    assert len(found.having("data-prototype")) == 96


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = "<b>\"x\" & 'y'</b></script><script>alert(1)</script>"
    shown, thumbnails = digits_snapshot()
    record = digits_record(
        name=nasty,
        command=nasty,
        error=nasty,
        state="failed",
        fingerprint=nasty,
        link=f"javascript:{nasty}",
        versions={nasty: nasty},
        class_names=tuple(f"</script>{name}<!--" for name in NAMES),
        snapshot=replace(shown, note=nasty, map_name=nasty),
    )
    page.write(record, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Reader(text)
    assert "<script>alert" not in text
    assert "</script>zero" not in text
    assert "javascript:" not in " ".join(attributes.get("href", "") for _, attributes in found.found)
    assert explorer_of(found)["levels"][0]["prototypes"][0]["top"].startswith("</script>")
    assert nasty in "".join(found.words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"snapshot": None, "thumbnails": None}, "no pictures of its prototypes were kept"),
        ({"snapshot": None, "thumbnails": None, "history": history(2)}, "2 of its 3 warm-up epochs"),
        (
            {"snapshot": None, "thumbnails": None, "history": [], "state": "running"},
            "Nothing has been measured yet",
        ),
        ({"history": []}, "nothing to draw"),
        ({"history": history(1)}, "1 of 6"),
        ({"thumbnails": None}, "shown in numbers alone"),
        (
            {"thumbnails": Thumbnails(np.empty(0, np.int64), np.empty((0, 8, 8, 3), np.uint8))},
            "shown in numbers alone",
        ),
        ({"state": "failed", "error": "the loss is nan in epoch 3"}, "the loss is nan in epoch 3"),
        (
            {
                "num_images": 0,
                "num_clusters": (),
                "class_names": (),
                "versions": {},
                "fingerprint": "",
                "command": "",
            },
            "Versions were not recorded",
        ),
        (
            {
                "history": [
                    {
                        "epoch": 0,
                        "step": 9,
                        "metrics": {"train/loss": float("nan"), "eval/rankme": float("inf")},
                    }
                ]
            },
            "Summary",
        ),
        (
            {"history": [*history(4), {"epoch": 4, "step": 9, "metrics": {"train/loss": float("nan")}}]},
            "Loss",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = read(digits_record(**changes), tmp_path)
    assert words in found.text
    assert "nan%" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_labels_no_class_is_named(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot(labelled=False)
    found = read(digits_record(snapshot=shown, thumbnails=thumbnails), tmp_path)
    assert all(one["top"] is None for one in explorer_of(found)["levels"][0]["prototypes"])
    assert "zero" not in found.text
    assert [way["title"] for way in json.loads(found.scripts["map-data"])["ways"]] == ["K = 8", "K = 30"]


def test_one_clustering_has_nothing_inside(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot((8,))
    data = explorer_of(
        read(digits_record(snapshot=shown, thumbnails=thumbnails, num_clusters=(8,)), tmp_path)
    )
    assert len(data["levels"]) == 1
    assert all(one["children"] == [] and one["inside"] == 0 for one in data["levels"][0]["prototypes"])


def test_a_warm_up_snapshot_has_a_map_alone(tmp_path: Path) -> None:
    shown, _ = digits_snapshot()
    warm = Snapshot(
        2,
        22,
        1797,
        (),
        shown.sample,
        shown.features,
        shown.labels,
        np.empty((0, len(shown.sample)), np.int64),
    )
    found = read(digits_record(snapshot=warm.with_map(shown.projection, "PCA"), history=history(2)), tmp_path)
    assert "PCA of the features" in found.text
    assert "2 of its 3 warm-up epochs" in found.text
    unlabelled = replace(warm, labels=np.full(len(shown.sample), -1))
    assert (
        "PCA of the features"
        in read(digits_record(snapshot=unlabelled.with_map(shown.projection, "PCA")), tmp_path).text
    )


def test_the_map_survives_places_that_are_none(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot()
    places = shown.projection.copy()
    places[3] = np.nan
    read(digits_record(snapshot=shown.with_map(places, "t-SNE")), tmp_path)
    read(digits_record(snapshot=shown.with_map(np.zeros_like(places), "t-SNE")), tmp_path)


def test_empty_clusters_are_left_out(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot((8,))
    nothing = np.empty(0, np.int64)
    none = replace(
        shown.clusterings[0],
        sizes=np.zeros(8, np.int64),
        selected=nothing,
        nearest=nothing.reshape(0, 12),
        farthest=nothing.reshape(0, 4),
    )
    none = replace(none, top_class=nothing, top_share=nothing)
    assert (
        "Every cluster is empty"
        in read(
            digits_record(snapshot=replace(shown, clusterings=(none,)), thumbnails=thumbnails), tmp_path
        ).text
    )


def test_only_charts_with_data(tmp_path: Path) -> None:
    found = read(digits_record(history=history(2)), tmp_path)
    charts = {attributes["id"] for tag, attributes in found.found if tag == "figure" and "id" in attributes}
    assert {"chart-loss", "chart-knn", "chart-rankme"} <= charts
    assert not {"chart-drift", "chart-phi-0", "chart-ami"} & charts
    told = json.loads(found.scripts["chart-loss-data"])
    assert [line["name"] for line in told["lines"]] == ["all", "instance term"]
    assert told["lines"][0]["x"] == [1, 2]


def test_a_long_history_is_thinned_and_keeps_its_end() -> None:
    points = [(float(n), float(n)) for n in range(3001)]
    thinned = svg.thinned(points)
    assert len(thinned) < 502
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.9612, 0.9614), (-3, 7), (1, 14), (0, 2.5e6), (5, 5.0000001)]
)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in found)


def test_tags_escape_but_for_markup() -> None:
    made = html_parts.tag("p", "<", html_parts.tag("b", "&"), class_='"', data_level=0, hidden=True, id=None)
    assert made == '<p class="&quot;" data-level="0" hidden>&lt;<b>&amp;</b></p>'


def test_reading_it_takes_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys, pcl_ray.report.page, pcl_ray.report.comparison; print([name for name in ('ray',"
        " 'mlflow', 'matplotlib') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        ).stdout.strip()
        == "[]"
    )
