"""The prototype explorer: its cards, and the data for its script."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import explorer_of, read_report
from reported import NAMES, digits_record, digits_snapshot, synthetic

from pcl_ray.snapshot import Snapshot


def test_the_explorer_agrees_with_the_snapshot(tmp_path: Path) -> None:
    record = digits_record()
    snapshot = record.snapshot
    assert snapshot is not None
    data = explorer_of(read_report(record, tmp_path))
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
    found = read_report(record, tmp_path)
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
    found = read_report(record, tmp_path)
    assert "UMAP of the features" in found.text
    assert "and" in found.text
    assert "more classes" in found.text
    assert "Of 100,000 prototypes the most telling 96 are shown" in found.text
    assert len(found.having("data-prototype")) == 96


def test_without_labels_no_class_is_named(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot(labelled=False)
    found = read_report(digits_record(snapshot=shown, thumbnails=thumbnails), tmp_path)
    assert all(one["top"] is None for one in explorer_of(found)["levels"][0]["prototypes"])
    assert "zero" not in found.text
    assert [way["title"] for way in json.loads(found.scripts["map-data"])["ways"]] == ["K = 8", "K = 30"]


def test_one_clustering_has_nothing_inside(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot((8,))
    data = explorer_of(
        read_report(digits_record(snapshot=shown, thumbnails=thumbnails, num_clusters=(8,)), tmp_path)
    )
    assert len(data["levels"]) == 1
    assert all(one["children"] == [] and one["inside"] == 0 for one in data["levels"][0]["prototypes"])


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
        in read_report(
            digits_record(snapshot=replace(shown, clusterings=(none,)), thumbnails=thumbnails), tmp_path
        ).text
    )


def test_a_prototype_lists_all_of_its_images_the_nearest_first_by_their_files(tmp_path: Path) -> None:
    record = digits_record()
    snapshot, thumbnails = record.snapshot, record.thumbnails
    assert snapshot is not None
    assert thumbnails is not None
    files = np.array([f"digits/{image}.png".encode() for image in range(snapshot.num_images)])
    named = replace(record, thumbnails=replace(thumbnails, names=files))
    data = explorer_of(read_report(named, tmp_path))
    assert snapshot.members.shape == (2, snapshot.num_images)
    for m, level in zip(snapshot.coarse_to_fine(), data["levels"], strict=True):
        for one in level["prototypes"]:
            own = np.flatnonzero(snapshot.members[m] == one["id"])
            assert sorted(one["members"]) == own.tolist()
            assert len(own) == one["size"]
            apart = snapshot.distances[m][one["members"]]
            assert (np.diff(apart) >= 0).all()
            assert {data["names"][str(image)] for image in one["members"]} == {f"digits/{i}.png" for i in own}


def test_of_a_run_of_before_the_nearest_alone_are_known(tmp_path: Path) -> None:
    record = digits_record()
    assert record.snapshot is not None
    empty = record.snapshot.members[:, :0]
    before = replace(record, snapshot=replace(record.snapshot, members=empty, distances=empty))
    data = explorer_of(read_report(before, tmp_path))
    assert data["names"] == {}
    assert all("members" not in one for level in data["levels"] for one in level["prototypes"])
