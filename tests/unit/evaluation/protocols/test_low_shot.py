from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_features import mixture
from sklearn.svm import LinearSVC

from pcl_ray.errors import DataError
from pcl_ray.evaluation import LabelledFeatures
from pcl_ray.evaluation.protocols import low_shot as module
from pcl_ray.evaluation.protocols.images import MultiLabels
from pcl_ray.evaluation.protocols.low_shot import (
    COSTS,
    SvmFeatures,
    average_precision,
    low_shot,
    mean_average_precision,
)
from pcl_ray.evaluation.protocols.settings import ProtocolSettings


def slow_average_precision(scores: list[float], targets: list[int]) -> float:
    """The rule of VOC from 2010 on, step by step: recall and precision after each image, precision made
    monotone from the right, the area summed where recall changes.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    recall, precision, right = [0.0], [0.0], 0
    for rank, i in enumerate(order, start=1):
        right += targets[i]
        recall.append(right / sum(targets))
        precision.append(right / rank)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 1)), min_size=1, max_size=30))
def test_average_precision_is_the_rule(pairs: list[tuple[int, int]]) -> None:
    scores, targets = [float(score) for score, _ in pairs], [target for _, target in pairs]
    if not sum(targets):
        return
    measured = average_precision(np.array(scores), np.array(targets))
    assert measured == pytest.approx(slow_average_precision(scores, targets))


def test_difficult_objects_count_neither_way() -> None:
    scores = np.array([[3.0], [2.0], [1.0], [0.0]])
    assert mean_average_precision(scores, np.array([[-1], [1], [0], [1]])) == pytest.approx(
        slow_average_precision([2.0, 1.0, 0.0], [1, 0, 1])
    )
    counted_as_negative = slow_average_precision([3.0, 2.0, 1.0, 0.0], [0, 1, 0, 1])
    assert mean_average_precision(scores, np.array([[-1], [1], [0], [1]])) > counted_as_negative
    with pytest.raises(DataError, match="no held-out image has one of the classes"):
        mean_average_precision(scores, np.array([[0], [0], [-1], [0]]))


def several(images: int = 240, classes: int = 4, seed: int = 0) -> tuple[SvmFeatures, MultiLabels]:
    """Features that tell classes, several an image; a tenth of the entries are difficult."""
    draw = np.random.default_rng(seed)
    targets = (draw.random((images, classes)) < 0.3).astype(np.int8)
    rows = targets @ draw.standard_normal((classes, 10)) + 0.5 * draw.standard_normal((images, 10))
    targets[draw.random(targets.shape) < 0.1] = -1
    half = images // 2
    validation = np.arange(half) % 2 == 0
    labels = MultiLabels(targets[:half], targets[half:], validation)
    return SvmFeatures.of_multi(rows[:half], rows[half:], labels), labels


def test_full_is_the_svms_on_the_whole_bank() -> None:
    features, labels = several()
    values, notes = low_shot(features, ProtocolSettings(runs=2, shots=(1,)))
    cost = notes["costs"]["full"]
    assert cost in COSTS
    expected = []
    for column in range(4):
        rows = labels.bank_BL[:, column] >= 0
        model = LinearSVC(
            C=cost,
            class_weight={1: 2, 0: 1},
            loss="squared_hinge",
            dual="auto",
            max_iter=2000,
            random_state=0,
        ).fit(features.bank_BD[rows], labels.bank_BL[rows, column])
        judged = labels.queries_QL[:, column] >= 0
        expected.append(
            slow_average_precision(
                model.decision_function(features.queries_QD[judged]).tolist(),
                labels.queries_QL[judged, column].tolist(),
            )
        )
    assert values["full/map"] == [pytest.approx(np.mean(expected))]
    assert len(values["k1/map"]) == 2
    assert not any(name.endswith("top1") for name in values)  # there is no one class an image


def test_draws_hold_k_images_of_each_class_and_no_image_twice() -> None:
    _, labels = several()
    for count in (1, 3, 1000):
        for rows in module._draws(labels.bank_BL, count, 3, seed=5):
            assert len(set(rows.tolist())) == len(rows)
            drawn = (labels.bank_BL[rows] == 1).sum(axis=0)
            available = (labels.bank_BL == 1).sum(axis=0)
            assert (drawn >= np.minimum(count, available)).all()
    first, second = module._draws(labels.bank_BL, 2, 2, seed=5)
    assert first.tolist() != second.tolist()


def test_more_images_are_better_and_the_queries_choose_nothing() -> None:
    features, labels = several(600)
    settings = ProtocolSettings(runs=4, shots=(1, 8))
    values, notes = low_shot(features, settings)
    assert np.mean(values["k1/map"]) < np.mean(values["k8/map"]) < values["full/map"][0]
    turned = MultiLabels(labels.bank_BL, 1 - labels.queries_QL.clip(0), labels.validation_B)
    others = SvmFeatures.of_multi(features.bank_BD, features.queries_QD, turned)
    assert low_shot(others, settings)[1]["costs"] == notes["costs"]


def test_the_cost_is_chosen_on_the_part_set_apart() -> None:
    """Labels of the validation part that are turned round change the choice, and with it nothing else."""
    features, labels = several(600)
    assert labels.validation_B is not None
    turned = labels.bank_BL.copy()
    turned[labels.validation_B] = np.where(
        turned[labels.validation_B] >= 0, 1 - turned[labels.validation_B], -1
    )
    fitting, judging = module._parts(features, 0)
    assert set(fitting) | set(judging) == set(range(300))
    assert set(judging) == set(np.flatnonzero(labels.validation_B))
    others = SvmFeatures.of_multi(
        features.bank_BD, features.queries_QD, MultiLabels(turned, labels.queries_QL, labels.validation_B)
    )
    settings = ProtocolSettings(runs=2)
    costs = [module._best_cost(each, fitting, judging, 0, settings) for each in (features, others)]
    assert costs[0] != costs[1]


def test_single_labels_have_accuracies_too_and_classes_may_be_few() -> None:
    rows = mixture(260, 8, groups=4).numpy()
    of = np.array([f"class {i % 4}" for i in range(259)] + ["once"])
    features = LabelledFeatures.of(rows[60:], of[60:], rows[:60], [*of[:59], "unseen"])
    values, _ = low_shot(SvmFeatures.of_single(features), ProtocolSettings(runs=2, shots=(2, 4)))
    assert values["full/top1"][0] > 0.9
    assert values["full/top1"][0] < 1  # the unseen class is always wrong
    assert set(values) == {f"{k}/{name}" for k in ("k2", "k4", "full") for name in ("map", "top1")}


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="needs images to learn from"):
        SvmFeatures(np.empty((0, 2)), np.empty((0, 1)), np.ones((1, 2)), np.ones((1, 1)))
    with pytest.raises(DataError, match="not finite"):
        SvmFeatures(np.full((1, 2), np.inf), np.ones((1, 1)), np.ones((1, 2)), np.ones((1, 1)))
