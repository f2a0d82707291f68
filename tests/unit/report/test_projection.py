"""Features on a map."""

from __future__ import annotations

import numpy as np
import pytest

from pcl_ray.report.projection import project

C = 8


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_a_map_of_any_number_of_points(count: int) -> None:
    found, name = project(np.random.default_rng(0).normal(size=(count, C)))
    assert found.shape == (count, 2)
    assert np.isfinite(found).all()
    assert name == ("PCA" if count < 12 else "t-SNE")


def test_a_map_that_goes_on_from_the_last_one_stays_near_it() -> None:
    draw = np.random.default_rng(0)
    features = np.repeat(np.eye(4, C) * 4, 20, axis=0) + draw.normal(size=(80, C)) * 0.1
    before, _ = project(features)
    after, _ = project(features + draw.normal(size=(80, C)) * 0.01, before)
    centres = [
        np.stack([found[20 * k : 20 * k + 20].mean(axis=0) for k in range(4)]) for found in (before, after)
    ]
    order = [np.argsort(found[:, 0]).tolist() for found in centres]
    assert order[0] == order[1]
