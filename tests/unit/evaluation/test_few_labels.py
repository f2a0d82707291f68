from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_features import features, labels, mixture
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pcl_ray.evaluation import few_label_accuracy, few_label_draws


def groups(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of five groups that overlap, and which is whose."""
    draw = torch.Generator().manual_seed(seed)
    of = torch.randint(0, 5, (n,), generator=draw)
    centres = 0.8 * torch.eye(5, 12)
    return centres[of] + 0.4 * torch.randn(n, 12, generator=draw) + 0.3, of


def slow_accuracies(
    bank: Tensor, bank_labels: Tensor, query: Tensor, query_labels: Tensor, rows: list[int], n: int
) -> dict[str, float]:
    """The three classifiers of one draw by their definitions, one query at a time in float64."""
    mean, spread = bank.double().mean(dim=0), bank.double().std(dim=0, correction=0)
    drawn = [(bank[row].double() / bank[row].double().norm(), int(bank_labels[row])) for row in rows]
    classes = sorted({of for _, of in drawn})
    means = {}
    for c in classes:
        total = sum((row for row, of in drawn if of == c), torch.zeros(bank.shape[1], dtype=torch.float64))
        means[c] = total / total.norm()
    scaled = [((bank[row].double() - mean) / spread / math.sqrt(bank.shape[1])).numpy() for row in rows]
    # scikit-learn's C is the weight of the summed cross-entropy
    model = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000).fit(np.stack(scaled), [of for _, of in drawn])
    right = dict.fromkeys(("knn", "class_mean", "linear"), 0)
    for row, label in zip(query.double(), query_labels.tolist(), strict=True):
        unit = row / row.norm()
        near = sorted(((float(unit @ other), of) for other, of in drawn), reverse=True)[:n]
        votes = dict.fromkeys(classes, 0.0)
        for cosine, of in near:
            votes[of] += math.exp(cosine / 0.07)
        right["knn"] += max(classes, key=lambda c: votes[c]) == label
        right["class_mean"] += max(classes, key=lambda c: float(unit @ means[c])) == label
        standard = ((row - mean) / spread / math.sqrt(bank.shape[1])).numpy()
        right["linear"] += int(model.predict(standard[None])[0]) == label
    return {name: count / len(query) for name, count in right.items()}


@pytest.mark.parametrize("n", [1, 4])
def test_accuracies_equal_the_definitions(n: int) -> None:
    (bank, of), (query, query_of) = groups(80, 0), groups(60, 1)
    accuracies = few_label_accuracy(bank, of, query, query_of, labels_per_class=n, draws=3, seed=5)
    for number, rows in enumerate(few_label_draws(of, n, draws=3, seed=5)):
        slow = slow_accuracies(bank, of, query, query_of, rows.tolist(), n)
        for name, value in slow.items():
            assert accuracies[name][number] == pytest.approx(value, abs=0.5 / len(query)), name


def test_more_labels_help_and_groups_far_apart_need_one() -> None:
    (bank, of), (query, query_of) = groups(600, 0), groups(300, 1)
    one, ten = (few_label_accuracy(bank, of, query, query_of, labels_per_class=n, draws=10) for n in (1, 10))
    assert all(ten[name].mean() > one[name].mean() + 0.05 for name in one)
    assert np.array_equal(one["knn"], one["class_mean"])  # the mean of one image is that image
    far = few_label_accuracy(
        20 * torch.eye(5)[of] + 1, of, torch.eye(5)[query_of], query_of, labels_per_class=1
    )
    assert {name: values.tolist() for name, values in far.items()} == dict.fromkeys(far, [1.0] * 30)


def test_draws_are_balanced_distinct_and_many() -> None:
    of = labels(500, 7, lowest=-1)
    draws = few_label_draws(of, 5, draws=40)
    assert draws.shape == (40, 35)
    for rows in draws:
        assert len(set(rows.tolist())) == 35
        assert torch.bincount(of[rows], minlength=7).tolist() == [5] * 7
    assert len({tuple(rows) for rows in draws.tolist()}) == 40
    # every labelled image has its turn: of 40 · 5 draws a class of 60 images
    assert len(np.unique(draws)) > 0.9 * int((of >= 0).sum())


def test_draws_follow_from_seed_and_number_alone() -> None:
    of = labels(200, 4)
    draws = few_label_draws(of, 3, draws=6, seed=2)
    assert np.array_equal(draws, few_label_draws(of.numpy(), 3, draws=6, seed=2))
    assert np.array_equal(draws[:2], few_label_draws(of, 3, draws=2, seed=2))
    assert not np.array_equal(draws, few_label_draws(of, 3, draws=6, seed=3))


def test_a_class_with_fewer_images_gives_all_it_has() -> None:
    of = torch.tensor([0] * 20 + [1] * 2 + [-1] * 5 + [4] * 20)
    draws = few_label_draws(of, 5, draws=3)
    assert draws.shape == (3, 12)
    assert all({20, 21} <= set(rows.tolist()) for rows in draws)
    assert not np.isin(draws, np.arange(22, 27)).any()
    accuracies = few_label_accuracy(features(47), of, features(9, seed=1), labels(9, 5), labels_per_class=5)
    assert all(np.isfinite(values).all() for values in accuracies.values())


def test_images_without_a_label_take_no_part() -> None:
    (bank, of), (query, query_of) = groups(100, 0), groups(40, 1)
    junk, none = 1e4 * features(30, 12), torch.full((30,), -1)
    mixed = few_label_accuracy(
        torch.cat([bank, junk]),
        torch.cat([of, none]),
        torch.cat([query, junk]),
        torch.cat([query_of, none]),
        labels_per_class=2,
        draws=4,
    )
    pure = few_label_accuracy(bank, of, query, query_of, labels_per_class=2, draws=4)
    assert {name: values.tolist() for name, values in mixed.items()} == {
        name: values.tolist() for name, values in pure.items()
    }


def test_class_numbers_may_have_gaps_and_queries_classes_of_their_own() -> None:
    bank = mixture(90, groups=3)
    of, gaps = torch.arange(90) % 3, torch.tensor([2, 70, 100_000])
    plain = few_label_accuracy(bank, of, bank, of, labels_per_class=2, draws=4)
    assert plain["knn"].mean() > 0.6
    spread = few_label_accuracy(bank, gaps[of], bank, gaps[of], labels_per_class=2, draws=4)
    other = few_label_accuracy(bank, of, bank, torch.full((90,), 5), labels_per_class=2, draws=4)
    for name, values in plain.items():
        assert np.array_equal(values, spread[name])
        assert not other[name].any()


def test_one_class_and_constant_features_are_no_error() -> None:
    of = torch.zeros(10, dtype=torch.long)
    single = few_label_accuracy(features(10), of, features(4), torch.tensor([0, 0, 1, 2]), labels_per_class=1)
    assert all((values == 0.5).all() for values in single.values())
    constant = few_label_accuracy(
        torch.zeros(10, 8), labels(10, 2), torch.zeros(4, 8), torch.tensor([0, 0, 1, 1]), labels_per_class=1
    )
    assert all((values == 0.5).all() for values in constant.values())


def test_nan_where_there_is_nothing_to_learn_or_to_judge() -> None:
    bank, of, none = features(20), labels(20), torch.full((20,), -1)
    broken = bank * torch.tensor(float("inf"))
    for parts in (
        (bank, none, bank, of),
        (bank, of, bank, none),
        (broken, of, bank, of),
        (bank, of, broken, of),
    ):
        accuracies = few_label_accuracy(*parts, labels_per_class=1, draws=2)
        assert all(np.isnan(values).tolist() == [True, True] for values in accuracies.values())


@pytest.mark.parametrize(("n", "draws"), [(0, 5), (1, 0)])
def test_no_label_and_no_draw_is_refused(n: int, draws: int) -> None:
    with pytest.raises(ValueError, match="one at the least"):
        few_label_accuracy(features(9), labels(9), features(9), labels(9), labels_per_class=n, draws=draws)
