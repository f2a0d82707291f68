from __future__ import annotations

import numpy as np
import pytest
import torch
from random_features import labels

from pcl_ray.errors import DataError
from pcl_ray.evaluation import agreement
from pcl_ray.evaluation.labels import class_numbers


def test_the_labels_themselves_under_other_numbers_agree_perfectly() -> None:
    of = labels(200, 5)
    renamed = torch.tensor([3, 0, 4, 1, 2])[of]
    assert agreement(renamed, of) == pytest.approx({"ami": 1.0, "nmi": 1.0, "ari": 1.0, "purity": 1.0})


def test_random_clusters_agree_by_chance_only() -> None:
    figures = agreement(labels(3000, 50, seed=1), labels(3000, 5))
    assert abs(figures["ami"]) < 0.02
    assert abs(figures["ari"]) < 0.02
    assert figures["nmi"] > 0.005  # not adjusted, so it grows with the number of clusters


def test_purity_by_hand() -> None:
    assignments, of = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 0, 1, 1, 1, 0, 2, 2, 1])
    assert agreement(assignments, of)["purity"] == pytest.approx((2 + 2 + 2) / 9)
    # every image its own cluster: why purity compares no clusterings of different K
    assert agreement(np.arange(9), of)["purity"] == 1.0
    assert agreement(np.zeros(9, dtype=np.int64), of)["purity"] == pytest.approx(4 / 9)


def test_images_without_a_label_take_no_part_in_agreement() -> None:
    assignments, of = labels(100, 6, seed=1), labels(100, 4)
    known = torch.arange(100) < 40
    assert agreement(assignments, of.where(known, -1)) == pytest.approx(agreement(assignments[:40], of[:40]))


@pytest.mark.parametrize("known", [0, 1])
def test_agreement_needs_two_labels(known: int) -> None:
    assert agreement(labels(10), labels(10).where(torch.arange(10) < known, -1)) == {}


def test_a_large_clustering_is_judged_by_a_fixed_sample() -> None:
    of = labels(60_000, 3)
    noisy = torch.where(torch.arange(60_000) % 4 == 0, labels(60_000, 3, seed=1), of)
    figures = agreement(noisy, of)
    assert figures == agreement(noisy, of)
    assert figures["purity"] == pytest.approx(float((noisy == of).float().mean()), abs=0.003)


def test_numbers_and_texts_become_class_numbers() -> None:
    names, (bank, queries) = class_numbers([7, -1, 3, 7], np.array([3.0, np.nan, 9.0]))
    assert names == ("3", "7", "9")
    assert bank.tolist() == [1, -1, 0, 1]
    assert queries.tolist() == [0, -1, 2]
    names, (texts,) = class_numbers(["dog", "", None, "cat", "dog"])
    assert names == ("cat", "dog")
    assert texts.tolist() == [1, -1, -1, 0, 1]
    assert class_numbers(np.array(["b", "a"]), torch.tensor([], dtype=torch.int64))[0] == ("a", "b")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0, 1], ["cat"]), "some labels are numbers and some are texts"),
        (([[0, 1]],), r"labels of shape \[1, 2\] cannot be used"),
        (([0.5, 1.0],), "the label 0.5 is neither a whole number nor a text"),
        (([{}],), "is neither a whole number nor a text"),
    ],
)
def test_other_labels_are_refused(parts: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_numbers(*parts)
