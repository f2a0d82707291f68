"""The map of features in a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pages import read_report
from reported import digits_record, digits_snapshot, history

from pcl_ray.snapshot import Snapshot


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
    found = read_report(
        digits_record(snapshot=warm.with_map(shown.projection, "PCA"), history=history(2)), tmp_path
    )
    assert "PCA of the features" in found.text
    assert "2 of its 3 warm-up epochs" in found.text
    unlabelled = replace(warm, labels=np.full(len(shown.sample), -1))
    assert (
        "PCA of the features"
        in read_report(digits_record(snapshot=unlabelled.with_map(shown.projection, "PCA")), tmp_path).text
    )


def test_the_map_survives_coordinates_that_are_none(tmp_path: Path) -> None:
    shown, thumbnails = digits_snapshot()
    coordinates = shown.projection.copy()
    coordinates[3] = np.nan
    read_report(digits_record(snapshot=shown.with_map(coordinates, "t-SNE")), tmp_path)
    read_report(digits_record(snapshot=shown.with_map(np.zeros_like(coordinates), "t-SNE")), tmp_path)
