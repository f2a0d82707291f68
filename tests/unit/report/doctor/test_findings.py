from __future__ import annotations

import math
from dataclasses import replace

import pytest
from diagnosed import with_curve, with_knobs
from reported import digits_record

from pcl_ray.config.figures import CONE, EMPTY, LOSS, NUM_CLUSTERS, RANK, SPREAD
from pcl_ray.report.doctor import findings


def test_late_is_the_last_third_and_at_least_one_value() -> None:
    points = [(epoch, float(epoch)) for epoch in range(1, 10)]
    assert findings.late(points) == points[6:]
    assert findings.late(points[:2]) == points[1:2]
    assert findings.mean(points) == 5


def test_the_end_of_a_curve_is_the_mean_of_its_last_third() -> None:
    record = with_curve(digits_record(), train__loss=[6, 5, 4, 3, 2, 1])
    assert findings.at_end(record, LOSS) == 1.5
    assert findings.newest(record, LOSS) == 1
    unknown = with_curve(record, train__loss=None)
    assert findings.at_end(unknown, LOSS) is None
    assert findings.newest(unknown, LOSS) is None


def test_values_that_are_no_numbers_are_left_out() -> None:
    record = with_curve(digits_record(), train__loss=[6, 5, 4, 3, 2, math.nan])
    assert findings.newest(record, LOSS) == 2


def test_epochs_with_prototypes_are_those_that_have_their_loss() -> None:
    assert findings.prototype_epochs(digits_record()) == 3


def test_k_is_that_of_the_run_or_of_its_e_steps_or_of_its_configuration() -> None:
    record = digits_record()
    assert findings.clusterings(record) == [(0, 30), (1, 8)]
    measured = with_curve(
        replace(record, num_clusters=()), **{NUM_CLUSTERS.at(0).name.replace("/", "__"): 29}
    )
    assert findings.clusterings(measured) == [(0, 29), (1, 8)]
    asked = replace(with_knobs(record, "e_step.num_clusters=0.01,40"), num_clusters=(), history=())
    assert findings.clusterings(asked) == [(0, 18), (1, 40)]  # a hundredth of 1797 images


def test_k_that_auto_chose_is_that_of_the_run_or_follows_from_its_images() -> None:
    record = replace(with_knobs(digits_record(), "e_step.num_clusters=auto"), history=())
    assert findings.clusterings(record) == [(0, 30), (1, 8)]
    assert findings.clusterings(replace(record, num_clusters=())) == [(0, 42), (1, 85), (2, 170)]
    assert findings.clusterings(replace(record, num_clusters=(), num_images=0)) == []
    assert findings.which(replace(record, num_clusters=(30,)), 0, 30) == "the clustering (K = 30)"


def test_a_clustering_of_one_is_left_out() -> None:
    record = replace(
        with_knobs(digits_record(), "e_step.num_clusters=0.01,40"), num_clusters=(1, 40), history=()
    )
    assert findings.clusterings(record) == [(1, 40)]


def test_each_has_the_newest_value_of_the_clusterings_that_have_one() -> None:
    names = [EMPTY.at(m).name.replace("/", "__") for m in range(2)]
    record = with_curve(digits_record(), **{names[0]: [3, 2], names[1]: None})
    assert findings.each(record, EMPTY) == [(0, 30, 2.0)]


def test_a_clustering_has_its_number_where_there_are_several() -> None:
    record = digits_record()
    assert findings.which(record, 1, 8) == "clustering 1 (K = 8)"
    assert findings.which(with_knobs(record, "e_step.num_clusters=30"), 0, 30) == "the clustering (K = 30)"


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_covered_goes_from_all_alike_to_one_right(temperature: float) -> None:
    columns = 100
    best = -math.log(math.exp(1 / temperature) / (math.exp(1 / temperature) + columns - 1))
    assert findings.covered(math.log(columns), columns, temperature) == pytest.approx(0)
    assert findings.covered(best, columns, temperature) == pytest.approx(1)
    assert findings.covered((best + math.log(columns)) / 2, columns, temperature) == pytest.approx(0.5)
    assert findings.covered(0.0, 1, temperature) == 1  # nothing to tell apart


def test_columns_are_all_prototypes_or_the_batch_s_and_those_drawn() -> None:
    record = with_knobs(digits_record(), "loss.negative_prototypes=all", "train.batch_size=64")
    assert findings.columns_of(record, 30) == 30
    drawn = with_knobs(record, "loss.negative_prototypes=20", "loss.mask_duplicates=false")
    assert findings.columns_of(drawn, 30) == 1 + 63 + 20
    hidden = with_knobs(drawn, "loss.mask_duplicates=true")
    assert findings.columns_of(hidden, 30) == pytest.approx(1 + 63 * 29 / 30 + 20)


def test_collapse_is_told_from_a_rejected_clustering() -> None:
    record = digits_record()
    assert findings.gauges_collapsed(record, {CONE.name: 0.99999, SPREAD.name: 1e-6})
    assert not findings.gauges_collapsed(record, {CONE.name: 0.2, SPREAD.name: 0.5})
    assert not findings.gauges_collapsed(record, {})
    rank = findings.collapse_limit(record)
    assert findings.gauges_collapsed(record, {RANK.name: rank * 0.9})
    assert not findings.gauges_collapsed(record, {RANK.name: rank * 1.1})
