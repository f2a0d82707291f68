from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from reported import NAMES, digits_snapshot
from sklearn.datasets import load_digits

from pcl_ray.report import pictures
from pcl_ray.snapshot import FARTHEST, NEAREST, Thumbnails


def position(sheet: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    """(top, left) of the picture [s, s, 3] on a sheet; fails where it is not there exactly once."""
    picture = np.asarray(pictures.enlarged(pixels, pictures.CELL))
    corners = np.argwhere((sheet == picture[0, 0]).all(axis=-1))
    [corner] = [
        (int(top), int(left))
        for top, left in corners
        if np.array_equal(sheet[top : top + pictures.CELL, left : left + pictures.CELL], picture)
    ]
    return corner


def different(first: object, second: object) -> bool:
    return not np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("number", [0, 1])
def test_the_sheet_shows_the_nearest_image_first(number: int) -> None:
    snapshot, thumbnails = digits_snapshot()
    sheet = np.asarray(pictures.prototype_sheet(snapshot, number, thumbnails, NAMES))
    part = snapshot.clusterings[number]
    prototype = int(part.roles()["tightest"][0])
    nearest = part.nearest[part.row_of(prototype)]
    shown = [
        position(sheet, picture) for image in nearest if (picture := thumbnails.picture(image)) is not None
    ]
    assert len(shown) > 2
    assert len({top for top, _ in shown}) == 1
    assert [left for _, left in shown] == sorted(left for _, left in shown)


def test_the_sheet_has_a_row_for_each_prototype_with_a_role() -> None:
    snapshot, thumbnails = digits_snapshot()
    heights = [pictures.prototype_sheet(snapshot, m, thumbnails).height for m in range(2)]
    rows = [sum(len(prototypes) for prototypes in part.roles().values()) for part in snapshot.clusterings]
    assert (
        (heights[0] - heights[1]) % (rows[0] - rows[1]) == 0
        if rows[0] != rows[1]
        else heights[0] == heights[1]
    )
    assert heights[0] > rows[0] * pictures.CELL
    widths = {pictures.prototype_sheet(snapshot, m, thumbnails).width for m in range(2)}
    assert len(widths) == 1
    assert widths.pop() > (NEAREST + FARTHEST) * pictures.CELL


def test_a_sheet_without_pictures_or_labels_is_drawn_with_its_texts() -> None:
    snapshot, thumbnails = digits_snapshot()
    none = Thumbnails(np.empty(0, np.int64), np.empty((0, 8, 8, 3), np.uint8))
    bare = pictures.prototype_sheet(snapshot, 1, none)
    assert bare.size == pictures.prototype_sheet(snapshot, 1, thumbnails).size
    assert np.asarray(bare)[:, -pictures.CELL :][60:].min() == 255  # white where the farthest images would be
    unlabelled, _ = digits_snapshot(labelled=False)
    assert different(pictures.prototype_sheet(unlabelled, 1, none), bare)


def test_names_of_classes_are_on_the_sheet_even_where_no_font_can_draw_them() -> None:
    snapshot, thumbnails = digits_snapshot()
    numbers = pictures.prototype_sheet(snapshot, 1, thumbnails)
    assert different(pictures.prototype_sheet(snapshot, 1, thumbnails, NAMES), numbers)
    odd = ["a\nb\x00" * 20, "$\\frac{", *NAMES[2:]]
    assert pictures.prototype_sheet(snapshot, 1, thumbnails, odd).size == numbers.size


def test_small_pictures_keep_their_pixels() -> None:
    pixels = (load_digits().images[0] / 16 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    large = np.asarray(pictures.enlarged(pixels, 16))
    assert np.array_equal(large, pixels.repeat(2, axis=0).repeat(2, axis=1))
    assert pictures.enlarged(pixels, 5).size == (5, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_two_views_of_an_image_are_below_each_other(channels: int) -> None:
    views = np.zeros((3, 2, 64, 64, channels), np.uint8)
    views[:, 0], views[:, 1] = 60, 200
    sheet = np.asarray(pictures.views_sheet(views))
    for value, other in ((60, 200), (200, 60)):
        rows = np.flatnonzero((sheet == value).all(axis=-1).sum(axis=1) == 3 * 64)
        assert len(rows) == 64
        assert not (sheet[rows] == other).all(axis=-1).any()
    assert (sheet[: sheet.shape[0] // 2] == 60).any()
    assert (sheet[sheet.shape[0] // 2 :] == 200).any()


def test_small_views_are_below_the_others() -> None:
    views = np.zeros((3, 4, 64, 64, 1), np.uint8)
    views[:] = np.array([60, 120, 180, 220])[:, None, None, None]
    sheet = np.asarray(pictures.views_sheet(views))
    found = [
        np.flatnonzero((sheet == value).all(axis=-1).sum(axis=1) == 3 * 64) for value in (60, 120, 180, 220)
    ]
    assert [len(rows) for rows in found] == [64] * 4
    assert all(before.max() < after.min() for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("what", ["phi", "sizes"])
def test_histograms_have_a_panel_for_each_clustering(what: str) -> None:
    snapshot, _ = digits_snapshot()
    both = pictures.histograms(snapshot, what)
    one = pictures.histograms(replace(snapshot, clusterings=snapshot.clusterings[:1]), what)
    assert both.height == one.height
    assert both.width - one.width == pytest.approx(360, abs=2)
    assert different(pictures.histograms(snapshot, "phi"), pictures.histograms(snapshot, "sizes"))


def test_a_histogram_of_phi_that_are_all_but_equal_is_drawn() -> None:
    snapshot, _ = digits_snapshot()
    part = snapshot.clusterings[1]
    phi = np.full(len(part.concentration), 0.2, np.float32)
    phi[0] = np.nextafter(np.float32(0.2), np.float32(1))
    alike = replace(snapshot, clusterings=(replace(part, concentration=phi),))
    assert pictures.histograms(alike, "phi").width > 100


def test_the_map_has_a_panel_by_prototype_and_one_by_label() -> None:
    snapshot, _ = digits_snapshot()
    unlabelled, _ = digits_snapshot(labelled=False)
    both, one = pictures.feature_map(snapshot, NAMES), pictures.feature_map(unlabelled)
    assert both is not None
    assert one is not None
    assert both.width == 2 * one.width
    assert both.height == one.height


def test_there_is_no_map_without_a_projection() -> None:
    snapshot, _ = digits_snapshot()
    assert pictures.feature_map(replace(snapshot, projection=snapshot.projection[:0])) is None


def test_names_of_classes_are_on_the_map_as_they_are() -> None:
    """A dollar sign begins no formula."""
    snapshot, _ = digits_snapshot()
    numbers = pictures.feature_map(snapshot)
    assert different(pictures.feature_map(snapshot, NAMES), numbers)
    assert pictures.feature_map(snapshot, ["$\\frac{$", "\x00", *NAMES[2:]]) is not None
