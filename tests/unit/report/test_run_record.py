"""A run as it is looked at afterwards."""

from __future__ import annotations

import math

from reported import digits_record

from pcl_ray.config.figures import AMI, LOSS


def test_curves_are_of_the_epochs_that_have_the_figure() -> None:
    entries = [
        {"epoch": 0, "step": 9, "metrics": {LOSS.name: 3.0}},
        {"epoch": 1, "step": 19, "metrics": {LOSS.name: math.nan, AMI.at(1).name: 0.5}},
        {"epoch": 2, "step": 29, "metrics": {LOSS.name: 2.0}},
    ]
    record = digits_record(history=entries)
    assert record.epochs == 3
    assert [epoch for epoch, _ in record.series(LOSS)] == [1, 2, 3]
    assert record.finite(LOSS) == [(1, 3.0), (3, 2.0)]
    assert record.series(AMI.at(1)) == [(2, 0.5)]
    assert record.series(AMI.at(0)) == []
