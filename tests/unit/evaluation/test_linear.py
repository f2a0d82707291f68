from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_features import features, labels
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pcl_ray.evaluation import linear_probe_accuracy


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A bank of 1,200 images of 64 pixels, some of them constant, and 597 queries."""
    data = load_digits()
    pixels, classes = torch.from_numpy(data.data).float(), torch.from_numpy(data.target)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return (pixels[order[:1200]], classes[order[:1200]], pixels[order[1200:]], classes[order[1200:]])


def best_of_all_penalties(bank: Tensor, bank_labels: Tensor, query: Tensor, query_labels: Tensor) -> float:
    """The best that converged logistic regression of standardised features reaches with any penalty, in
    float64: what a good choice comes near to.
    """
    scaler = StandardScaler().fit(bank.double().numpy())
    fitted, judged = scaler.transform(bank.double().numpy()), scaler.transform(query.double().numpy())
    models = (
        LogisticRegression(C=1 / (penalty * len(bank)), max_iter=5000) for penalty in 10.0 ** -np.arange(6)
    )
    return max(
        float(model.fit(fitted, bank_labels.numpy()).score(judged, query_labels.numpy())) for model in models
    )


def test_digits_are_classified_as_well_as_by_the_best_penalty() -> None:
    parts = digits()
    accuracy = linear_probe_accuracy(*parts)
    assert 0.95 < accuracy <= 1.0
    assert accuracy == pytest.approx(best_of_all_penalties(*parts), abs=0.012)


def test_a_penalty_is_chosen_that_learns_no_noise_by_heart() -> None:
    """A quarter of the bank's labels is wrong, and there are enough directions to fit them all."""
    draw = torch.Generator().manual_seed(0)
    of = torch.arange(1300) % 2
    rows = torch.randn(1300, 150, generator=draw)
    rows[:, :30] += 0.5 * (2 * of[:, None] - 1)
    bank_of = torch.where(torch.rand(300, generator=draw) < 0.25, 1 - of[:300], of[:300])
    accuracy = linear_probe_accuracy(rows[:300], bank_of, rows[300:], of[300:])
    loose = LogisticRegression(C=1e6, max_iter=5000).fit(rows[:300].numpy(), bank_of.numpy())
    assert accuracy > loose.score(rows[300:].numpy(), of[300:].numpy()) + 0.2


def test_the_probe_does_not_see_scale_or_shift_of_a_feature() -> None:
    bank, of, query, query_of = digits()
    scale, shift = torch.logspace(-2, 2, 64), torch.linspace(-5, 5, 64)
    moved = linear_probe_accuracy(bank * scale + shift, of, query * scale + shift, query_of)
    assert moved == pytest.approx(linear_probe_accuracy(bank, of, query, query_of), abs=0.005)


def test_the_same_input_gives_the_same_accuracy_and_stays_as_it_was() -> None:
    parts = digits()
    before = [part.clone() for part in parts]
    assert linear_probe_accuracy(*parts, selection=300) == linear_probe_accuracy(*parts, selection=300)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, before, strict=True))


def test_half_precision_features_are_taken() -> None:
    bank, of, query, query_of = digits()
    assert linear_probe_accuracy(bank.half(), of, query.half(), query_of) > 0.95


def test_images_without_a_label_take_no_part() -> None:
    bank, of, query, query_of = digits()
    junk = 1e4 * features(50, 64)
    none = torch.full((50,), -1)
    assert linear_probe_accuracy(
        torch.cat([bank, junk]), torch.cat([of, none]), torch.cat([query, junk]), torch.cat([query_of, none])
    ) == linear_probe_accuracy(bank, of, query, query_of)


def test_a_class_that_the_bank_has_not_got_is_never_right() -> None:
    bank, of, query, query_of = digits()
    seen = of != 3
    share = float((query_of != 3).float().mean())
    accuracy = linear_probe_accuracy(bank[seen], of[seen], query, query_of)
    assert share - 0.05 < accuracy <= share


def test_of_one_class_everything_is_that_class() -> None:
    of = torch.tensor([2, 2, 0, 1])
    assert linear_probe_accuracy(features(9), torch.full((9,), 2), features(4), of) == 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_few_images_are_no_error(count: int) -> None:
    of = torch.arange(count) % 3
    assert 0.0 <= linear_probe_accuracy(features(count), of, features(5, seed=1), labels(5, 3)) <= 1.0


def test_constant_features_tell_nothing_and_are_no_error() -> None:
    of = torch.tensor([0] * 30 + [1] * 10)
    constant = torch.full((40, 8), 0.1)
    # the larger class, whatever the image
    assert linear_probe_accuracy(constant, of, torch.randn(4, 8), torch.tensor([0, 0, 0, 1])) == 0.75


def test_nan_where_there_is_nothing_to_learn_or_to_judge() -> None:
    bank, of = features(20), labels(20)
    broken = bank.clone()
    broken[3, 2] = float("nan")
    none = torch.full((20,), -1)
    assert math.isnan(linear_probe_accuracy(bank, none, bank, of))
    assert math.isnan(linear_probe_accuracy(bank, of, bank, none))
    assert math.isnan(linear_probe_accuracy(bank[:0], of[:0], bank, of))
    assert math.isnan(linear_probe_accuracy(broken, of, bank, of))
    assert math.isnan(linear_probe_accuracy(bank, of, broken, of))
