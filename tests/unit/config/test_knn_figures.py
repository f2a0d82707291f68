from __future__ import annotations

import pytest
from scipy.stats import binomtest

from pcl_ray.config.figures import HEAD_KNN_TOP1, KNN_ERROR, KNN_TOP1
from pcl_ray.config.knn_figures import half_width, row_with_error


@pytest.mark.parametrize(("hits", "images"), [(0, 7), (3, 7), (7, 7), (50, 241), (9000, 10_000)])
def test_the_error_is_half_of_wilsons_interval(hits: int, images: int) -> None:
    interval = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert half_width(hits / images, images) == pytest.approx((interval.high - interval.low) / 2, abs=2e-4)


def test_nothing_is_known_without_images() -> None:
    assert half_width(0.5, 0) == 1.0


def test_the_accuracy_alone_has_it_in_its_row() -> None:
    metrics = {KNN_TOP1.name: 0.5, KNN_ERROR.name: 0.0625, HEAD_KNN_TOP1.name: 0.4}
    assert row_with_error(KNN_TOP1, metrics)[1] == "0.5000 ± 0.0625"
    assert row_with_error(HEAD_KNN_TOP1, metrics)[1] == "0.4000"
    assert row_with_error(KNN_TOP1, {KNN_TOP1.name: 0.5})[1] == "0.5000"
