from __future__ import annotations

import numpy as np
import pytest
import torch
from random_features import labels, mixture
from sklearn.neighbors import KNeighborsClassifier

from pcl_ray.errors import ConfigError, DataError
from pcl_ray.evaluation import LabelledFeatures, knn_accuracy, linear_probe_accuracy
from pcl_ray.evaluation.protocols.classifiers import knn, linear
from pcl_ray.evaluation.protocols.results import Measurement, accuracies
from pcl_ray.evaluation.protocols.settings import ProtocolSettings


def some(bank: int = 300, queries: int = 80, classes: int = 7, seed: int = 0) -> LabelledFeatures:
    rows = mixture(bank + queries, 10, groups=classes, seed=seed).numpy()
    of = np.arange(bank + queries) % classes
    of = np.where(np.random.default_rng(seed).random(len(of)) < 0.2, (of + 1) % classes, of)  # some noise
    return LabelledFeatures.of(rows[:bank], of[:bank], rows[bank:], of[bank:])


def tensors(features: LabelledFeatures) -> tuple[torch.Tensor, ...]:
    parts = (features.bank_BD, features.bank_labels_B, features.queries_QD, features.query_labels_Q)
    return tuple(map(torch.tensor, parts))


def test_knn_is_measured_for_each_number_of_neighbours() -> None:
    features = some()
    values, notes = knn(features, ProtocolSettings(neighbours=(5, 20), temperature=0.1))
    for count in (5, 20):
        expected = knn_accuracy(*tensors(features), neighbours=count, temperature=0.1)
        assert values[f"k{count}/top1"] == [pytest.approx(expected)]
        assert values[f"k{count}/top5"][0] > values[f"k{count}/top1"][0]
    assert values["k5/top1"] != values["k20/top1"]
    assert "neighbours" not in notes


def test_leaving_one_out_is_scikit_learns_with_each_image_left_out() -> None:
    features = some(60)
    bank, of = features.bank_BD.astype(np.float64), features.bank_labels_B
    hits = []
    for row in range(60):
        others = np.arange(60) != row
        model = KNeighborsClassifier(
            4, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.2)
        ).fit(bank[others], of[others])
        hits.append(model.predict(bank[row : row + 1])[0] == of[row])
    settings = ProtocolSettings(neighbours=(4,), temperature=0.2, leave_one_out=True)
    assert knn(features, settings)[0]["k4/top1"] == [pytest.approx(np.mean(hits))]


def test_more_neighbours_than_images_are_all_of_them() -> None:
    features = some(30)
    values, notes = knn(features, ProtocolSettings(neighbours=(1000,)))
    assert values["k1000/top1"] == [pytest.approx(knn_accuracy(*tensors(features), neighbours=30))]
    assert notes["neighbours"] == "at most 30, which is the whole bank"
    one = LabelledFeatures(np.ones((1, 2)), np.zeros(1, np.int64), np.ones((1, 2)), np.zeros(1, np.int64))
    with pytest.raises(DataError, match="a bank of one image has no neighbours"):
        knn(one, ProtocolSettings(leave_one_out=True))


def test_every_class_counts_alike_in_the_balanced_accuracy() -> None:
    """Nine of ten images are of one class, and all are taken for it."""
    of = np.array([0] * 90 + [1] * 10)
    assert accuracies(np.zeros(100, int), of) == {"top1": 0.9, "balanced": 0.5}


def test_unequal_classes_a_class_of_one_and_a_class_that_only_queries_have() -> None:
    rows = mixture(200, 6, groups=3).numpy()
    bank_labels = np.array(["large"] * 150 + ["small"] * 9 + ["one"])
    features = LabelledFeatures.of(rows[:160], bank_labels, rows[160:], ["large"] * 39 + ["unseen"])
    for values, _ in (knn(features, ProtocolSettings()), linear(features, ProtocolSettings(runs=1))):
        top1 = next(value for name, value in values.items() if name.endswith("top1"))
        assert 0 < top1[0] < 1  # the unseen class is always wrong


def test_the_linear_probe_has_a_run_for_each_choice_of_its_penalty() -> None:
    features = some()
    values, notes = linear(features, ProtocolSettings(runs=3))
    expected = [linear_probe_accuracy(*tensors(features), seed=seed) for seed in range(3)]
    assert values["top1"] == pytest.approx(expected)
    assert len(notes["penalties"]) == 3


def test_a_measurement_has_mean_and_spread() -> None:
    made = Measurement("linear", "backbone", {"top1": [0.5, 0.7], "balanced": [0.4]})
    assert made.mean("top1") == pytest.approx(0.6)
    assert made.spread("top1") == pytest.approx(0.2 / np.sqrt(2))
    assert made.spread("balanced") is None
    assert made.figures() == {
        "evaluate/linear/backbone/top1": pytest.approx(0.6),
        "evaluate/linear/backbone/top1_sd": pytest.approx(0.1414, abs=1e-4),
        "evaluate/linear/backbone/balanced": 0.4,
    }
    assert list(made.figures(charted=True)) == ["evaluate/linear/backbone/top1"]
    assert Measurement("unlabelled", "head", {"areq": [float("nan")]}).figures() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"neighbours": (0,)},
        {"runs": 0},
        {"cluster_counts": (1,)},
        {"temperature": 0.0},
        {"label_shares": (2.0,)},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="^--"):
        ProtocolSettings(**wrong)


def test_labels_of_torch_are_taken_too() -> None:
    rows = mixture(50, 6, groups=3)
    made = LabelledFeatures.of(rows[:40], labels(40, 3), rows[40:], labels(10, 3, seed=1))
    assert knn(made, ProtocolSettings(neighbours=(3,)))[0]["k3/top1"][0] <= 1
