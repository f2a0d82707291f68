"""From snapshots to pictures: what is drawn and kept for the report; nothing of it reaches the training."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcl_ray import snapshot
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.data.images import ArrayImages
from pcl_ray.runs.folder import MEMBERS_FILE, SNAPSHOT_FILE
from pcl_ray.runs.gallery import Gallery, thumbnails_of
from pcl_ray.training.events import Event

N, C = 120, 8


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[str, int, tuple[int, int]]] = []

    def log_image(self, path: Path, key: str, step: int) -> None:
        with Image.open(path) as picture:
            self.logged.append((key, step, picture.size))


def images(side: int = 8, channels: int = 1) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 255, size=(N, side, side, channels), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(N) % 3, ("zero", "one", "two"))


def shown(epoch: int = 2, step: int = 9, clusterings: int = 2) -> snapshot.Snapshot:
    draw = np.random.default_rng(epoch)
    features = draw.normal(size=(N, C)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    parts = []
    for m in range(clusterings):
        prototypes = features[: 4 * (m + 1)]
        parts.append(
            Clustering(
                torch.from_numpy(prototypes),
                torch.from_numpy((features @ prototypes.T).argmax(1)),
                torch.linspace(0.1, 0.3, 4 * (m + 1)),
            )
        )
    clusters = ClusterSet(epoch, tuple(parts)) if parts else None
    return snapshot.make_snapshot(
        features, np.arange(N), clusters, np.arange(N) % 3, epoch=epoch, step=step, num_images=N
    )


def drawn(tmp_path: Path, *events: Event, small: bool = False) -> tuple[Recorder, list[str]]:
    recorder, warnings = Recorder(), []
    gallery = Gallery(tmp_path, images, recorder, warnings.append, small=small)
    for event in events:
        gallery.handle(event)
    gallery.close(60)
    return recorder, warnings


def test_every_picture_has_one_key_at_all_steps(tmp_path: Path) -> None:
    views = np.zeros((3, 2, 8, 8, 1), np.uint8)
    first, second = Event("snapshot", snapshot=shown(0, 0)), Event("snapshot", 2, 9, snapshot=shown())
    recorder, warnings = drawn(tmp_path, first, Event("views", views=views), second, Event("alive"))
    keys = {key for key, _, _ in recorder.logged}
    assert keys == {"prototypes/0", "prototypes/1", "clusters/phi", "clusters/sizes", "map", "views"}
    assert {step for key, step, _ in recorder.logged if key == "prototypes/1"} == {0, 9}
    assert warnings == []
    kept, thumbnails = snapshot.load_snapshot(tmp_path / SNAPSHOT_FILE) or pytest.fail("no snapshot was kept")
    assert (kept.epoch, kept.map_name, kept.projection.shape) == (2, "t-SNE", (N, 2))
    assert all(thumbnails.picture(int(image)) is not None for image in kept.images())


def test_a_trial_of_a_sweep_has_its_sheets_alone(tmp_path: Path) -> None:
    recorder, _ = drawn(
        tmp_path,
        Event("snapshot", 2, 9, snapshot=shown()),
        Event("views", views=np.zeros((1, 2, 8, 8, 3), np.uint8)),
        small=True,
    )
    assert [key for key, _, _ in recorder.logged] == ["prototypes/0", "prototypes/1"]


def test_in_the_warm_up_there_is_the_map(tmp_path: Path) -> None:
    recorder, _ = drawn(tmp_path, Event("snapshot", 1, 4, snapshot=shown(clusterings=0)))
    assert [key for key, _, _ in recorder.logged] == ["map"]


def test_what_goes_wrong_is_told_once_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("a file where the folder should be")
    _, warnings = drawn(tmp_path, Event("snapshot", snapshot=shown()), Event("snapshot", snapshot=shown()))
    assert len(warnings) == 1
    assert "training is not affected" in warnings[0]


def test_thumbnails_are_the_images_themselves_where_these_are_small() -> None:
    source = images(8, 3)
    found = thumbnails_of(source, np.array([3, 7]))
    assert found.pixels.shape == (2, 8, 8, 3)
    assert (found.picture(7) == source.pixels[7]).all()
    assert thumbnails_of(images(200), np.array([5])).pixels.shape == (1, 48, 48, 3)


def test_a_squeezed_picture_is_shown_whole_in_its_true_shape() -> None:
    pixels = np.zeros((1, 60, 60, 3), np.uint8)
    pixels[0, :, 20:40] = 200  # the middle third of a picture three times as wide as high
    [picture] = thumbnails_of(ArrayImages(pixels, sizes=np.array([[100, 300]])), np.array([0])).pixels
    assert (picture[:16] == 255).all()  # white above and below
    assert (picture[32:] == 255).all()
    assert picture[18:30, :14].max() < 20
    assert np.abs(picture[18:30, 18:30].astype(int) - 200).max() < 20
    assert picture[18:30, 34:].max() < 20


def named(count: int = N) -> ArrayImages:
    files = np.array([f"cat/{number}.png".encode() for number in range(count - 1)] + [b"caf\xe9,1.png"])
    return replace(images(), file_names=files)


def test_every_image_is_listed_with_its_file_and_prototypes(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, named, Recorder(), pytest.fail)
    gallery.handle(Event("snapshot", 2, 9, snapshot=shown()))
    gallery.close(60)
    with (tmp_path / MEMBERS_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("image", "file", "label"),
        *("prototype_4", "distance_4", "phi_4", "prototype_8", "distance_8", "phi_8"),
    ]
    assert [row["image"] for row in rows] == [str(number) for number in range(N)]
    assert (rows[4]["file"], rows[4]["label"]) == ("cat/4.png", "one")
    assert rows[-1]["file"] == r"caf\xe9,1.png"
    made = shown()
    for number, row in enumerate(rows):
        for m, k in enumerate((4, 8)):
            prototype = int(row[f"prototype_{k}"])
            assert prototype == made.members[m, number]
            assert float(row[f"phi_{k}"]) == pytest.approx(
                float(made.clusterings[m].concentration[prototype]), rel=1e-3
            )
            assert float(row[f"distance_{k}"]) == pytest.approx(float(made.distances[m, number]), rel=1e-3)
    # the first prototypes are the first images themselves
    assert [float(row["distance_8"]) for row in rows[:8]] == pytest.approx([0.0] * 8, abs=1e-3)


def test_few_images_all_have_a_thumbnail_and_a_name_at_the_end(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, named, Recorder(), pytest.fail)
    gallery.handle(Event("snapshot", 2, 9, snapshot=shown()))
    gallery.close(60)
    kept, thumbnails = snapshot.load_snapshot(tmp_path / SNAPSHOT_FILE) or pytest.fail("no snapshot was kept")
    assert thumbnails.ids.tolist() == list(range(N))
    assert (thumbnails.name(4), thumbnails.name(N - 1)) == ("cat/4.png", r"caf\xe9,1.png")
    assert kept.members.shape == kept.distances.shape == (2, N)
    assert kept.map_name == "t-SNE"
